"""Which vision tokens enter which layers, in few characters.

A token that has left never comes back, so that one number of each vision token tells all: how many of the changes it
has outlived. A change is a layer that fewer vision tokens enter than the one before it, or than the prompt has; one
that none outlives needs no number. Numbers have as many bits as the largest of them could need, stand in the order of
the tokens in the prompt, the first in the highest bits, and are written as base64: 96 characters for one change of 576
tokens, 192 for two or three.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KeptSet:
    """Vision tokens that enter some layers, one after another."""

    first: int
    """The first of these layers."""
    last: int
    """The last one."""
    kept: tuple[bool, ...]
    """Of each vision token of the prompt: whether it enters them."""


def changes_of(vision: int, per_layer: Sequence[int]) -> list[int]:
    """Return the layers that fewer vision tokens enter than the one before them, or than the prompt has.

    Parameters
    ----------
    vision
        Vision tokens of the prompt.
    per_layer
        Vision tokens that enter each layer.
    """
    return [i for i, (before, count) in enumerate(zip((vision, *per_layer), per_layer, strict=False)) if count < before]


def pack(outlived: Sequence[int], changes: int) -> str:
    """Return numbers of tokens as text.

    Parameters
    ----------
    outlived
        Of each vision token: how many of the changes that leave some it has outlived.
    changes
        How many of these there are; nothing is written of none.

    Raises
    ------
    ValueError
        If a number is larger than that, or negative.
    """
    if any(not 0 <= number <= changes for number in outlived):
        raise ValueError(f"a vision token has outlived {min(outlived)} to {max(outlived)} of {changes} changes.")
    bits = "".join(format(number, f"0{changes.bit_length()}b") for number in outlived) if changes else ""
    padded = bits + "0" * (-len(bits) % 8)
    return base64.b64encode(bytes(int(padded[i : i + 8], 2) for i in range(0, len(padded), 8))).decode()


def unpack(text: str, vision: int, per_layer: Sequence[int]) -> list[KeptSet] | None:
    """Return which vision tokens enter which layers, a set for each time that it changes, the first of layer 0.

    Parameters
    ----------
    text
        Of :func:`pack`.
    vision, per_layer
        Vision tokens of the prompt, and those that enter each layer.

    Returns
    -------
    list of KeptSet or None
        None where it was not written down, as by earlier versions.

    Raises
    ------
    ValueError
        If the text is none of :func:`pack`, or other numbers of tokens follow from it than from ``per_layer``.
    """
    places = changes_of(vision, per_layer)
    some = [place for place in places if per_layer[place]]
    if some and not text:
        return None
    outlived = _numbers(text, vision, len(some))
    starts = places if 0 in places else [0, *places]
    found = []
    for start, end in zip(starts, [*starts[1:], len(per_layer)], strict=True):
        passed = sum(place <= start for place in some)
        kept = tuple(bool(per_layer[start]) and number >= passed for number in outlived)
        if sum(kept) != per_layer[start]:
            raise ValueError(f"{sum(kept)} vision tokens are told to enter layer {start}, and {per_layer[start]} did.")
        found.append(KeptSet(start, end - 1, kept))
    return found


def _numbers(text: str, vision: int, changes: int) -> list[int]:
    width = changes.bit_length()
    try:
        read = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:40]!r} is no base64: {error}.") from error
    if len(read) != -(-vision * width // 8):
        raise ValueError(f"{len(read)} bytes tell of {vision} vision tokens with {width} bits each.")
    bits = "".join(format(byte, "08b") for byte in read)
    return [int(bits[i * width : (i + 1) * width] or "0", 2) for i in range(vision)]
