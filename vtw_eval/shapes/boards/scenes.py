"""Boards: up to nine objects of two sizes on a grid of 4 x 4 cells, large ones with a digit, among clutter.

Everything is a pure function of its arguments; randomness comes from the NumPy generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtw_eval.shapes.scenes import COLORS, SHAPES, draw_number, draw_shape, in_test_half

GRID = 4
"""Cells per side of the image."""
CELL = 32
"""Pixels per side of a cell."""
IMAGE_SIZE = GRID * CELL
"""Pixels per side of an image."""
MAX_ITEMS = 9
"""The largest number of objects in a scene."""

SIZES: dict[str, tuple[float, float]] = {"small": (6.5, 8.0), "large": (11.0, 14.0)}
"""Names of sizes and the range of an object's half width in pixels."""
MARKS = ("1", "2", "3", "4", "5", "6")
"""Digits that an object may carry."""
NO_MARK = ""
"""The mark of an object without a digit."""
MARKED = 0.75
"""Share of the large objects that carry a digit; small ones carry none."""
MARK_SIZE = (6, 10)
"""Width and height of a digit, in pixels."""

_INK = 15.0
_GLYPHS = {  # drawn at twice the size
    "1": (".#.", "##.", ".#.", ".#.", "###"),
    "2": ("##.", "..#", ".#.", "#..", "###"),
    "3": ("###", "..#", ".##", "..#", "###"),
    "4": ("#.#", "#.#", "###", "..#", "..#"),
    "5": ("###", "#..", "##.", "..#", "##."),
    "6": (".##", "#..", "###", "#.#", "###"),
}


@dataclass(frozen=True, order=True)
class Item:
    """One object.

    Attributes
    ----------
    cell
        0 to 15, row by row from the top left.
    size, color, shape
        Names: of :data:`SIZES`, :data:`~vtw_eval.shapes.scenes.COLORS`, :data:`~vtw_eval.shapes.scenes.SHAPES`.
    mark
        One of :data:`MARKS`, or :data:`NO_MARK`.
    """

    cell: int
    size: str
    color: str
    shape: str
    mark: str = NO_MARK

    @property
    def row(self) -> int:
        """Row of the cell, from 0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """Column of the cell, from 0 at the left."""
        return self.cell % GRID

    @property
    def kind(self) -> tuple[str, str]:
        """The (colour, shape) pair."""
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """What an image shows: items in the order of their cells, at most one to a cell."""

    items: tuple[Item, ...]


def is_test_scene(scene: Scene) -> bool:
    """Tell whether a scene belongs to the test half of the split.

    The split is a hash of the content (every attribute of every item), so that the same arrangement is on the same side
    whatever its rendering, and training can never draw a scene of a test set.

    Parameters
    ----------
    scene
        The scene.

    Returns
    -------
    bool
        True for about one scene in eight.
    """
    return in_test_half(";".join(f"{i.cell},{i.size},{i.color},{i.shape},{i.mark}" for i in sorted(scene.items)))


def sample_scene(rng: np.random.Generator, low: int = 1, high: int = MAX_ITEMS, *, test: bool = False) -> Scene:
    """Draw a scene: number of items uniform, then cells without replacement, all other attributes independently.

    Parameters
    ----------
    rng
        Source of randomness.
    low, high
        Smallest and largest number of items, both inclusive, 1 to 16.
    test
        Which side of the split to draw from.

    Returns
    -------
    Scene
        The scene.

    Raises
    ------
    ValueError
        If the numbers of items are out of range.
    """
    sizes, colors = tuple(SIZES), tuple(COLORS)  # small, large
    count = draw_number(rng, low, high, GRID * GRID)
    while True:  # the number of items is kept, so that the split does not bend its distribution
        cells = sorted(rng.choice(GRID * GRID, size=count, replace=False).tolist())
        drawn = rng.integers((len(sizes), len(colors), len(SHAPES), len(MARKS)), size=(count, 4)).tolist()
        marked = (rng.random(count) < MARKED).tolist()
        items = []
        for cell, (s, c, k, m), has in zip(cells, drawn, marked, strict=True):
            items.append(Item(cell, sizes[s], colors[c], SHAPES[k], MARKS[m] if has and s else NO_MARK))
        scene = Scene(tuple(items))
        if is_test_scene(scene) == test:
            return scene


@dataclass(frozen=True)
class Placed:
    """An item and where it is drawn: its centre and half its width, in pixels."""

    item: Item
    x: float
    y: float
    half: float

    @property
    def mark_y(self) -> float:
        """The height at which the digit is: the middle, or where a triangle is wide."""
        return self.y + (0.35 * self.half if self.item.shape == "triangle" else 0.0)


def place(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Draw the size of each item of a scene and its place within its cell."""
    placed = []
    for item in scene.items:
        half = rng.uniform(*SIZES[item.size])
        x, y = rng.uniform(half, CELL - half, size=2)
        placed.append(Placed(item, CELL * item.column + x, CELL * item.row + y, half))
    return placed


def _draw_mark(image: np.ndarray, placed: Placed) -> None:
    """Write a digit, centred as well as whole pixels allow."""
    glyph = np.array([[pixel == "#" for pixel in line] for line in _GLYPHS[placed.item.mark]])
    glyph = glyph.repeat(2, axis=0).repeat(2, axis=1)
    width, height = MARK_SIZE
    top, left = round(placed.mark_y - height / 2), round(placed.x - width / 2)
    image[top : top + height, left : left + width][glyph] = _INK


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Draw a grey ground with a slope and short strokes on it that are brighter or darker."""
    slope = np.linspace(-1, 1, IMAGE_SIZE) * rng.uniform(-20, 20)
    image = np.repeat((rng.uniform(80, 140) + slope)[:, None, None], IMAGE_SIZE, axis=1).repeat(3, axis=2)
    for _ in range(int(rng.integers(0, 9))):
        length, thick = int(rng.integers(4, 12)), int(rng.integers(1, 3))
        height, width = (length, thick) if rng.random() < 0.5 else (thick, length)
        top, left = rng.integers(0, IMAGE_SIZE - height), rng.integers(0, IMAGE_SIZE - width)
        image[top : top + height, left : left + width] += float(rng.choice((-1, 1)) * rng.uniform(25, 60))
    return image


def paint(placed: Sequence[Placed], rng: np.random.Generator) -> np.ndarray:
    """Draw placed items with random tints over a random ground with clutter, and noise over all.

    Parameters
    ----------
    placed
        What to draw and where, the last in front.
    rng
        Source of randomness; the same state gives the same image.

    Returns
    -------
    numpy.ndarray
        Image, uint8, [128, 128, 3] (rows, columns, RGB).
    """
    image = _ground(rng)
    for each in placed:
        tint = np.array(COLORS[each.item.color]) + rng.uniform(-18, 18, size=3)
        draw_shape(image, each.item.shape, each.x, each.y, each.half, tint)
        if each.item.mark:
            _draw_mark(image, each)
    image += 5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene: :func:`place`, then :func:`paint`."""
    return paint(place(scene, rng), rng)
