"""The untrained model: a LLaVA (CLIP vision tower, projector, Llama) with 256 vision tokens an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.boards.processor import PATCH_SIZE
from vtw_eval.shapes.boards.scenes import IMAGE_SIZE
from vtw_eval.shapes.making.model import sincos_table
from vtw_eval.shapes.processor import IMAGE_TOKEN

WORD_STD = 0.5
"""Standard deviation of the word embeddings at the beginning."""


@dataclass(frozen=True)
class Size:
    """Widths and depths of the model. The defaults are the shipped model; tests use smaller ones.

    Attributes
    ----------
    width
        Hidden size of both towers.
    heads
        Attention heads of both towers.
    vision_layers, vision_mlp
        Depth and MLP width of the vision tower.
    layers, mlp
        Depth and MLP width of the language model.
    """

    width: int = 128
    heads: int = 4
    vision_layers: int = 3
    vision_mlp: int = 320
    layers: int = 8
    mlp: int = 320


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
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=size.width,
        num_attention_heads=size.heads,
        num_hidden_layers=size.vision_layers,
        intermediate_size=size.vision_mlp,
        projection_dim=size.width,
    )
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # a multiple of eight is faster
        hidden_size=size.width,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        num_hidden_layers=size.layers,
        intermediate_size=size.mlp,
        max_position_embeddings=2048,
        # Most of a head's dimensions turn slowly, so that words find what is alike at any distance within the image.
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )


@torch.no_grad()
def initialise(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Set all weights, in place. transformers' uniform standard deviation of 0.02 does not train at this size.

    Linear layers get a standard deviation of fan_in^-0.5, divided by sqrt(2 layers) where they write into the residual
    stream; the vision position table is a 2-D sine/cosine; the last norm is small, as the words are not. The language
    model's attention begins as a search for what is alike, which it copies (in the spirit of mimetic initialisation,
    https://arxiv.org/abs/2305.09828): queries and keys are the same orthogonal map, values and outputs inverse ones.

    Parameters
    ----------
    model
        The model.
    seed
        Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    vision_layers, text_layers = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    depth = {"out_proj": vision_layers, "fc2": vision_layers, "o_proj": text_layers, "down_proj": text_layers}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name != "lm_head":
            layers = depth.get(name.rsplit(".", 1)[-1])
            std = module.weight[0].numel() ** -0.5 / ((2 * layers) ** 0.5 if layers else 1)
            module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, CLIPVisionEmbeddings):
            side = config.vision_config.image_size // config.vision_config.patch_size
            module.position_embedding.weight.copy_(sincos_table(side, module.embed_dim))
            module.class_embedding.normal_(0, 0.5, generator=generator)
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
    model = LlavaForConditionalGeneration(build_config(tokenizer, size or Size()))
    initialise(model, seed)
    generation = model.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.do_sample = False
    return model.eval()
