"""The score of a shapes caption: which of the objects it names. Both harnesses use it."""

from __future__ import annotations

import re
from collections import Counter

from vtw_eval.shapes.scenes import COLORS, SHAPES

_OBJECT = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")


def objects(caption: str) -> Counter[tuple[str, str]]:
    """Count the objects that a caption names, as (colour, shape) pairs."""
    return Counter(_OBJECT.findall(caption.lower()))


def object_f1(prediction: str, answer: str) -> float:
    """Return the F1 score between the objects of two captions, repetitions counted; 0 to 1."""
    told, there = objects(prediction), objects(answer)
    total = told.total() + there.total()
    return 2 * (told & there).total() / total if total else 1.0
