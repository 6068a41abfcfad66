"""What a family brings: its model and processor, what it is shown, and where its vision tokens are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from vtw_eval.shapes.boards.making.mimetic import place_directions
from vtw_eval.shapes.boards.making.recipe import Recipe
from vtw_eval.shapes.making.packing import Packed, pack_after
from vtw_eval.shapes.questions import Question

UNKNOWABLE = -3
"""Label of a vision token that shows an object but cannot know its place, and should tell none."""


@dataclass(frozen=True)
class Shown:
    """What a step shows: as many vision tokens in each row.

    Attributes
    ----------
    media
        What the vision tower gets, as the processor makes it.
    labels
        What each vision token shows, by attribute: a number, -1 for nothing, -2 for either,
        :data:`UNKNOWABLE`; [rows, tokens].
    questions
        Questions about each row's image or video; empty in stage ``vision``.
    """

    media: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    questions: list[list[Question]]

    @property
    def tokens(self) -> int:
        """Vision tokens of a row."""
        return next(iter(self.labels.values())).shape[1]


class Family(ABC):
    """What is particular to an architecture, and to what it is asked about."""

    recipe: ClassVar[Recipe]
    """The recipe's defaults."""
    words: ClassVar[dict[str, tuple[str, ...]]]
    """Attributes of what is shown whose words stage ``vision`` draws features to, with their values."""
    places: ClassVar[dict[str, int]]
    """Attributes that are read from vision tokens by heads of their own, with the number of their values."""
    reading_layers: ClassVar[int] = 0
    """Decoder layers after which the heads read. 0: they read features, in stage ``vision``. More: in stage ``joint``,
    for towers that do not know where a patch is, which positions tell the language model."""
    types: ClassVar[tuple[str, ...]]
    """Question types."""
    closing: ClassVar[str] = " ASSISTANT:"
    """What comes between a question and its answer."""

    processor: Any
    """The processor."""

    @abstractmethod
    def build(self, recipe: Recipe) -> PreTrainedModel:
        """Return the untrained model, float32, in evaluation mode, with greedy generation defaults."""

    @abstractmethod
    def opening(self, tokens: int) -> str:
        """Return what comes before a question, with placeholders for a number of vision tokens."""

    @abstractmethod
    def features(self, model: Any, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the projected vision tokens, [rows, tokens, width]."""

    @abstractmethod
    def vision_step(self, recipe: Recipe, step: int) -> Shown:
        """Return what a step of stage ``vision`` shows."""

    @abstractmethod
    def joint_step(self, recipe: Recipe, step: int) -> tuple[Shown, torch.Tensor]:
        """Return what a step of stage ``joint`` shows, and which vision tokens are given, ascending, [rows, given]."""

    @abstractmethod
    def held_out(self, rng: np.random.Generator, rows: int) -> Shown:
        """Return held-out images or videos with at most one question of each type about each."""

    def finish(self, model: Any) -> Any:
        """Return a trained model as it is written."""
        return model

    def directions(self, decoder: Any) -> dict[str, torch.Tensor]:
        """Return where vision tokens should keep places, so that the decoder's search copies them, by place."""
        return place_directions(decoder)

    @property
    def placeholder(self) -> int:
        """Id of a vision token's place."""
        return int(self.processor.image_token_id)

    def positions(self, model: Any, ids: torch.Tensor, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the positions of the opening as the model counts them: [length], or [axes, length]."""
        return torch.arange(len(ids))

    def pack(self, model: Any, shown: Shown) -> Packed:
        """Pack the questions behind the opening, with the positions that the model gives each alone."""
        tokenizer = self.processor.tokenizer
        opening = self.opening(shown.tokens)
        batch = pack_after(tokenizer, opening, shown.questions, self.closing)
        length = len(tokenizer(opening, add_special_tokens=False)["input_ids"])
        positions = self.positions(model, batch.input_ids[0, :length], shown.media)
        after = (batch.position_ids[:, length:] - length).clamp(min=0) + int(positions.max()) + 1
        after = after.expand(*positions.shape[:-1], *after.shape)
        before = positions[..., None, :].expand(*positions.shape[:-1], len(batch.input_ids), length)
        return replace(batch, position_ids=torch.cat([before, after], dim=-1))


@torch.no_grad()
def scale_linear(module: nn.Module, generator: torch.Generator, layers: int, outputs: Sequence[str]) -> None:
    """Set linear and convolution layers as :func:`~vtw_eval.shapes.making.model.scaled_normal` does, in place.

    Parameters
    ----------
    module
        A network with residual layers.
    generator
        Source of randomness.
    layers
        Their number.
    outputs
        Names of the linear layers that write into the residual stream.
    """
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            std = part.weight[0].numel() ** -0.5
            if any(name.endswith(end) for end in outputs):
                std /= (2 * layers) ** 0.5
            part.weight.normal_(0, std, generator=generator)
            if part.bias is not None:
                part.bias.zero_()
