"""The training recipe and its data: every batch is a pure function of (seed, stage, step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vtw_eval.shapes.boards.making.model import SIZE
from vtw_eval.shapes.boards.making.thinning import thinned
from vtw_eval.shapes.boards.making.words import PLACES, WORDS
from vtw_eval.shapes.boards.questions import OPEN, TYPES, Question, ask
from vtw_eval.shapes.boards.scenes import (
    GRID,
    IMAGE_SIZE,
    MARK_SIZE,
    MARKS,
    MAX_ITEMS,
    Placed,
    Scene,
    paint,
    place,
    sample_scene,
)
from vtw_eval.shapes.making.model import Size
from vtw_eval.shapes.making.recipe import to_pixels
from vtw_eval.shapes.making.staged import STAGES
from vtw_eval.shapes.processor import PATCH_SIZE

TYPE_SHARES: dict[str, float] = {type: 1.0 for type in TYPES} | {"position": 1.5, "relate": 1.5, "choice": 1.5}
"""How often each question type is asked in training, relative to the others (where the scene allows it)."""
AGAIN_SHARES: dict[str, float] = TYPE_SHARES | {"count": 6.0, "same": 6.0, "open_count": 3.0}
"""The same in the last steps: few scenes allow these types, and they are learned last."""
SIMPLE = ("exist", *(type for type in OPEN if type != "open_count"))
"""Types that look one attribute of one object up, which says more about an error than Yes or No; and one that can be
asked about every scene."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run. Schedules are counted in steps, never in time.

    Attributes
    ----------
    seed
        Seed of weights and data.
    vision_steps, vision_images
        Stage ``vision``: steps, images per step (10 to 16 objects each).
    joint_steps, joint_scenes, joint_questions
        Stage ``joint``: steps, scenes per step, questions per scene.
    again_steps
        Further steps at the end of that stage, in which the rates rise once more, to the half, questions are drawn by
        :data:`AGAIN_SHARES`, and every other step shows all vision tokens.
    vision_rate, joint_rate
        Learning rates of Muon for the matrices, by stage.
    other_rate
        Learning rate of AdamW for embeddings, norms and biases.
    tower_rate
        Factor on the vision tower's learning rates in stage ``joint``; 0 leaves it as stage ``vision`` made it.
    curriculum
        ``(step, items)`` pairs: before that step of stage ``joint`` scenes have at most that many items.
    simple_steps
        Steps at the beginning of stage ``joint`` in which :data:`SIMPLE` questions are asked only.
    thin
        Share of stage ``joint``, from its beginning, in which the language model gets a part of the vision tokens.
    ground
        How many of those that show no object it then gets, at least and at most.
    warmup, cooldown
        Steps of linear warm-up, and the share of a stage's steps at its end in which the rate falls to zero.
    size
        Widths and depths of the model.
    """

    seed: int = 0
    vision_steps: int = 1000
    vision_images: int = 16
    joint_steps: int = 4000
    again_steps: int = 800
    joint_scenes: int = 8
    joint_questions: int = 16
    vision_rate: float = 0.03
    joint_rate: float = 0.005
    other_rate: float = 1e-3
    tower_rate: float = 0.3
    curriculum: tuple[tuple[int, int], ...] = ((60, 2), (150, 4), (300, 6))
    simple_steps: int = 200
    thin: float = 0.75
    ground: tuple[int, int] = (8, 40)
    warmup: int = 50
    cooldown: float = 0.4
    size: Size = SIZE

    def steps(self, stage: str) -> int:
        """Return the number of steps of a stage."""
        return {"vision": self.vision_steps, "joint": self.joint_steps + self.again_steps}[stage]

    def rate(self, stage: str, step: int) -> float:
        """Return the factor on the learning rates of a step: it rises, stays at 1, and falls to zero."""
        if stage == "joint" and step >= self.joint_steps:
            return 0.5 * self._rise(step - self.joint_steps, self.again_steps)
        return self._rise(step, self.joint_steps if stage == "joint" else self.vision_steps)

    def _rise(self, step: int, steps: int) -> float:
        return min(1.0, (step + 1) / self.warmup, (steps - step) / max(1.0, self.cooldown * steps))

    def shares(self, step: int) -> Mapping[str, float]:
        """Return how often each type is asked in a step of stage ``joint``, relative to the others."""
        if step < self.simple_steps:
            return {type: TYPE_SHARES[type] for type in SIMPLE}
        return TYPE_SHARES if step < self.joint_steps else AGAIN_SHARES

    def whole(self, step: int) -> bool:
        """Tell whether the language model gets all vision tokens in a step of stage ``joint``."""
        return step % 2 == 1 if step >= self.joint_steps else step >= self.thin * self.joint_steps

    def most_items(self, step: int) -> int:
        """Return the largest number of items in the scenes of a step of stage ``joint``."""
        return next((items for before, items in self.curriculum if step < before), MAX_ITEMS)


def _generator(recipe: Recipe, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, STAGES.index(stage), step])


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[torch.Tensor, list[list[Placed]]]:
    """Draw scenes.

    Parameters
    ----------
    scenes
        The scenes.
    rng
        Source of randomness.

    Returns
    -------
    (torch.Tensor, list of list of Placed)
        Pixel values as the processor makes them, float32, [scenes, 3, 128, 128]; and where the objects are.
    """
    placed = [place(scene, rng) for scene in scenes]
    return to_pixels(np.stack([paint(each, rng) for each in placed])), placed


def patch_labels(placed: Sequence[Sequence[Placed]]) -> dict[str, torch.Tensor]:
    """Return what stage ``vision`` learns of every patch, [images, patches], see :func:`token_labels`."""
    centres = (np.arange(IMAGE_SIZE // PATCH_SIZE) + 0.5) * PATCH_SIZE
    return token_labels(placed, centres, centres)


def token_labels(
    placed: Sequence[Sequence[Placed]], down: np.ndarray, right: np.ndarray, slack: float = 1.0
) -> dict[str, torch.Tensor]:
    """Return what stage ``vision`` learns of every vision token.

    Parameters
    ----------
    placed
        For each image the objects and where they are.
    down, right
        Centres of the tokens, in pixels of the scene, from the top and from the left.
    slack
        How far a token's centre may be off an object's square to show it, in pixels; off a digit's: one more.

    Returns
    -------
    dict
        For each of :data:`WORDS` and :data:`PLACES` the number of the value, -1 where there is none; [images, tokens].
        What an object's tokens beside its digit know of the digit is left open (-2).
    """
    labels = {name: np.full((len(placed), len(down), len(right)), -1, dtype=np.int64) for name in (*WORDS, *PLACES)}
    for image, objects in enumerate(placed):
        for each in objects:
            here = np.ix_(abs(down - each.y) < each.half + slack, abs(right - each.x) < each.half + slack)
            for name, grid in labels.items():
                value = getattr(each.item, name)
                if name == "mark":
                    value = -2 if value else -1
                elif name in WORDS:
                    value = WORDS[name].index(value)
                grid[image][here] = value
            if each.item.mark:
                width, height = MARK_SIZE
                near = (
                    abs(down - each.mark_y) < height / 2 + slack + 1,
                    abs(right - each.x) < width / 2 + slack + 1,
                )
                labels["mark"][image][np.ix_(*near)] = MARKS.index(each.item.mark)
    return {name: torch.from_numpy(grid.reshape(len(placed), -1)) for name, grid in labels.items()}


def vision_batch(recipe: Recipe, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Make the images of a step of stage ``vision``, crowded ones, and their patch labels."""
    rng = _generator(recipe, "vision", step)
    pixels, placed = draw([sample_scene(rng, 10, GRID * GRID) for _ in range(recipe.vision_images)], rng)
    return pixels, patch_labels(placed)


def sample_questions(
    scene: Any,
    rng: np.random.Generator,
    count: int,
    type_shares: Mapping[str, float],
    ask: Callable[[str, Any, np.random.Generator], Question | None] = ask,
) -> list[Question]:
    """Draw questions about a scene, types in proportion to their shares, as far as the scene allows them.

    Parameters
    ----------
    scene
        A scene.
    rng
        Source of randomness.
    count
        How many.
    type_shares
        How often each type is asked, relative to the others.
    ask
        Asks a question of a type about the scene, None if it allows none; by default about a board.

    Returns
    -------
    list of Question
        ``count`` questions.
    """
    types, shares = list(type_shares), np.array(list(type_shares.values()))
    questions: list[Question] = []
    while len(questions) < count:
        question = ask(types[rng.choice(len(types), p=shares / shares.sum())], scene, rng)
        if question is not None:
            questions.append(question)
    return questions


def joint_batch(recipe: Recipe, step: int) -> tuple[torch.Tensor, list[list[Question]], torch.Tensor | None]:
    """Make the images of a step of stage ``joint``, the questions about each, and which patches are given.

    Returns
    -------
    (torch.Tensor, list of list of Question, torch.Tensor or None)
        Pixel values, [scenes, 3, 128, 128]; questions; numbers of the patches that the language model gets, ascending,
        [scenes, given], None for all: every patch that shows an object and some that do not.
    """
    rng = _generator(recipe, "joint", step)
    scenes = [sample_scene(rng, 1, recipe.most_items(step)) for _ in range(recipe.joint_scenes)]
    pixels, placed = draw(scenes, rng)
    questions = [sample_questions(scene, rng, recipe.joint_questions, recipe.shares(step)) for scene in scenes]
    if recipe.whole(step):
        return pixels, questions, None
    shown = patch_labels(placed)["color"] >= 0
    return pixels, questions, thinned(shown, rng, recipe.ground, every=False)
