"""Trains a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from vtw_eval.shapes.boards.making.families.check import accuracy
from vtw_eval.shapes.boards.making.families.family import UNKNOWABLE, Family
from vtw_eval.shapes.boards.making.nearness import word_losses
from vtw_eval.shapes.boards.making.optimiser import optimisers
from vtw_eval.shapes.boards.making.recipe import Recipe
from vtw_eval.shapes.boards.making.thinning import thin_pass
from vtw_eval.shapes.boards.making.trainer import BoardsTrainer
from vtw_eval.shapes.making.packing import answer_loss
from vtw_eval.shapes.making.staged import command_line

PLACE_WEIGHT = 0.2
"""Loss weight of a place that is read inside the language model."""
NO_PLACE_WEIGHT = 0.5
"""Loss weight of a place that is read where none can be known: the cross-entropy of all values alike."""


class FamilyTrainer(BoardsTrainer):
    """Trains as :class:`vtw_eval.shapes.boards.making.train.Trainer` does.

    Parameters
    ----------
    recipe, autocast
        As in :class:`~vtw_eval.shapes.making.staged.StagedTrainer`.
    family
        What is trained.
    """

    def __init__(self, recipe: Recipe, autocast: bool = True, *, family: Family) -> None:
        self.family = family
        super().__init__(recipe, autocast)

    def word_values(self) -> Mapping[str, tuple[str, ...]]:
        """Return those of the family."""
        return self.family.words

    def places(self) -> Mapping[str, int]:
        """Return those of the family."""
        return self.family.places

    def directions(self) -> Mapping[str, torch.Tensor]:
        """Return those of the family."""
        return self.family.directions(self.model.model.language_model)

    def about(self) -> dict[str, Any]:
        """Return what a saved state must have in common with this run."""
        return super().about() | {"family": type(self.family).__name__}

    def make_processor(self) -> Any:
        """Return the processor of the model."""
        return self.family.processor

    def make_model(self) -> PreTrainedModel:
        """Return the untrained model."""
        return self.family.build(self.recipe)

    def make_optimisers(self, stage: str) -> list[torch.optim.Optimizer]:
        """Return fresh optimisers of a stage: of the matrices, and of all else."""

        def scale(name: str) -> float:
            if "embed_tokens" in name:
                return 1.0
            if "language_model" in name:
                return 0.0 if stage == "vision" else 1.0
            if name.startswith("heads"):
                return float((stage == "joint") == (self.family.reading_layers > 0))
            return 1.0 if stage == "vision" or "projector" in name or "merger" in name else self.recipe.tower_rate

        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(scale(name) > 0)
        return optimisers(self.module.named_parameters(), scale)

    def place_losses(self, states: torch.Tensor, labels: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the losses of the heads: places are read where they are known, and none where none can be."""
        losses = []
        for name, head in self.heads.items():
            known, unknowable = labels[name] >= 0, labels[name] == UNKNOWABLE
            losses.append(F.cross_entropy(head(states[known]), labels[name][known], label_smoothing=0.05))
            if unknowable.any():
                losses.append(NO_PLACE_WEIGHT * -head(states[unknowable]).log_softmax(-1).mean())
        return losses

    def vision_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``vision``."""
        shown = self.family.vision_step(self.recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            features = self.family.features(self.model, shown.media).float()
        table = self.model.model.language_model.embed_tokens.weight
        features, losses = word_losses(features, shown.labels, self.words, table)
        if not self.family.reading_layers:
            losses += self.place_losses(features, shown.labels)
        return torch.stack(losses).sum()

    def joint_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``joint``."""
        shown, given = self.family.joint_step(self.recipe, self.step)
        batch = self.family.pack(self.model, shown)
        reads = self.family.reading_layers
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            features = self.family.features(self.model, shown.media)
            logits, states = thin_pass(self.model, features, batch, given, self.family.placeholder, reads > 0)
        loss = answer_loss(logits, batch)
        if reads:
            labels = {name: shown.labels[name].gather(1, given) for name in self.heads}
            read = F.rms_norm(states[reads].float(), states[reads].shape[-1:])
            loss = loss + PLACE_WEIGHT * torch.stack(self.place_losses(read, labels)).sum()
        return loss

    def export(self, directory: Path) -> None:
        """Write the checkpoint for ``from_pretrained``, see :meth:`~.staged.StagedTrainer.export`."""
        self.model = self.family.finish(self.model)
        super().export(directory)

    def accuracy(self) -> dict[str, float]:
        """Return quick held-out accuracies by question type."""
        return accuracy(self.family, self.model, 64, seed=self.recipe.seed, autocast=self.autocast)


def train(family: Family, module: str, trained: str, arguments: list[str] | None) -> None:
    """Run the command line of a family.

    Parameters
    ----------
    family
        What is trained.
    module, trained
        Module that is run, and what it trains, for help.
    arguments
        Of the command line; None for those of the process.
    """
    recipe = partial(replace, family.recipe)
    command_line(recipe, partial(FamilyTrainer, family=family), module, trained, arguments)
