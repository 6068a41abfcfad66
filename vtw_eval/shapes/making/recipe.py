"""The training recipe and its data: every batch is a pure function of (seed, stage, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vtw_eval.shapes.making.model import Size
from vtw_eval.shapes.making.staged import STAGES
from vtw_eval.shapes.processor import PATCH_SIZE
from vtw_eval.shapes.questions import TYPES, Question, ask
from vtw_eval.shapes.scenes import COLORS, GRID, IMAGE_SIZE, MAX_ITEMS, SHAPES, Scene, render, sample_scene
from vtw_eval.state import cosine

TYPE_SHARES: dict[str, float] = {
    "exist": 0.22,
    "count": 0.18,
    "color": 0.10,
    "choice": 0.16,
    "open_color": 0.06,
    "open_shape": 0.08,
    "open_count": 0.08,
    "caption": 0.12,
}
"""Share of each question type in training (where the scene allows it)."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run. Schedules are counted in steps, never in time.

    Attributes
    ----------
    seed
        Seed of weights and data.
    vision_steps, vision_images, vision_rate
        Stage ``vision``: steps, images per step, peak learning rate.
    joint_steps, joint_scenes, joint_questions, joint_rate
        Stage ``joint``: steps, scenes per step, questions per scene, peak learning rate.
    tower_rate
        Factor on the vision tower's learning rate in stage ``joint``.
    warmup
        Steps of linear warm-up in either stage, at most a tenth of the stage; then a cosine to zero.
    curriculum
        ``(step, items)`` pairs: before that step of stage ``joint`` scenes have at most that many items.
    size
        Widths and depths of the model.
    """

    seed: int = 0
    vision_steps: int = 1000
    vision_images: int = 64
    vision_rate: float = 2e-3
    joint_steps: int = 3000
    joint_scenes: int = 16
    joint_questions: int = 8
    joint_rate: float = 1.5e-3
    tower_rate: float = 0.3
    warmup: int = 200
    curriculum: tuple[tuple[int, int], ...] = ((100, 1), (300, 2), (600, 3))
    size: Size = field(default_factory=Size)

    def steps(self, stage: str) -> int:
        """Return the number of steps of a stage."""
        return {"vision": self.vision_steps, "joint": self.joint_steps}[stage]

    def rate(self, stage: str, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
        steps = self.steps(stage)
        warmup = min(self.warmup, steps // 10)
        peak = {"vision": self.vision_rate, "joint": self.joint_rate}[stage]
        return peak * cosine(step, steps, warmup)

    def most_items(self, step: int) -> int:
        """Return the largest number of items in the scenes of a step of stage ``joint``."""
        return next((items for before, items in self.curriculum if step < before), MAX_ITEMS)


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Turn images into the model's pixel values, exactly as the processor does.

    Parameters
    ----------
    images
        uint8, [images, 64, 64, 3].

    Returns
    -------
    torch.Tensor
        float32, [images, 3, 64, 64], in [-1, 1].
    """
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def patch_labels(scenes: Sequence[Scene], patches: int) -> dict[str, torch.Tensor]:
    """Return what stage ``vision`` predicts from every patch.

    Parameters
    ----------
    scenes
        The scenes.
    patches
        Patches per side of an image, a multiple of the grid's side.

    Returns
    -------
    dict
        ``shape`` and ``color`` (0 = nothing there), ``row`` and ``column`` of the cell; each [scenes, patches**2].
    """
    shape = np.zeros((len(scenes), GRID, GRID), dtype=np.int64)
    color = np.zeros_like(shape)
    colors = list(COLORS)
    for i, scene in enumerate(scenes):
        for item in scene.items:
            at = i, item.cell // GRID, item.cell % GRID
            shape[at] = 1 + SHAPES.index(item.shape)
            color[at] = 1 + colors.index(item.color)
    row, column = np.broadcast_arrays(np.arange(GRID)[None, :, None], np.arange(GRID)[None, None, :], shape)[:2]
    each = patches // GRID
    return {
        name: torch.from_numpy(cells.repeat(each, axis=1).repeat(each, axis=2).reshape(len(scenes), -1))
        for name, cells in {"shape": shape, "color": color, "row": row, "column": column}.items()
    }


LABEL_SIZES = {"shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "row": GRID, "column": GRID}
"""Number of classes of each of :func:`patch_labels`."""


def _generator(recipe: Recipe, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, STAGES.index(stage), step])


def vision_batch(recipe: Recipe, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Make the images of a step of stage ``vision``, with 4 to 10 items each, and their patch labels."""
    rng = _generator(recipe, "vision", step)
    scenes = [sample_scene(rng, 4, 10) for _ in range(recipe.vision_images)]
    images = np.stack([render(scene, rng) for scene in scenes])
    return to_pixels(images), patch_labels(scenes, IMAGE_SIZE // PATCH_SIZE)


def sample_questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Draw questions about a scene, types in proportion to :data:`TYPE_SHARES`."""
    shares = [TYPE_SHARES[type] for type in TYPES]
    questions: list[Question] = []
    while len(questions) < count:
        question = ask(TYPES[rng.choice(len(TYPES), p=shares)], scene, rng)
        if question is not None:
            questions.append(question)
    return questions


def joint_batch(recipe: Recipe, step: int) -> tuple[torch.Tensor, list[list[Question]]]:
    """Make the images of a step of stage ``joint`` and the questions about each."""
    rng = _generator(recipe, "joint", step)
    scenes = [sample_scene(rng, 1, recipe.most_items(step)) for _ in range(recipe.joint_scenes)]
    images = np.stack([render(scene, rng) for scene in scenes])
    return to_pixels(images), [sample_questions(scene, rng, recipe.joint_questions) for scene in scenes]
