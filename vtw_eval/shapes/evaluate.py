"""Held-out accuracy of the shapes model, and what it keeps when its vision tokens leave after k layers.

``python -m vtw_eval.shapes.evaluate --help``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtw_eval import VTW
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.shapes.data import Sample, held_out
from vtw_eval.shapes.questions import TYPES, prompt

NEW_TOKENS = {"caption": 24}
"""Most tokens of an answer by question type, where more than :data:`FEW_TOKENS`."""
FEW_TOKENS = 3


@dataclass(frozen=True)
class Score:
    """Accuracy on one question type.

    Attributes
    ----------
    right
        Whether each answer equals the expected one, bool, [questions].
    log_probs
        Log-probabilities after the prompt, float64, [questions, vocabulary].
    """

    right: torch.Tensor
    log_probs: torch.Tensor

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right.double().mean().item()

    def divergence(self, reduced: Score) -> float:
        """Return the mean KL(self || reduced) of the first answer token, in nats."""
        terms = self.log_probs.exp() * (self.log_probs - reduced.log_probs)
        return terms.sum(-1).mean().item()


def encode(processor: Any, samples: Sequence[Sample]) -> Any:
    """Turn samples into one left-padded batch of model inputs."""
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt(sample.question)}]}],
            add_generation_prompt=True,
        )
        for sample in samples
    ]
    return processor(text=texts, images=[sample.image for sample in samples], padding=True, return_tensors="pt")


@torch.inference_mode()
def score(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    method: AbstractContextManager[Any] | None = None,
    batch_size: int = 64,
) -> Score:
    """Answer questions by greedy generation and compare with the expected answers.

    Parameters
    ----------
    model, processor
        From the checkpoint.
    samples
        Questions of one type.
    method
        A token-reduction method installed on the model, e.g. ``VTW(k=3)(model)``; None for the unchanged model.
    batch_size
        Questions at a time.

    Returns
    -------
    Score
        Right or wrong, and the distribution of the first answer token.
    """
    right, log_probs = [], []
    with method or nullcontext():
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            inputs = encode(processor, batch)
            output = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS.get(batch[0].question.type, FEW_TOKENS),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            new = output.sequences[:, inputs["input_ids"].shape[1] :]
            answers = processor.batch_decode(new, skip_special_tokens=True)
            right += [text == sample.question.answer for text, sample in zip(answers, batch, strict=True)]
            log_probs.append(output.logits[0].double().log_softmax(-1))
    return Score(torch.tensor(right), torch.cat(log_probs))


def tables(model: Any, processor: Any, types: Sequence[str], count: int, layers: Sequence[int]) -> str:
    """Make the Markdown tables of accuracy and of divergence: the unchanged model and each k, by question type.

    Parameters
    ----------
    model, processor
        From the checkpoint.
    types
        Question types, one column each; a last column holds the mean.
    count
        Questions per type.
    layers
        The values of k, the number of layers that see the image.

    Returns
    -------
    str
        Markdown: a table of accuracies and, unless ``layers`` is empty, one of mean KL(full || withdrawn) in nats.
    """
    accuracies: dict[str, list[float]] = {"full": [], **{f"k={k}": [] for k in layers}}
    divergences: dict[str, list[float]] = {f"k={k}": [] for k in layers}
    with tqdm(total=len(types) * (1 + len(layers)), desc="evaluate") as bar:
        for type in types:
            samples = held_out(type, count)
            full = score(model, processor, samples)
            accuracies["full"].append(full.accuracy)
            bar.update()
            for k in layers:
                reduced = score(model, processor, samples, VTW(k=k)(model))
                accuracies[f"k={k}"].append(reduced.accuracy)
                divergences[f"k={k}"].append(full.divergence(reduced))
                bar.update()

    def render(title: str, rows: dict[str, list[float]], digits: int) -> str:
        cells = [[name, *(f"{x:.{digits}f}" for x in [*row, fmean(row)])] for name, row in rows.items()]
        return tabulate(cells, [title, *types, "mean"], tablefmt="github", disable_numparse=True)

    blocks = [render("accuracy", accuracies, 3)]
    if layers:
        blocks.append(render("KL (nats)", divergences, 4))
    return "\n\n".join(blocks)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtw_eval.shapes.evaluate",
        description="Print accuracy on held-out questions by type, and accuracy and mean KL(full || withdrawn) of the "
        "first answer token when vision tokens are withdrawn after k layers.",
        epilog="example: python -m vtw_eval.shapes.evaluate --count 300 --types count open_shape",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="model directory")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="question types")
    parser.add_argument("--count", type=int, default=1000, help="questions per type")
    parser.add_argument("--layers", nargs="*", type=int, help="values of k; default: all; none: full model only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    model: Any = LlavaForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    depth = model.config.text_config.num_hidden_layers
    layers = list(range(depth + 1)) if options.layers is None else options.layers
    print(tables(model, processor, options.types, options.count, layers))


if __name__ == "__main__":
    main()
