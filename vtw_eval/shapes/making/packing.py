r"""Packed training batches: several questions about one image in one sequence that shares the image.

A sequence is ``<s>USER: <image>\n`` followed by the questions. Every question sees the shared prefix and itself (a
block-diagonal causal mask) and its positions go on from the prefix, so that each one is computed exactly as if it stood
alone, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.processor import IMAGE_TOKEN
from vtw_eval.shapes.questions import Question, prompt

END_WEIGHT = 0.1
"""Loss weight of the end token, which is easy."""
CAPTION_WEIGHT = 0.4
"""Loss weight of a caption's words, which are many."""


@dataclass(frozen=True)
class Packed:
    """A packed batch.

    Attributes
    ----------
    input_ids, position_ids
        [rows, length].
    attention_mask
        True where a query (second last axis) may see a key (last axis), [rows, 1, length, length].
    sources
        Indices into the flattened [rows * length] positions that predict an answer's tokens, [targets].
    targets
        The tokens to predict, [targets].
    weights
        Loss weights, [targets].
    owners
        Number of the question that a target belongs to, counted through the batch, [targets].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor


def pack(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[Question]], image_tokens: int) -> Packed:
    """Pack questions as a LLaVA is asked them, one row per image.

    Parameters
    ----------
    tokenizer
        The tokenizer.
    rows
        For each image, its questions; none may be empty.
    image_tokens
        Vision tokens per image.

    Returns
    -------
    Packed
        The batch.
    """
    return pack_after(tokenizer, f"{tokenizer.bos_token}USER: {IMAGE_TOKEN * image_tokens}\n", rows)


def pack_after(
    tokenizer: PreTrainedTokenizerBase,
    opening: str,
    rows: Sequence[Sequence[Question]],
    closing: str = " ASSISTANT:",
) -> Packed:
    """Pack questions, one row per image or video.

    Parameters
    ----------
    tokenizer
        The tokenizer.
    opening
        What comes before a question, with all placeholders.
    rows
        For each image, its questions; none may be empty.
    closing
        What comes between a question and its answer.

    Returns
    -------
    Packed
        The batch; positions count from 0 without regard to what is image.
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prefix = encode([opening])[0]
    questions = [question for row in rows for question in row]
    asked = encode([f"{prompt(question)}{closing}" for question in questions])
    answered = encode([f"{question.answer}{tokenizer.eos_token}" for question in questions])
    length = len(prefix) + max(
        sum(len(a) + len(b) for a, b in zip(asked[i : i + n], answered[i : i + n], strict=True))
        for i, n in _spans(rows)
    )

    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)  # 0 the prefix, 1.. the questions, -1 padding
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    owners: list[int] = []
    for row, (first, count) in enumerate(_spans(rows)):
        input_ids[row, : len(prefix)] = torch.tensor(prefix)
        position_ids[row, : len(prefix)] = torch.arange(len(prefix))
        segments[row, : len(prefix)] = 0
        at = len(prefix)
        for number in range(first, first + count):
            ids = asked[number] + answered[number]
            end = at + len(ids)
            input_ids[row, at:end] = torch.tensor(ids)
            position_ids[row, at:end] = len(prefix) + torch.arange(len(ids))
            segments[row, at:end] = number - first + 1
            words = len(answered[number]) - 1
            weight = CAPTION_WEIGHT if questions[number].type == "caption" else 1.0
            sources += range(row * length + end - words - 2, row * length + end - 1)
            targets += answered[number]
            weights += [weight] * words + [END_WEIGHT]
            owners += [number] * (words + 1)
            at = end

    query, key = segments[:, :, None], segments[:, None, :]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & ((query == key) | (key == 0))
    return Packed(
        input_ids,
        position_ids,
        mask[:, None],
        torch.tensor(sources),
        torch.tensor(targets),
        torch.tensor(weights),
        torch.tensor(owners),
    )


def _spans(rows: Sequence[Sequence[Question]]) -> list[tuple[int, int]]:
    """Return (number of the first question, number of questions) of each row."""
    spans, first = [], 0
    for row in rows:
        spans.append((first, len(row)))
        first += len(row)
    return spans


def answer_logits(model: LlavaForConditionalGeneration, pixels: torch.Tensor, batch: Packed) -> torch.Tensor:
    """Run the model on a packed batch and return the logits that predict the answers.

    Parameters
    ----------
    model
        The model.
    pixels
        [rows, 3, 64, 64].
    batch
        The packed questions.

    Returns
    -------
    torch.Tensor
        [targets, vocabulary].
    """
    additive = torch.zeros(batch.attention_mask.shape).masked_fill_(~batch.attention_mask, -1e9)
    hidden = model.model(
        input_ids=batch.input_ids,
        pixel_values=pixels,
        attention_mask=additive,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch.sources])


def answer_loss(logits: torch.Tensor, batch: Packed) -> torch.Tensor:
    """Return the weighted mean cross-entropy of the answers' tokens.

    Parameters
    ----------
    logits
        [targets, vocabulary].
    batch
        The packed questions.

    Returns
    -------
    torch.Tensor
        A scalar, nats per token.
    """
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def answers_right(logits: torch.Tensor, batch: Packed) -> torch.Tensor:
    """Tell for each question whether greedy decoding would give its answer, end token included.

    Greedy decoding is right just if the most likely token is right after every right beginning.

    Parameters
    ----------
    logits
        [targets, vocabulary].
    batch
        The packed questions.

    Returns
    -------
    torch.Tensor
        Bool, [questions].
    """
    right = torch.ones(int(batch.owners.max()) + 1, dtype=torch.bool)
    right[batch.owners[logits.argmax(-1) != batch.targets]] = False
    return right
