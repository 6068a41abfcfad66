"""Answers of the embedded model to its held-out questions, straight from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vtw_eval.shapes.asking import Sample
from vtw_eval.shapes.questions import prompt


@dataclass(frozen=True)
class Answers:
    """Accuracy, and log-probabilities of the first token of each answer, float64 ``[questions, vocabulary]``."""

    accuracy: float
    log_probs: torch.Tensor

    def divergence(self, reduced: Answers) -> float:
        """Return the mean KL(self || reduced) of the first token, in nats."""
        return (self.log_probs.exp() * (self.log_probs - reduced.log_probs)).sum(-1).mean().item()


def encode(processor: Any, samples: Sequence[Sample[Any]]) -> Any:
    """Turn samples into one left-padded batch of model inputs."""
    contents = [[{"type": "image"}, {"type": "text", "text": prompt(sample.question)}] for sample in samples]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        for content in contents
    ]
    return processor(text=texts, images=[sample.image for sample in samples], padding=True, return_tensors="pt")


@torch.inference_mode()
def answer(
    model: Any, processor: Any, samples: Sequence[Sample[Any]], method: AbstractContextManager[Any] | None = None
) -> Answers:
    """Answer questions in one batch, with a method installed or with the unchanged model."""
    inputs = encode(processor, samples)
    with method or nullcontext():
        output = model.generate(**inputs, max_new_tokens=24, output_logits=True, return_dict_in_generate=True)
    texts = processor.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [text == sample.question.answer for text, sample in zip(texts, samples, strict=True)]
    return Answers(sum(right) / len(right), output.logits[0].double().log_softmax(-1))
