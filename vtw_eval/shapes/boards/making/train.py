"""Train a model that answers about boards from nothing: ``python -m vtw_eval.shapes.boards.making.train --help``.

Stage ``vision`` teaches the tower and the projector to give each patch of an object features that lie near the word
embeddings of its colour, shape, size and digit, as CLIP's features lie near text, and to keep row and column readable.
The language model begins as a search for such features (:mod:`~vtw_eval.shapes.boards.making.mimetic`). Stage ``joint``
trains everything on questions about scenes. Most of it shows the language model a part of the vision tokens, which
costs half as much: all that show objects, and some ground; the end of it shows all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_eval.shapes.boards.making.check import accuracy
from vtw_eval.shapes.boards.making.mimetic import place_directions
from vtw_eval.shapes.boards.making.model import build_model
from vtw_eval.shapes.boards.making.nearness import word_losses
from vtw_eval.shapes.boards.making.optimiser import optimisers
from vtw_eval.shapes.boards.making.recipe import Recipe, joint_batch, vision_batch
from vtw_eval.shapes.boards.making.thinning import thin_logits
from vtw_eval.shapes.boards.making.trainer import BoardsTrainer
from vtw_eval.shapes.boards.making.words import PLACES, WORDS
from vtw_eval.shapes.boards.processor import build_processor
from vtw_eval.shapes.boards.scenes import GRID
from vtw_eval.shapes.making.packing import answer_logits, answer_loss, pack
from vtw_eval.shapes.making.staged import command_line


class Trainer(BoardsTrainer):
    """Trains a LLaVA; stage ``vision`` changes tower, projector, words and heads only."""

    def word_values(self) -> Mapping[str, tuple[str, ...]]:
        """Return what objects are."""
        return WORDS

    def places(self) -> Mapping[str, int]:
        """Return row and column of a patch's object."""
        return dict.fromkeys(PLACES, GRID)

    def directions(self) -> Mapping[str, torch.Tensor]:
        """Return where patches should keep row and column."""
        return place_directions(self.model.model.language_model)

    def make_processor(self) -> LlavaProcessor:
        """Return the processor of the model."""
        return build_processor()

    def make_model(self) -> LlavaForConditionalGeneration:
        """Return the untrained model."""
        return build_model(self.processor.tokenizer, self.recipe.seed, self.recipe.size)

    def make_optimisers(self, stage: str) -> list[torch.optim.Optimizer]:
        """Return fresh optimisers of a stage: of the matrices, and of all else."""
        scales = {"vision_tower": 1.0, "multi_modal_projector": 1.0, "language_model": 0.0, "heads": 1.0}
        if stage == "joint":
            scales = {"vision_tower": self.recipe.tower_rate, "multi_modal_projector": 1.0, "language_model": 1.0}

        def scale(name: str) -> float:
            if "embed_tokens" in name:
                return 1.0
            return next((scales[part] for part in scales if part in name), 0.0)

        return optimisers(self.module.named_parameters(), scale)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projected vision tokens of images, [images, patches, width]."""
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        return self.model.model.multi_modal_projector(states)

    def vision_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``vision``."""
        pixels, labels = vision_batch(self.recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            features = self.features(pixels).float()
        embeddings = self.model.model.language_model.embed_tokens.weight
        features, losses = word_losses(features, labels, self.words, embeddings)
        shown = labels["color"] >= 0
        for name, head in self.heads.items():
            losses.append(F.cross_entropy(head(features[shown]), labels[name][shown], label_smoothing=0.05))
        return torch.stack(losses).sum()

    def joint_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``joint``."""
        pixels, rows, given = joint_batch(self.recipe, self.step)
        batch = pack(self.processor.tokenizer, rows, self.model.config.image_seq_length)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if given is None:
                logits = answer_logits(self.model, pixels, batch)
            else:
                logits = thin_logits(self.model, self.features(pixels), batch, given)
        return answer_loss(logits, batch)

    def accuracy(self) -> dict[str, float]:
        """Return quick held-out accuracies by question type."""
        return accuracy(self.model, self.processor.tokenizer, seed=self.recipe.seed, autocast=self.autocast)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    trained = "a model that answers about boards"
    command_line(Recipe, Trainer, "vtw_eval.shapes.boards.making.train", trained, arguments)


if __name__ == "__main__":
    main()
