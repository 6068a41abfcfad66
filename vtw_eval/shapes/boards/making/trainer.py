"""What all trainers of models for boards and moves share: words, places that are read from vision tokens, rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from vtw_eval.shapes.boards.making.recipe import Recipe
from vtw_eval.shapes.making.staged import StagedTrainer


class BoardsTrainer(StagedTrainer):
    """Trains matrices by Muon and the rest by AdamW, by a :class:`~vtw_eval.shapes.boards.making.recipe.Recipe`.

    Parameters
    ----------
    recipe, autocast
        As in :class:`~vtw_eval.shapes.making.staged.StagedTrainer`.
    """

    recipe: Recipe

    def __init__(self, recipe: Recipe, autocast: bool = True) -> None:
        super().__init__(recipe, autocast)
        vocabulary = self.processor.tokenizer.get_vocab()
        self.words = {
            name: torch.tensor([vocabulary[word] for word in words]) for name, words in self.word_values().items()
        }

    @abstractmethod
    def word_values(self) -> Mapping[str, tuple[str, ...]]:
        """Return the attributes whose words stage ``vision`` draws features to, with their values."""

    @abstractmethod
    def places(self) -> Mapping[str, int]:
        """Return the attributes that are read from vision tokens by heads, with the number of their values."""

    @abstractmethod
    def directions(self) -> Mapping[str, torch.Tensor]:
        """Return where vision tokens should keep places, so that the decoder's search copies them, by place."""

    def make_heads(self, generator: torch.Generator) -> nn.ModuleDict:
        """Return a head for each place."""
        width = self.recipe.size.width
        heads = {name: nn.Linear(width, values) for name, values in self.places().items()}
        for head in heads.values():
            nn.init.normal_(head.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(head.bias)
        for name, directions in self.directions().items():
            heads[name].weight.data.copy_(directions)
        return nn.ModuleDict(heads)

    def set_rates(self) -> None:
        """Give the optimisers the learning rates of the current step."""
        rate = self.recipe.rate(self.stage, self.step)
        matrix_rate = self.recipe.vision_rate if self.stage == "vision" else self.recipe.joint_rate
        for optimiser, peak in zip(self.optimisers, (matrix_rate, self.recipe.other_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate * group["scale"]
