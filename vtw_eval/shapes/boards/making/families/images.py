"""Boards as the families of images are shown them: whole ones, and smaller ones that are a part of the cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from vtw_eval.shapes.boards.making.families.family import Family, Shown
from vtw_eval.shapes.boards.making.recipe import Recipe, sample_questions
from vtw_eval.shapes.boards.making.thinning import thinned
from vtw_eval.shapes.boards.making.words import PLACES, WORDS
from vtw_eval.shapes.boards.questions import TYPES, ask
from vtw_eval.shapes.boards.scenes import CELL, GRID, Placed, Scene, is_test_scene, paint, place, sample_scene
from vtw_eval.shapes.making.staged import STAGES


@dataclass(frozen=True)
class Form:
    """Size and shape of a board.

    Attributes
    ----------
    rows, columns
        Cells, at most 4 each.
    """

    rows: int = GRID
    columns: int = GRID


def sample_part(rng: np.random.Generator, form: Form, low: int, high: int, *, test: bool = False) -> Scene:
    """Draw a scene whose items all lie in the top left cells of a form, at least one, on a side of the split."""
    while True:
        scene = sample_scene(rng, low, high, test=test)
        items = tuple(item for item in scene.items if item.row < form.rows and item.column < form.columns)
        part = Scene(items)
        if items and is_test_scene(part) == test:
            return part


def paint_part(placed: Sequence[Placed], form: Form, rng: np.random.Generator) -> np.ndarray:
    """Draw placed items on a board of a form: uint8, [32 rows, 32 columns, 3]."""
    return paint(placed, rng)[: CELL * form.rows, : CELL * form.columns]


class BoardFamily(Family):
    """A family that is asked about boards."""

    words = WORDS
    places: ClassVar[dict[str, int]] = dict.fromkeys(PLACES, GRID)
    types = TYPES
    forms: ClassVar[tuple[Form, ...]] = (Form(),)
    """What it is shown; a step shows one of them. The first is that of the test sets."""

    @abstractmethod
    def media(self, images: list[np.ndarray], form: Form) -> dict[str, torch.Tensor]:
        """Return what the vision tower gets of images of a form, as the processor makes it."""

    @abstractmethod
    def labels(self, placed: Sequence[Sequence[Placed]], form: Form) -> dict[str, torch.Tensor]:
        """Return what each vision token shows, see :class:`~.family.Shown`."""

    def show(self, scenes: Sequence[Scene], form: Form, rng: np.random.Generator) -> Shown:
        """Draw scenes of a form."""
        placed = [place(scene, rng) for scene in scenes]
        images = [paint_part(each, form, rng) for each in placed]
        return Shown(self.media(images, form), self.labels(placed, form), [])

    def vision_step(self, recipe: Recipe, step: int) -> Shown:
        """Return crowded boards."""
        rng = np.random.default_rng([recipe.seed, STAGES.index("vision"), step])
        form = self.forms[int(rng.integers(len(self.forms)))]
        scenes = [sample_part(rng, form, 10, GRID * GRID) for _ in range(recipe.vision_images)]
        return self.show(scenes, form, rng)

    def shares(self, recipe: Recipe, step: int) -> Mapping[str, float]:
        """Return how often each type is asked in a step of stage ``joint``."""
        return recipe.shares(step)

    def given(self, recipe: Recipe, step: int, shown: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return which vision tokens are given in a step, of which ``shown`` tells whether they show an object."""
        return thinned(shown, rng, recipe.ground, recipe.whole(step))

    def joint_step(self, recipe: Recipe, step: int) -> tuple[Shown, torch.Tensor]:
        """Return boards with questions; a part of their vision tokens is given as long as the recipe says."""
        rng = np.random.default_rng([recipe.seed, STAGES.index("joint"), step])
        form = self.forms[int(rng.integers(len(self.forms)))]
        scenes = [sample_part(rng, form, 1, recipe.most_items(step)) for _ in range(recipe.joint_scenes)]
        shown = self.show(scenes, form, rng)
        shares = self.shares(recipe, step)
        shown.questions.extend(sample_questions(scene, rng, recipe.joint_questions, shares) for scene in scenes)
        return shown, self.given(recipe, step, shown.labels["color"] >= 0, rng)

    def held_out(self, rng: np.random.Generator, rows: int) -> Shown:
        """Return boards of the test sets' form from the held-out side."""
        form = self.forms[0]
        scenes = [sample_part(rng, form, 1, 9, test=True) for _ in range(rows)]
        shown = self.show(scenes, form, rng)
        shown.questions.extend([q for type in TYPES if (q := ask(type, scene, rng)) is not None] for scene in scenes)
        return shown
