"""A language model whose attention begins as a search of the image for words, as trained ones' attention looks.

Two-layer circuits (a word finds the patches that show what it names; the answer's place reads what the word has found)
are learned late or never by models of this size when their attention begins at random or as plain likeness: words then
attend to themselves, and the question drowns among 256 patches. Begun like this, looking up one of several objects is
learned within 150 steps. In the spirit of mimetic initialisation, https://arxiv.org/abs/2305.09828. Everything is
trained further; nothing is held fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vtw_eval.shapes.boards.making.words import PLACES, WORDS
from vtw_eval.shapes.boards.questions import plural
from vtw_eval.shapes.boards.scenes import GRID
from vtw_eval.shapes.scenes import SHAPES

WORD_STD = 0.5
"""Standard deviation of the word embeddings at the beginning."""

_TEXT_SHARE = 0.5
"""Cosine between a word's embedding and the direction that all words share."""
_TEXT_LOGIT = 6.0
"""Attention logit by which words are favoured over patches, or patches over words."""
_BEFORE = 5.0
"""Length of the biases by which a head looks at the token before."""
_NOISE = 0.3
"""Standard deviation of what is random in the attention's matrices, times sqrt(width)."""
_ROLES = ("search", "words", "before", "question")
"""What the heads of a layer begin as, in turn: search the image for the word at hand; take from words what they have
found; take what the word before has found, so that two words name one object; take anything else from the question."""


@torch.no_grad()
def begin_as_lookup(decoder: Any, vocabulary: Mapping[str, int], generator: torch.Generator) -> None:
    """Set word embeddings, attention and the last norm of a decoder, in place.

    Parameters
    ----------
    decoder
        A Llama or Qwen2 whose queries and keys have biases, without grouped heads; its width exceeds that of a head by
        at least two. Some pairs of a head's dimensions should turn fast (0.05 radians a token and more, for the order
        of words), most slowly (less than 0.02, to find what is alike at any distance).
    vocabulary
        Words and their ids.
    generator
        Source of randomness.

    Raises
    ------
    ValueError
        If the decoder has no such biases or is too narrow.
    """
    first, frequencies = decoder.layers[0].self_attn, decoder.rotary_emb.inv_freq
    width, head = decoder.embed_tokens.weight.shape[1], first.head_dim
    if first.q_proj.bias is None or first.k_proj.bias is None or width < head + 2:
        raise ValueError("a beginning as lookup needs biases of queries and keys, and a width above that of a head")

    frame = nn.init.orthogonal_(torch.empty(width, width), generator=generator)
    found, text, rest = frame[:, :head], frame[:, head], frame[:, head + 1 :]
    _begin_words(decoder.embed_tokens.weight, vocabulary, found, text, rest, generator)
    decoder.norm.weight.fill_(0.15)  # words that are read are written, too, and are long

    other = rest @ nn.init.orthogonal_(torch.empty(rest.shape[1], min(head, rest.shape[1])), generator=generator)
    for layer in decoder.layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.weight.normal_(0, _NOISE * width**-0.5, generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        for number in range(attention.q_proj.weight.shape[0] // head):
            role = _ROLES[number % len(_ROLES)]
            rows = slice(number * head, (number + 1) * head)
            _begin_scores(attention, rows, role, found, text, frequencies)
            copied = other if role == "question" else found
            attention.v_proj.weight[rows][: copied.shape[1]] = copied.mT
            attention.o_proj.weight[:, rows][:, : copied.shape[1]] = copied * (2 / len(decoder.layers)) ** 0.5


def place_directions(decoder: Any) -> dict[str, torch.Tensor]:
    """Return where patches should keep their row and column, so that the search copies them, too.

    Parameters
    ----------
    decoder
        As :func:`begin_as_lookup` leaves it.

    Returns
    -------
    dict of str to torch.Tensor
        For ``row`` and ``column`` a unit direction for each value, [4, width]; empty if heads are too small for them.
    """
    attention = decoder.layers[0].self_attn
    copied = attention.v_proj.weight.detach()[: attention.head_dim]
    words = sum(len(values) for values in WORDS.values())
    if len(copied) < words + GRID * len(PLACES):
        return {}
    return {name: copied[words + GRID * i : words + GRID * (i + 1)].clone() for i, name in enumerate(PLACES)}


def _begin_words(
    table: torch.Tensor,
    vocabulary: Mapping[str, int],
    found: torch.Tensor,
    text: torch.Tensor,
    rest: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Words for what objects are get directions of their own among those that are searched for; plurals lie near."""
    random = torch.randn(table.shape[0], rest.shape[1], generator=generator) / rest.shape[1] ** 0.5
    table.copy_(random @ rest.mT)
    named = [word for values in WORDS.values() for word in values]
    for word, direction in zip(named, found.mT, strict=False):  # as many as fit
        table[vocabulary[word]] = direction
        if word in SHAPES:
            many = vocabulary[plural(word)]
            table[many] = 0.8 * direction + 0.6 * table[many]
    table.mul_((1 - _TEXT_SHARE**2) ** 0.5).add_(_TEXT_SHARE * text).mul_(WORD_STD * table.shape[1] ** 0.5)


def _begin_scores(
    attention: Any, rows: slice, role: str, found: torch.Tensor, text: torch.Tensor, frequencies: torch.Tensor
) -> None:
    """Set what a head attends to. Pair i of its dimensions turns by ``frequencies[i]`` radians per token."""
    query, key = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    query_bias, key_bias = attention.q_proj.bias[rows], attention.k_proj.bias[rows]
    half, width = len(frequencies), found.shape[0]

    # The slowest pair tells words from patches: of a normalised word, text @ x is _TEXT_SHARE * sqrt(width).
    slowest = int(frequencies.argmin())
    key[slowest] = text
    sign = -1 if role == "search" else 1
    query_bias[slowest] = sign * _TEXT_LOGIT * (2 * half) ** 0.5 / (_TEXT_SHARE * width**0.5)

    if role == "search":
        slow = [pair for pair in range(half) if frequencies[pair] < 0.02 and pair != slowest]
        for dimension, direction in zip(
            [*slow, *(pair + half for pair in slow)], found.mT, strict=False
        ):  # as many as fit
            query[dimension] += direction
            key[dimension] += direction
    if role == "before":
        fast = (frequencies > 0.05).nonzero()[:, 0]
        query_bias[fast] = _BEFORE
        key_bias[fast] = _BEFORE * frequencies[fast].cos()  # scores peak where the key is one token back
        key_bias[fast + half] = _BEFORE * frequencies[fast].sin()
