"""Exceptions in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def named(error: BaseException | None) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def suggest(wrong: str, valid: Iterable[str]) -> str:
    """Return the end of a sentence on a wrong word: ``"; did you mean 'x'?"`` if a valid one is close, else a dot."""
    close = difflib.get_close_matches(wrong, list(valid), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
