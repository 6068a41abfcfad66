"""Held-out accuracy by question type, and by how many layers see the image: ``python -m ...making.check --help``.

The engine is not asked: vision tokens are hidden from layer k on by the attention mask, which is what their withdrawal
means, and all questions about an image are answered in one packed pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.boards.making.recipe import draw
from vtw_eval.shapes.boards.questions import TYPES, ask
from vtw_eval.shapes.boards.scenes import sample_scene
from vtw_eval.shapes.making.packing import answer_logits, answers_right, pack
from vtw_eval.shapes.questions import Question

_BATCH = 16


@contextmanager
def hidden_from(model: LlavaForConditionalGeneration, layer: int, vision: torch.Tensor) -> Iterator[None]:
    """Hide vision tokens in a layer of the language model and in all later ones.

    Parameters
    ----------
    model
        The model.
    layer
        Index of the first layer that does not see them.
    vision
        True at vision tokens, [rows, length].
    """

    def hide(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"].masked_fill(vision[:, None, None], -1e9)
        return args, kwargs | {"attention_mask": mask}

    hooks = [
        module.register_forward_pre_hook(hide, with_kwargs=True) for module in model.model.language_model.layers[layer:]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scenes: int = 64,
    layers: int | None = None,
    seed: int = 0,
    autocast: bool = True,
) -> dict[str, float]:
    """Return the share of right answers by question type, at most one question of each type about a held-out scene.

    Parameters
    ----------
    model, tokenizer
        What answers.
    scenes
        How many scenes, a multiple of 16.
    layers
        How many layers see the image; None means all.
    seed
        Seed of the scenes, not those of the test sets.
    autocast
        Whether to compute in bfloat16.

    Returns
    -------
    dict
        0 to 1, in the order of :data:`~vtw_eval.shapes.boards.questions.TYPES`. An answer counts as right if greedy
        decoding would give all of it.
    """
    rng = np.random.default_rng([seed, 2])
    answered: list[tuple[Question, bool]] = []
    for _ in range(0, scenes, _BATCH):
        chosen = [sample_scene(rng, test=True) for _ in range(_BATCH)]
        pixels, _placed = draw(chosen, rng)
        rows = [[q for type in TYPES if (q := ask(type, scene, rng)) is not None] for scene in chosen]
        batch = pack(tokenizer, rows, model.config.image_seq_length)
        first = len(model.model.language_model.layers) if layers is None else layers
        vision = batch.input_ids == model.config.image_token_id
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hidden_from(model, first, vision):
            logits = answer_logits(model, pixels, batch)
        flat = [question for row in rows for question in row]
        answered += zip(flat, answers_right(logits, batch).tolist(), strict=True)
    return share_by_type(TYPES, answered)


def share_by_type(types: Sequence[str], answered: Iterable[tuple[Question, bool]]) -> dict[str, float]:
    """Return the share of right answers, 0 to 1, by question type in a given order; types not asked are left out."""
    right: dict[str, list[bool]] = {type: [] for type in types}
    for question, ok in answered:
        right[question.type].append(ok)
    return {type: round(float(np.mean(oks)), 4) for type, oks in right.items() if oks}


def print_by_layers(types: Sequence[str], layers: int, accuracy: Callable[[int], Mapping[str, float]]) -> None:
    """Print a table of accuracies in %, by question type, with all layers down to none that see what is shown."""
    print(f"| layers | {' | '.join(types)} |")
    print(f"|---|{'---|' * len(types)}")
    for number in range(layers, -1, -1):
        shares = accuracy(number)
        cells = (f"{100 * shares[type]:.1f}" if type in shares else "-" for type in types)
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtw_eval.shapes.boards.making.check",
        description="Print a table of held-out accuracies in %: by question type, and by the number of layers that "
        "see the image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a trained checkpoint")
    parser.add_argument("--scenes", type=int, default=512, help="number of held-out scenes, a multiple of 16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint, attn_implementation="eager")
    tokenizer = AutoProcessor.from_pretrained(options.checkpoint).tokenizer
    seen = partial(accuracy, model, tokenizer, options.scenes, autocast=False)
    print_by_layers(TYPES, len(model.model.language_model.layers), lambda layers: seen(layers=layers))


if __name__ == "__main__":
    main()
