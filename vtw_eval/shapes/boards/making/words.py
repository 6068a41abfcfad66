"""What the vision stage reads from the patches of an object."""

from __future__ import annotations

from vtw_eval.shapes.boards.scenes import MARKS, SIZES
from vtw_eval.shapes.scenes import COLORS, SHAPES

WORDS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "mark": MARKS,
}
"""Attributes of an object whose words stage ``vision`` draws the object's patches to."""
PLACES = ("row", "column")
"""Attributes that stage ``vision`` reads from an object's patches by heads of their own."""
