"""The untrained model: a LLaVA (CLIP vision tower, projector, Llama) with 256 vision tokens an image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.boards.making.mimetic import begin_as_lookup
from vtw_eval.shapes.boards.scenes import IMAGE_SIZE
from vtw_eval.shapes.making.model import Size, answering_greedily, llava_config, scaled_normal

THETA = 1e8
"""Base of the rotary frequencies: most dimensions of a head hardly turn over the length of a prompt, so that words find
what they name anywhere in the image."""
SIZE = Size(vision_mlp=320, layers=8, mlp=320)
"""Of the model; tests use smaller ones."""


def build_config(tokenizer: PreTrainedTokenizerBase, size: Size) -> LlavaConfig:
    """Build the configuration; words that are read and words that are written share their embeddings.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary and the special tokens' ids.
    size
        Widths and depths.

    Returns
    -------
    transformers.LlavaConfig
        The configuration.
    """
    rope = {"rope_type": "default", "rope_theta": THETA}
    return llava_config(
        tokenizer,
        size,
        IMAGE_SIZE,
        max_position_embeddings=2048,
        rope_parameters=rope,
        attention_bias=True,
        tie_word_embeddings=True,
    )


@torch.no_grad()
def initialise(model: LlavaForConditionalGeneration, vocabulary: Mapping[str, int], seed: int) -> None:
    """Set all weights, in place: linear layers, then the language model as a search of the image for words.

    Parameters
    ----------
    model
        The model.
    vocabulary
        Words and their ids.
    seed
        Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled_normal(model, generator, head_std=None)
    begin_as_lookup(model.model.language_model, vocabulary, generator)


def build_model(
    tokenizer: PreTrainedTokenizerBase, seed: int, size: Size | None = None
) -> LlavaForConditionalGeneration:
    """Build the untrained model with greedy generation defaults.

    Parameters
    ----------
    tokenizer
        From :func:`vtw_eval.shapes.boards.processor.build_tokenizer`.
    seed
        Seed of the weights.
    size
        Widths and depths; None means the shipped model's.

    Returns
    -------
    transformers.LlavaForConditionalGeneration
        Float32, on the CPU, in evaluation mode.
    """
    model = LlavaForConditionalGeneration(build_config(tokenizer, size or SIZE))
    initialise(model, tokenizer.get_vocab(), seed)
    return answering_greedily(model, tokenizer)
