"""Train the shapes model from nothing: ``python -m vtw_eval.shapes.making.train --help``.

Stage ``vision`` teaches the vision tower alone to name what is in each patch, through linear heads that are thrown
away; without it the language model does not learn to look. Stage ``joint`` trains everything on questions about scenes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_eval.shapes.making.model import build_model
from vtw_eval.shapes.making.packing import answer_logits, answer_loss, answers_right, pack
from vtw_eval.shapes.making.recipe import LABEL_SIZES, Recipe, joint_batch, to_pixels, vision_batch
from vtw_eval.shapes.making.staged import STAGES, StagedTrainer, command_line
from vtw_eval.shapes.processor import build_processor
from vtw_eval.shapes.questions import TYPES, ask
from vtw_eval.shapes.scenes import render, sample_scene


class Trainer(StagedTrainer):
    """Trains by AdamW, which in stage ``vision`` changes the tower and its heads only."""

    recipe: Recipe

    def make_processor(self) -> LlavaProcessor:
        """Return the processor of the model."""
        return build_processor()

    def make_model(self) -> LlavaForConditionalGeneration:
        """Return the untrained model."""
        return build_model(self.processor.tokenizer, self.recipe.seed, self.recipe.size)

    def make_heads(self, generator: torch.Generator) -> nn.ModuleDict:
        """Return a head for each label of a patch."""
        heads = nn.ModuleDict({name: nn.Linear(self.recipe.size.width, n) for name, n in LABEL_SIZES.items()})
        for name, parameter in heads.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                nn.init.zeros_(parameter)
        return heads

    def make_optimisers(self, stage: str) -> list[torch.optim.Optimizer]:
        """Return fresh optimisers of a stage."""
        tower = list(self.model.model.vision_tower.parameters())
        if stage == "vision":
            groups = [{"params": tower + list(self.heads.parameters()), "scale": 1.0}]
        else:
            inside = {id(p) for p in tower}
            rest = [p for p in self.model.parameters() if id(p) not in inside]
            groups = [{"params": rest, "scale": 1.0}, {"params": tower, "scale": self.recipe.tower_rate}]
        return [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)]

    def set_rates(self) -> None:
        """Give the optimisers the learning rates of the current step."""
        rate = self.recipe.rate(self.stage, self.step)
        for group in self.optimisers[0].param_groups:
            group["lr"] = rate * group["scale"]

    def vision_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``vision``."""
        pixels, labels = vision_batch(self.recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
            logits = {name: head(states).float().flatten(0, 1) for name, head in self.heads.items()}
        weights = {"shape": 1.0, "color": 1.0, "row": 0.3, "column": 0.3}
        losses = [
            weights[name] * F.cross_entropy(logits[name], labels[name].flatten(), label_smoothing=0.1)
            for name in weights
        ]
        return torch.stack(losses).sum()

    def joint_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``joint``."""
        pixels, rows = joint_batch(self.recipe, self.step)
        batch = pack(self.processor.tokenizer, rows, self.model.config.image_seq_length)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            logits = answer_logits(self.model, pixels, batch)
        return answer_loss(logits, batch)

    @torch.no_grad()
    def accuracy(self, scenes: int = 64) -> dict[str, float]:
        """Return quick held-out accuracies by question type, one question of each type per scene."""
        rng = np.random.default_rng([self.recipe.seed, len(STAGES)])
        right: dict[str, list[bool]] = {type: [] for type in TYPES}
        for _ in range(0, scenes, 16):
            chosen = [sample_scene(rng, test=True) for _ in range(16)]
            pixels = to_pixels(np.stack([render(scene, rng) for scene in chosen]))
            rows = [[q for type in TYPES if (q := ask(type, scene, rng)) is not None] for scene in chosen]
            batch = pack(self.processor.tokenizer, rows, self.model.config.image_seq_length)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                logits = answer_logits(self.model, pixels, batch)
            flat = [question for row in rows for question in row]
            for question, ok in zip(flat, answers_right(logits, batch).tolist(), strict=True):
                right[question.type].append(ok)
        return {type: round(float(np.mean(oks)), 3) for type, oks in right.items() if oks}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    command_line(Recipe, Trainer, "vtw_eval.shapes.making.train", "the shapes model", arguments)


if __name__ == "__main__":
    main()
