"""The language model, built like that of the LLaVA for boards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from vtw_eval.shapes.boards.making.families.family import scale_linear
from vtw_eval.shapes.boards.making.mimetic import begin_as_lookup
from vtw_eval.shapes.making.model import Size


def text_settings(tokenizer: PreTrainedTokenizerFast, size: Size) -> dict[str, Any]:
    """Return what the configurations of Llama's and Qwen2's decoders share."""
    return {
        "vocab_size": -(-len(tokenizer) // 8) * 8,
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.mlp,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@torch.no_grad()
def initialise_language(decoder: Any, vocabulary: Mapping[str, int], generator: torch.Generator) -> None:
    """Set all weights of a decoder as :func:`~vtw_eval.shapes.boards.making.model.initialise` does, in place."""
    scale_linear(decoder, generator, len(decoder.layers), ("o_proj", "down_proj"))
    begin_as_lookup(decoder, vocabulary, generator)
