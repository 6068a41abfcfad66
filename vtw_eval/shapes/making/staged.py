"""Training in two stages: states on disk, the loop with its log, the finished checkpoint, the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from vtw_eval.shapes.making.model import TRAIN_ATTENTION
from vtw_eval.state import load_state, read_counters, save_state

STATE_FILE = "state.safetensors"
LOG_FILE = "log.jsonl"
STAGES = ("vision", "joint")
"""The two stages, in their order."""


class StagedTrainer(ABC):
    """A model in training, its heads of stage ``vision``, and the optimisers of the current stage.

    A subclass gives the processor, the untrained model and the heads, and says what is optimised, with which loss and
    at which learning rates.

    Parameters
    ----------
    recipe
        What to train: a dataclass with ``seed`` and ``steps(stage)``.
    autocast
        Whether to compute in bfloat16 (weights stay float32).
    """

    processor: Any
    model: Any
    heads: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]

    def __init__(self, recipe: Any, autocast: bool = True) -> None:
        self.recipe = recipe
        self.autocast = autocast
        self.processor = self.make_processor()
        self.model = self.make_model()
        self.model.set_attn_implementation(TRAIN_ATTENTION)
        self.heads = self.make_heads(torch.Generator().manual_seed(recipe.seed))
        self.module = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.seconds = 0.0
        self.start_stage("vision", 0)

    @abstractmethod
    def make_processor(self) -> Any:
        """Return the processor of the model."""

    @abstractmethod
    def make_model(self) -> PreTrainedModel:
        """Return the untrained model."""

    @abstractmethod
    def make_heads(self, generator: torch.Generator) -> nn.ModuleDict:
        """Return the heads of stage ``vision``."""

    @abstractmethod
    def make_optimisers(self, stage: str) -> list[torch.optim.Optimizer]:
        """Return fresh optimisers of a stage."""

    @abstractmethod
    def set_rates(self) -> None:
        """Give the optimisers the learning rates of the current step."""

    @abstractmethod
    def vision_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``vision``."""

    @abstractmethod
    def joint_loss(self) -> torch.Tensor:
        """Return the loss of the current step of stage ``joint``."""

    @abstractmethod
    def accuracy(self) -> dict[str, float]:
        """Return quick held-out accuracies by question type."""

    def start_stage(self, stage: str, step: int) -> None:
        """Go to a step of a stage with fresh optimisers."""
        self.stage, self.step = stage, step
        self.optimisers = self.make_optimisers(stage)

    def advance(self) -> float:
        """Do one step and return its loss."""
        begun = time.perf_counter()
        loss = self.vision_loss() if self.stage == "vision" else self.joint_loss()
        loss.backward()
        changed = [p for o in self.optimisers for group in o.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(changed, 1.0)
        self.set_rates()
        for optimiser in self.optimisers:
            optimiser.step()
        self.module.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.perf_counter() - begun
        return loss.item()

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
        half = self.make_model().half()
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


def run(trainer: StagedTrainer, work: Path, save_every: int, check_every: int) -> None:
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


def command_line(
    recipe: Callable[..., Any],
    trainer: Callable[..., StagedTrainer],
    program: str,
    trained: str,
    arguments: list[str] | None,
) -> None:
    """Run the command line of a trainer.

    Parameters
    ----------
    recipe, trainer
        Their classes, or what makes them.
    program
        Module that is run, for help.
    trained
        What is trained, for help.
    arguments
        Of the command line; None for those of the process.
    """
    defaults = recipe()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=f"Train {trained} from nothing. Interrupted runs go on where they were.",
        epilog=f"example: python -m {program} --work run --out checkpoint",
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
    given = recipe(seed=options.seed, vision_steps=options.vision_steps, joint_steps=options.joint_steps)
    made = trainer(given, autocast=not options.float32)
    options.work.mkdir(parents=True, exist_ok=True)
    state = options.work / STATE_FILE
    if state.exists():
        try:
            made.resume(state)
        except (ValueError, KeyError) as error:
            parser.error(str(error))
    run(made, options.work, options.save_every, options.check_every)
    made.export(options.out)
    print(f"trained in {made.seconds / 60:.1f} minutes; checkpoint in {options.out}")
