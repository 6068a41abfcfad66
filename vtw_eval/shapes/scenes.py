"""Scenes of coloured shapes on a grid: sampling, the split into training and test scenes, rendering.

Everything is a pure function of its arguments; randomness comes from the NumPy generator that is passed in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

GRID = 4
"""Cells per side of the image."""
CELL = 16
"""Pixels per side of a cell."""
IMAGE_SIZE = GRID * CELL
"""Pixels per side of an image."""
MAX_ITEMS = 5
"""The largest number of objects in a scene that questions are asked about."""

SHAPES = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 75, 225),
    "yellow": (235, 215, 45),
    "purple": (150, 45, 190),
    "cyan": (60, 210, 220),
}
"""Colour names and their mean RGB values, 0 to 255."""
KINDS: tuple[tuple[str, str], ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)
"""All kinds of object, (colour, shape), in the order in which captions name them."""

_BUCKETS = 8  # one scene in eight is a test scene
_TEST_BUCKET = 0
SUBSAMPLES = 3
"""Coverage samples per pixel and axis."""


@dataclass(frozen=True, order=True)
class Item:
    """One object: its cell (0 to 15, row by row from the top left), its colour and its shape."""

    cell: int
    color: str
    shape: str

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

    The split is a hash of the scene's content (cells, colours and shapes), so that the same arrangement is on the same
    side whatever its rendering, and training can never draw a scene of a test set.

    Parameters
    ----------
    scene
        The scene.

    Returns
    -------
    bool
        True for about one scene in eight.
    """
    return in_test_half(";".join(f"{item.cell},{item.color},{item.shape}" for item in sorted(scene.items)))


def in_test_half(text: str) -> bool:
    """Tell whether a scene of which a text says everything belongs to the test half of the split."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _BUCKETS == _TEST_BUCKET


def draw_number(rng: np.random.Generator, low: int, high: int, most: int) -> int:
    """Draw a number of items, uniform from ``low`` to ``high``; ValueError unless they lie within 1 and ``most``."""
    if not 1 <= low <= high <= most:
        raise ValueError(f"the number of items must satisfy 1 <= low <= high <= {most}, got {low} and {high}")
    return int(rng.integers(low, high + 1))


def sample_scene(rng: np.random.Generator, low: int = 1, high: int = MAX_ITEMS, *, test: bool = False) -> Scene:
    """Draw a scene: number of items uniform, then cells without replacement, colours and shapes independently.

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
    names = tuple(COLORS)
    count = draw_number(rng, low, high, GRID * GRID)
    while True:  # the number of items is kept, so that the split does not bend its distribution
        cells = sorted(rng.choice(GRID * GRID, size=count, replace=False).tolist())
        colors = rng.integers(len(names), size=count)
        shapes = rng.integers(len(SHAPES), size=count)
        scene = Scene(tuple(Item(c, names[k], SHAPES[s]) for c, k, s in zip(cells, colors, shapes, strict=True)))
        if is_test_scene(scene) == test:
            return scene


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Membership of points in a shape whose bounding square is [-1, 1] x [-1, 1], v pointing down."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.9
    if shape == "triangle":
        return (abs(u) <= (v + 1) / 2) & (v <= 1)
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.32) & (np.maximum(abs(u), abs(v)) <= 1)
    raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(SHAPES)}")


def draw_shape(image: np.ndarray, shape: str, x: float, y: float, half: float, tint: np.ndarray) -> None:
    """Draw a shape, in place.

    Parameters
    ----------
    image
        Float, [rows, columns, 3].
    shape
        One of :data:`SHAPES`.
    x, y, half
        Its centre and half its width, in pixels; it lies within the image.
    tint
        Its colour, [3].
    """
    top, left = int(y - half), int(x - half)
    part = image[top : int(y + half) + 1, left : int(x + half) + 1]  # a view, cut at the edges
    height, width = part.shape[:2]
    down, right = (  # subsample positions in pixels
        start + (np.arange(size * SUBSAMPLES) + 0.5) / SUBSAMPLES for start, size in ((top, height), (left, width))
    )
    fine = inside(shape, (right[None] - x) / half, (down[:, None] - y) / half)
    cover = fine.reshape(height, SUBSAMPLES, width, SUBSAMPLES).mean(axis=(1, 3))[..., None]
    part += cover * (tint - part)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene with random sizes, places within the cells, tints, ground and noise.

    Parameters
    ----------
    scene
        What to draw.
    rng
        Source of randomness; the same state gives the same image.

    Returns
    -------
    numpy.ndarray
        Image, uint8, [64, 64, 3] (rows, columns, RGB).
    """
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), rng.uniform(70, 140))
    centres = (np.arange(CELL * SUBSAMPLES) + 0.5) / SUBSAMPLES  # subsample positions in pixels
    for item in scene.items:
        half = rng.uniform(0.72, 0.92) * CELL / 2
        cx, cy = rng.uniform(half, CELL - half, size=2)
        u, v = (centres[None, :] - cx) / half, (centres[:, None] - cy) / half
        fine = inside(item.shape, u, v).reshape(CELL, SUBSAMPLES, CELL, SUBSAMPLES)
        cover = fine.mean(axis=(1, 3))[..., None]
        tint = np.array(COLORS[item.color]) + rng.uniform(-18, 18, size=3)
        top, left = CELL * (item.cell // GRID), CELL * (item.cell % GRID)
        patch = image[top : top + CELL, left : left + CELL]
        patch += cover * (tint - patch)
    image += rng.normal(0, 6, size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
