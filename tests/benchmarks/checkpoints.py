"""Checkpoints of random weights whose prompts are as long as those of published models.

Their tokenizers know every word of the loads, as those of published models do, and as many tokens as LLaVA-1.5's: a
question would else be three times as long, and a head a hundred times smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.benchmarks.loads import SAID, WORDS
from tests.support.checkpoints import CHATML_TEMPLATE, CORPUS, LLAVA_TEMPLATE, make_tokenizer, save

PATCH = 14

VOCABULARY = 32000
"""Tokens of a tokenizer."""


@dataclass(frozen=True)
class Size:
    """Of a model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    tower_layers: int
    tower_hidden: int
    side: int
    """Pixels of an image in the tower of LLaVA; half as many of a tile of InternVL."""


SIZES = {
    "tiny": Size(2, 64, 176, 2, 2, 64, 4 * PATCH),
    "small": Size(12, 512, 1408, 16, 6, 384, 24 * PATCH),
    "7b": Size(32, 4096, 11008, 32, 24, 1024, 24 * PATCH),
}
"""A check that this runs; what a core computes in half a second; LLaVA-1.5-7B's."""


def make_checkpoint(family: str, folder: Path, size: Size, dtype: torch.dtype) -> None:
    """Make a checkpoint.

    Parameters
    ----------
    family
        "llava" (576 vision tokens for each image, if ``size`` is not tiny), "qwen2_vl" (391 for 640x480 pixels) or
        "internvl" (13 tiles of 36).
    folder
        Where it goes.
    size
        Of the model.
    dtype
        Of its weights.
    """
    make = {"llava": _llava, "qwen2_vl": _qwen2_vl, "internvl": _internvl}[family]
    config, processor = make(size)
    if size.layers < SIZES["7b"].layers:
        save(config, processor, folder, 0, dtype)
        _sharpen(folder / "model.safetensors")
        return
    # Made in its dtype, without a copy in float32; initial weights are as good as others to measure time.
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForImageTextToText.from_config(made, dtype=dtype)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _sharpen(weights: Path) -> None:
    """Let the decoder's attention choose, and matter: random weights else answer every question by its last token.

    All weights are numbers of bfloat16, as internvl_hf opens everything in it.
    """
    found = load_file(weights)
    for name, tensor in found.items():
        sharp = name.endswith(("q_proj.weight", "o_proj.weight")) and "vision" not in name
        found[name] = ((4 if sharp else 1) * tensor).to(torch.bfloat16).to(tensor.dtype)
    save_file(found, weights, metadata={"format": "pt"})


def _tokenizer(extra: Mapping[str, str], specials: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Make a tokenizer that knows the words of the loads, and names of numbers that stand in no text."""
    words = [f"{word} {word}" for word in (*SAID.format("").split(), *WORDS)]
    tokenizer = make_tokenizer(extra, specials, corpus=[*CORPUS, *words], size=1000)
    tokenizer.add_tokens([f"<{number}>" for number in range(VOCABULARY - len(tokenizer))])
    return tokenizer


def _text(size: Size, model_type: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _llava(size: Size) -> tuple[dict[str, Any], Any]:
    tokenizer = _tokenizer({"image_token": "<image>"})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": size.side}, crop_size={"height": size.side, "width": size.side}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": size.tower_hidden,
        "intermediate_size": 4 * size.tower_hidden,
        "num_hidden_layers": size.tower_layers,
        "num_attention_heads": size.tower_hidden // 32,
        "image_size": size.side,
        "patch_size": PATCH,
        "projection_dim": 32,
    }
    config = {
        "model_type": "llava",
        "text_config": _text(size, "llama", len(tokenizer)),
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    return config, processor


def _qwen2_vl(size: Size) -> tuple[dict[str, Any], Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    marks = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer({"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}, marks)
    template = CHATML_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
        "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
    )
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    half = size.hidden // size.heads // 2
    rope = {"rope_type": "default", "mrope_section": [half // 4, (half - half // 4) // 2, 0], "rope_theta": 1e6}
    rope["mrope_section"][2] = half - sum(rope["mrope_section"])
    config = {
        "model_type": "qwen2_vl",
        "text_config": _text(size, "qwen2_vl_text", len(tokenizer), rope_parameters=rope),
        "vision_config": {
            "depth": size.tower_layers,
            "embed_dim": size.tower_hidden,
            "hidden_size": size.hidden,
            "num_heads": size.tower_hidden // 32,
            "mlp_ratio": 4,
            "patch_size": PATCH,
        },
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "tie_word_embeddings": False,
    }
    return config, processor


def _internvl(size: Size) -> tuple[dict[str, Any], Any]:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(marks, ("<|im_start|>", "<|im_end|>"))
    side = size.side // 2
    tile, tokens = {"height": side, "width": side}, (side // PATCH // 2) ** 2
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=tile),
        tokenizer,
        InternVLVideoProcessor(size=tile),
        image_seq_length=tokens,
        chat_template=CHATML_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n").replace("VIDEO", "<video>\n"),
    )
    config = {
        "model_type": "internvl",
        "text_config": _text(size, "qwen2", len(tokenizer)),
        "vision_config": {
            "hidden_size": size.tower_hidden,
            "intermediate_size": 4 * size.tower_hidden,
            "num_hidden_layers": size.tower_layers,
            "num_attention_heads": size.tower_hidden // 32,
            "image_size": [side, side],
            "patch_size": [PATCH, PATCH],
        },
        "tie_word_embeddings": False,
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": tokens,
        "downsample_ratio": 0.5,
        "vision_feature_layer": -1,
    }
    return config, processor
