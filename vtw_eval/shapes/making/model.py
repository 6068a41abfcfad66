"""The untrained shapes model: a LLaVA (CLIP vision tower, projector, Llama) of 2.6 million parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vtw_eval.shapes.processor import IMAGE_TOKEN, PATCH_SIZE
from vtw_eval.shapes.scenes import IMAGE_SIZE

_Model = TypeVar("_Model", bound=PreTrainedModel)

TRAIN_ATTENTION = "shapes_matmul"
"""Name under which :func:`matmul_attention` is registered with transformers."""


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
    vision_mlp: int = 256
    layers: int = 10
    mlp: int = 384


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as two matrix products and a softmax, all in the dtype of the inputs.

    On CPUs this trains two to four times faster in bfloat16 than the fused kernel. For training only: no dropout,
    no grouped heads.

    Parameters
    ----------
    module
        The attention module (unused).
    query, key, value
        [batch, heads, positions, head size].
    attention_mask
        None or additive, broadcastable to [batch, heads, queries, keys].
    scaling
        Factor on the scores.

    Returns
    -------
    (torch.Tensor, None)
        Outputs, [batch, positions, heads, head size], and no weights.
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(TRAIN_ATTENTION, matmul_attention)


def build_config(tokenizer: PreTrainedTokenizerBase, size: Size) -> LlavaConfig:
    """Build the configuration of the model.

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
    return llava_config(tokenizer, size, IMAGE_SIZE, max_position_embeddings=1024, tie_word_embeddings=False)


def llava_config(
    tokenizer: PreTrainedTokenizerBase, size: Size, image_size: int, *, tie_word_embeddings: bool, **text: Any
) -> LlavaConfig:
    """Build the configuration of a small LLaVA.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary and the special tokens' ids.
    size
        Widths and depths.
    image_size
        Pixels per side of an image.
    tie_word_embeddings
        Whether words that are read and words that are written share their embeddings.
    text
        What else transformers' ``LlamaConfig`` gets.
    """
    vision = CLIPVisionConfig(
        image_size=image_size,
        patch_size=PATCH_SIZE,
        hidden_size=size.width,
        num_attention_heads=size.heads,
        num_hidden_layers=size.vision_layers,
        intermediate_size=size.vision_mlp,
        projection_dim=size.width,
    )
    language = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # a multiple of eight is faster
        hidden_size=size.width,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        num_hidden_layers=size.layers,
        intermediate_size=size.mlp,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **text,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(image_size // PATCH_SIZE) ** 2,
        tie_word_embeddings=tie_word_embeddings,
    )


def sincos_table(side: int, width: int) -> torch.Tensor:
    """2-D sine/cosine position table, [1 + side * side, width]; the first row, of the class token, is zero."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    grid = torch.cat([axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)], dim=-1)
    return torch.cat([torch.zeros(1, width), grid.reshape(side * side, width)])


@torch.no_grad()
def initialise(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Set all weights, in place: :func:`scaled_normal`, word embeddings 0.5, the output head 0.02.

    Parameters
    ----------
    model
        The model.
    seed
        Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled_normal(model, generator, head_std=0.02)
    model.model.language_model.embed_tokens.weight.normal_(0, 0.5, generator=generator)


@torch.no_grad()
def scaled_normal(model: LlavaForConditionalGeneration, generator: torch.Generator, head_std: float | None) -> None:
    """Set the linear layers and the vision tower's embeddings, in place.

    transformers' uniform standard deviation of 0.02 does not train at this size. Linear layers get a standard deviation
    of fan_in^-0.5, divided by sqrt(2 layers) where they write into the residual stream; the vision position table is a
    2-D sine/cosine.

    Parameters
    ----------
    model
        The model.
    generator
        Source of randomness.
    head_std
        Standard deviation of the output head; None leaves it, as where it is the word embeddings.
    """
    config: Any = model.config
    vision_layers, text_layers = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    depth = {"out_proj": vision_layers, "fc2": vision_layers, "o_proj": text_layers, "down_proj": text_layers}
    for name, module in model.named_modules():
        if name == "lm_head":
            if head_std is not None:
                module.weight.normal_(0, head_std, generator=generator)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            layers = depth.get(name.rsplit(".", 1)[-1])
            std = module.weight[0].numel() ** -0.5 / ((2 * layers) ** 0.5 if layers else 1)
            module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, CLIPVisionEmbeddings):
            side = config.vision_config.image_size // config.vision_config.patch_size
            module.position_embedding.weight.copy_(sincos_table(side, module.embed_dim))
            module.class_embedding.normal_(0, 0.5, generator=generator)


def build_model(
    tokenizer: PreTrainedTokenizerBase, seed: int, size: Size | None = None
) -> LlavaForConditionalGeneration:
    """Build the untrained model with greedy generation defaults.

    Parameters
    ----------
    tokenizer
        From :func:`vtw_eval.shapes.processor.build_tokenizer`.
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
    return answering_greedily(model, tokenizer)


def answering_greedily(model: _Model, tokenizer: PreTrainedTokenizerBase) -> _Model:
    """Give a model greedy generation defaults, and return it in evaluation mode."""
    generation: Any = model.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    generation.do_sample = False
    return model.eval()
