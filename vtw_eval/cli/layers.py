"""``--k`` of the sub-commands that compare several numbers of layers."""

from __future__ import annotations


def numbers_of_layers(text: str | None) -> list[int] | None:
    """Return the numbers given to ``--k``, such as ``0,4,8``; None for None. ValueError if they are none."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--k {text!r}: write numbers with commas between them, such as 0,4,8.") from None
