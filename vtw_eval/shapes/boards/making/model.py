"""The untrained model: a LLaVA (CLIP vision tower, projector, Llama) with 256 vision tokens an image."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.boards.scenes import IMAGE_SIZE
from vtw_eval.shapes.making.model import Size, answering_greedily, llava_config, scaled_normal

WORD_STD = 0.5
"""Standard deviation of the word embeddings at the beginning."""


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
    # Most of a head's dimensions turn slowly, so that words find what is alike at any distance within the image.
    rope = {"rope_type": "default", "rope_theta": 1e8}
    return llava_config(
        tokenizer, size, IMAGE_SIZE, max_position_embeddings=2048, rope_parameters=rope, tie_word_embeddings=True
    )


@torch.no_grad()
def initialise(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Set all weights, in place.

    Beside what :func:`~vtw_eval.shapes.making.model.scaled_normal` sets, the last norm is small, as the words are not,
    and the language model's attention begins as a search for what is alike, which it copies (in the spirit of mimetic
    initialisation, https://arxiv.org/abs/2305.09828): queries and keys are the same orthogonal map, values and outputs
    inverse ones.

    Parameters
    ----------
    model
        The model.
    seed
        Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled_normal(model, generator, head_std=None)
    text_layers = len(model.model.language_model.layers)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.q_proj.weight, generator=generator)
        nn.init.orthogonal_(attention.v_proj.weight, generator=generator)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.mT / (2 * text_layers) ** 0.5)
    model.model.language_model.embed_tokens.weight.normal_(0, WORD_STD, generator=generator)
    model.model.language_model.norm.weight.fill_(0.05)


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
    initialise(model, seed)
    return answering_greedily(model, tokenizer)
