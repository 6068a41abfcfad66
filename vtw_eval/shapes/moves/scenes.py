"""Videos of up to four objects on a grid of 4 x 4 cells: what each does, the split, rendering.

Everything is a pure function of its arguments; randomness comes from the NumPy generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from vtw_eval.shapes.scenes import CELL, COLORS, GRID, IMAGE_SIZE, KINDS, draw_number, draw_shape, in_test_half

FRAMES = 8
"""Frames of a video."""
MAX_ITEMS = 4
"""The largest number of objects in a scene."""
HIDDEN = -1
"""The cell of an object in a frame that does not show it."""
ACTIONS = ("move", "blink", "appear", "vanish", "rest")
"""What an object does, once in a video."""
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Directions of a move and its steps, (rows, columns)."""
TIMES = ("1", "2", "3")
"""How often an object blinks."""
BAR = 2
"""Height of the bar at the upper edge, in pixels, which grows to the full width, as players of videos show it."""

_LATE = range(2, FRAMES - 1)  # frames in which something may appear or vanish
_BLINKS = {
    times: [
        frames
        for frames in combinations(range(1, FRAMES - 1), int(times))
        if all(b - a > 1 for a, b in pairwise(frames))
    ]
    for times in TIMES
}


@dataclass(frozen=True, order=True)
class Item:
    """One object.

    Attributes
    ----------
    color, shape
        Names.
    action
        One of :data:`ACTIONS`.
    detail
        Of a move, its direction; of a blink, how often; otherwise empty.
    cells
        The cell in each frame, 0 to 15, row by row from the top left, or :data:`HIDDEN`.
    """

    color: str
    shape: str
    action: str
    detail: str
    cells: tuple[int, ...]

    @property
    def kind(self) -> tuple[str, str]:
        """The (colour, shape) pair."""
        return self.color, self.shape

    @property
    def change(self) -> int:
        """The first frame of an object that appears, the first without one that vanishes."""
        return next(t for t in range(1, FRAMES) if (self.cells[t] == HIDDEN) != (self.cells[0] == HIDDEN))


@dataclass(frozen=True)
class Scene:
    """What a video shows: items of kinds that differ, never two in a cell of a frame."""

    items: tuple[Item, ...]


def is_test_scene(scene: Scene) -> bool:
    """Tell whether a scene belongs to the test half of the split, by a hash of all that happens in it."""
    return in_test_half(";".join(f"{i.color},{i.shape},{i.action},{i.detail},{i.cells}" for i in sorted(scene.items)))


def _act(action: str, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """Draw the detail of an action and the cells of an object that does it."""
    cell = int(rng.integers(GRID * GRID))
    cells = [cell] * FRAMES
    detail = ""
    if action == "move":
        detail = tuple(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]
        down, right = DIRECTIONS[detail]
        steps = int(rng.integers(2, GRID))
        starts = [
            (row, column)
            for row in range(GRID)
            for column in range(GRID)
            if 0 <= row + steps * down < GRID and 0 <= column + steps * right < GRID
        ]
        row, column = starts[int(rng.integers(len(starts)))]
        when = sorted(rng.choice(np.arange(1, FRAMES), size=steps, replace=False).tolist())
        done = [sum(t >= moment for moment in when) for t in range(FRAMES)]
        cells = [GRID * (row + n * down) + column + n * right for n in done]
    elif action == "blink":
        detail = TIMES[int(rng.integers(len(TIMES)))]
        hidden = _BLINKS[detail][int(rng.integers(len(_BLINKS[detail])))]
        cells = [HIDDEN if t in hidden else cell for t in range(FRAMES)]
    elif action in ("appear", "vanish"):
        moment = int(rng.choice(_LATE))
        cells = [cell if (t >= moment) == (action == "appear") else HIDDEN for t in range(FRAMES)]
    return detail, tuple(cells)


def sample_scene(rng: np.random.Generator, low: int = 1, high: int = MAX_ITEMS, *, test: bool = False) -> Scene:
    """Draw a scene: number of items and what each does uniform, kinds without replacement, paths until none cross.

    Parameters
    ----------
    rng
        Source of randomness.
    low, high
        Smallest and largest number of items, both inclusive, 1 to 8.
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
    count = draw_number(rng, low, high, 2 * MAX_ITEMS)
    while True:
        kinds = [KINDS[i] for i in rng.choice(len(KINDS), size=count, replace=False)]
        items: list[Item] = []
        taken: list[set[int]] = [set() for _ in range(FRAMES)]
        for color, shape in kinds:
            action = ACTIONS[int(rng.integers(len(ACTIONS)))]
            while True:
                detail, cells = _act(action, rng)
                if not any(cell in used for cell, used in zip(cells, taken, strict=True)):
                    break
            for cell, used in zip(cells, taken, strict=True):
                used.add(cell) if cell != HIDDEN else None
            items.append(Item(color, shape, action, detail, cells))
        scene = Scene(tuple(items))
        if is_test_scene(scene) == test:
            return scene


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene with random sizes, places within the cells, tints and ground, and noise in every frame.

    Parameters
    ----------
    scene
        What to draw.
    rng
        Source of randomness; the same state gives the same video.

    Returns
    -------
    numpy.ndarray
        Frames, uint8, [8, 64, 64, 3] (frames, rows, columns, RGB).
    """
    ground = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), rng.uniform(80, 140))
    ground += (np.linspace(-1, 1, IMAGE_SIZE) * rng.uniform(-20, 20))[:, None, None]
    looks = []
    for item in scene.items:
        half = rng.uniform(5.0, 6.2)
        x, y = rng.uniform(half, CELL - half), rng.uniform(half + BAR, CELL - half)
        looks.append((half, x, y, np.array(COLORS[item.color]) + rng.uniform(-18, 18, size=3)))
    frames = np.repeat(ground[None], FRAMES, axis=0)
    for time, image in enumerate(frames):
        for item, (half, x, y, tint) in zip(scene.items, looks, strict=True):
            if (cell := item.cells[time]) != HIDDEN:
                row, column = divmod(cell, GRID)
                draw_shape(image, item.shape, CELL * column + x, CELL * row + y, half, tint)
        image[:BAR] = 20
        image[:BAR, : IMAGE_SIZE * (time + 1) // FRAMES] = 235
    frames += 4 * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def shown_in(items: Sequence[Item], time: int) -> dict[int, Item]:
    """Return the objects that a frame shows, by their cells."""
    return {item.cells[time]: item for item in items if item.cells[time] != HIDDEN}
