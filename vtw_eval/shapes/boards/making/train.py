"""Train a model that answers about boards from nothing: ``python -m vtw_eval.shapes.boards.making.train --help``.

Stage ``vision`` teaches the tower and the projector to give each patch of an object features that lie near the word
embeddings of its colour, shape, size and digit, as CLIP's features lie near text, and to keep row and column readable.
Language models that begin with such features look up objects by their words from the first steps on, and find their
places. Stage ``joint`` trains everything on questions about scenes. Most of it shows the language model a part of the
vision tokens, which costs half as much: all that show objects, and some ground; the end of it shows all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from vtw_eval.shapes.boards.making.check import accuracy
from vtw_eval.shapes.boards.making.model import WORD_STD, build_model
from vtw_eval.shapes.boards.making.optimiser import Muon
from vtw_eval.shapes.boards.making.recipe import PLACES, STAGES, WORDS, Recipe, joint_batch, vision_batch
from vtw_eval.shapes.boards.making.thinning import thin_logits
from vtw_eval.shapes.boards.processor import build_processor
from vtw_eval.shapes.boards.scenes import GRID
from vtw_eval.shapes.making.model import TRAIN_ATTENTION
from vtw_eval.shapes.making.packing import answer_logits, answer_loss, pack
from vtw_eval.state import load_state, read_counters, save_state

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"


class Trainer:
    """The model in training, its heads of stage ``vision``, and the optimisers of the current stage.

    Parameters
    ----------
    recipe
        What to train.
    autocast
        Whether to compute in bfloat16 (weights stay float32).
    """

    def __init__(self, recipe: Recipe, autocast: bool = True) -> None:
        self.recipe = recipe
        self.autocast = autocast
        self.processor = build_processor()
        self.model = build_model(self.processor.tokenizer, recipe.seed, recipe.size)
        self.model.set_attn_implementation(TRAIN_ATTENTION)
        heads = {name: nn.Linear(recipe.size.width, GRID) for name in PLACES}
        generator = torch.Generator().manual_seed(recipe.seed)
        for head in heads.values():
            nn.init.normal_(head.weight, std=recipe.size.width**-0.5, generator=generator)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)
        vocabulary = self.processor.tokenizer.get_vocab()
        self.words = {name: torch.tensor([vocabulary[word] for word in words]) for name, words in WORDS.items()}
        self.module = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.seconds = 0.0
        self.start_stage("vision", 0)

    def start_stage(self, stage: str, step: int) -> None:
        """Go to a step of a stage with fresh optimisers."""
        self.stage, self.step = stage, step
        scales = {"vision_tower": 1.0, "multi_modal_projector": 1.0, "language_model": 0.0, "heads": 1.0}
        if stage == "joint":
            scales = {"vision_tower": self.recipe.tower_rate, "multi_modal_projector": 1.0, "language_model": 1.0}
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for name, parameter in self.module.named_parameters():
            scale = next((scales[part] for part in scales if part in name), 0.0)
            words = "embed_tokens" in name
            if words:
                scale = 1.0
            if not scale:
                continue
            inside = parameter.ndim == 2 and not words and "embedding" not in name and "heads" not in name
            groups = matrices if inside else others
            group = next((group for group in groups if group["scale"] == scale), None)
            if group is None:
                groups.append(group := {"params": [], "scale": scale})
            group["params"].append(parameter)
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
        ]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projected vision tokens of images, [images, patches, width]."""
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        return self.model.model.multi_modal_projector(states)

    def vision_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``vision``."""
        pixels, labels = vision_batch(self.recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            features = self.features(pixels).float()
        sizes = features.square().mean(-1).sqrt()
        features = F.rms_norm(features, features.shape[-1:])  # as the language model's first layer will see them
        shown = labels["color"] >= 0
        embeddings = self.model.model.language_model.embed_tokens.weight
        losses = [0.1 * (sizes / WORD_STD).log().square().mean()]  # as long as words
        for name, words in self.words.items():
            logits = features @ embeddings[words].T / (features.shape[-1] ** 0.5 * WORD_STD)
            logits = F.pad(logits, (0, 1))  # near none of the words
            targets = labels[name].masked_fill(labels[name] == -1, len(words))
            loss = F.cross_entropy(logits.mT, targets, reduction="none", label_smoothing=0.05, ignore_index=-2)
            losses += [loss[shown & (targets >= 0)].mean(), 0.3 * loss[~shown].mean()]
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

    def advance(self) -> float:
        """Do one step and return its loss."""
        begun = time.perf_counter()
        rate = self.recipe.rate(self.stage, self.step)
        loss = self.vision_loss() if self.stage == "vision" else self.joint_loss()
        loss.backward()
        changed = [p for o in self.optimisers for group in o.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(changed, 1.0)
        matrix_rate = self.recipe.vision_rate if self.stage == "vision" else self.recipe.joint_rate
        for optimiser, peak in zip(self.optimisers, (matrix_rate, self.recipe.other_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate * group["scale"]
            optimiser.step()
        self.module.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.perf_counter() - begun
        return loss.item()

    def accuracy(self) -> dict[str, float]:
        """Return quick held-out accuracies by question type."""
        return accuracy(self.model, self.processor.tokenizer, seed=self.recipe.seed, autocast=self.autocast)

    def about(self) -> dict[str, Any]:
        """Return what a saved state must have in common with this run."""
        return {"recipe": dataclasses.asdict(self.recipe), "autocast": self.autocast}

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        counters = {"stage": self.stage, "step": self.step, "seconds": self.seconds}
        save_state(path, self.module, self.optimisers, self.about(), counters)

    def resume(self, path: Path) -> None:
        """Go on from a state; the data go on too, as they depend on seed, stage and step only.

        Raises
        ------
        ValueError
            If the state belongs to another recipe.
        """
        counters = read_counters(path, self.about())
        self.start_stage(counters["stage"], counters["step"])
        load_state(path, self.module, self.optimisers)
        self.seconds = counters["seconds"]

    def export(self, directory: Path) -> None:
        """Write the checkpoint for ``from_pretrained``: weights in float16, to be computed with in float32."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        half = build_model(self.processor.tokenizer, self.recipe.seed, self.recipe.size).half()
        half.load_state_dict(self.model.state_dict())
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            half.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            config = Path(temporary, "config.json")
            settings = json.loads(config.read_text())
            for part in (settings, settings["text_config"], settings["vision_config"]):
                part["dtype"] = "float32"  # what dtype="auto" loads: CPUs are slow and coarse in half precision
            config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
            directory.mkdir(exist_ok=True)
            for file in Path(temporary).iterdir():
                file.chmod(0o644)
                shutil.move(file, directory / file.name)


def run(trainer: Trainer, work: Path, save_every: int, check_every: int) -> None:
    """Train to the end, with a progress bar, a state file and a log.

    Parameters
    ----------
    trainer
        A new or resumed trainer.
    work
        Directory for ``state.safetensors`` and ``log.jsonl`` (one JSON object a line).
    save_every, check_every
        Steps between states and between accuracy checks (of stage ``joint``).
    """
    for stage in STAGES[STAGES.index(trainer.stage) :]:
        if stage != trainer.stage:
            trainer.start_stage(stage, 0)
        steps = trainer.recipe.steps(stage)
        losses: list[float] = []
        with tqdm(total=steps, initial=trainer.step, desc=stage, mininterval=1, smoothing=0.05) as bar:
            while trainer.step < steps:
                losses.append(trainer.advance())
                bar.update()
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", refresh=False)
                done = trainer.step == steps
                if trainer.step % check_every == 0 or done:
                    entry = {"stage": stage, "step": trainer.step, "seconds": round(trainer.seconds, 1)}
                    entry |= {"loss": round(float(np.mean(losses[-check_every:])), 4)}
                    entry |= trainer.accuracy() if stage == "joint" else {}
                    with (work / LOG_FILE).open("a") as log:
                        log.write(json.dumps(entry) + "\n")
                    tqdm.write(json.dumps(entry))
                if trainer.step % save_every == 0 or done:
                    trainer.save(work / STATE_FILE)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m vtw_eval.shapes.boards.making.train",
        description="Train a model that answers about boards from nothing. Interrupted runs go on where they were.",
        epilog="example: python -m vtw_eval.shapes.boards.making.train --work run --out checkpoint",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for the resumable state and the log")
    parser.add_argument("--out", type=Path, required=True, help="directory for the finished checkpoint")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of weights and data")
    parser.add_argument("--vision-steps", type=int, default=defaults.vision_steps, help="steps of stage vision")
    parser.add_argument("--joint-steps", type=int, default=defaults.joint_steps, help="steps of stage joint")
    parser.add_argument("--save-every", type=int, default=100, help="steps between states")
    parser.add_argument("--check-every", type=int, default=250, help="steps between held-out checks")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; a number gives its own result")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16 (slower)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    recipe = Recipe(seed=options.seed, vision_steps=options.vision_steps, joint_steps=options.joint_steps)
    trainer = Trainer(recipe, autocast=not options.float32)
    options.work.mkdir(parents=True, exist_ok=True)
    state = options.work / STATE_FILE
    if state.exists():
        try:
            trainer.resume(state)
        except (ValueError, KeyError) as error:
            parser.error(str(error))
    run(trainer, options.work, options.save_every, options.check_every)
    trainer.export(options.out)
    print(f"trained in {trainer.seconds / 60:.1f} minutes; checkpoint in {options.out}")


if __name__ == "__main__":
    main()
