"""The language model: built like that of the LLaVA for boards, or begun from a trained one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast

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
    begin_as_lookup(decoder, vocabulary, decoder.rotary_emb.inv_freq, generator)


@torch.no_grad()
def begin_from(decoder: Any, tokenizer: PreTrainedTokenizerFast, checkpoint: Path) -> str:
    """Give a decoder the language model of a trained LLaVA, in place.

    Parameters
    ----------
    decoder
        A decoder of the same widths and depth. Biases that the LLaVA has not become zero, those that this one has not
        (a Qwen2's outputs have none) are left out.
    tokenizer
        Its tokenizer; words that the LLaVA knows keep their embeddings, others keep their own.
    checkpoint
        Folder of the LLaVA.

    Returns
    -------
    str
        A hash of the LLaVA's weights.

    Raises
    ------
    ValueError
        If the checkpoint does not fit.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint: it has no config.json")
    llava = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    given = dict(llava.model.language_model.named_parameters())
    known = AutoProcessor.from_pretrained(checkpoint).tokenizer.get_vocab()
    mine = dict(decoder.named_parameters())
    table, vectors = mine.pop("embed_tokens.weight"), given.pop("embed_tokens.weight")
    unlike = {n for n in given if n in mine and mine[n].shape != given[n].shape}
    unlike |= {n for n in given.keys() ^ mine.keys() if not n.endswith(".bias")}
    if unlike or table.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"the language model of {checkpoint} has other widths or another depth than the recipe's"
            f" ({', '.join(sorted(unlike)[:3]) or 'word embeddings'} differ)"
        )
    for name, parameter in mine.items():
        parameter.copy_(given[name]) if name in given else parameter.zero_()
    for word, number in tokenizer.get_vocab().items():
        if word in known:
            table[number] = vectors[known[word]]
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(given):
        digest.update(given[name].numpy().tobytes())
    digest.update(vectors.numpy().tobytes())
    return digest.hexdigest()
