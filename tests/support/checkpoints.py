"""Tiny randomly initialised checkpoints of every family, made locally with their real processors.

Runnable: ``python -m tests.support.checkpoints llava DIR`` writes a checkpoint of the family ``llava`` to ``DIR``.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

LAYERS = 4
HIDDEN = 64
HEADS = 4
IMAGE_SIZE = 56
PATCH_SIZE = 14
QWEN_PATCH = 14
QWEN3_PATCH = 16

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Handles content as a string (simple protocol) and as a list of parts (chat protocol)."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = (
    "Answer the question using a single word or phrase. Is there a red circle in the image? yes no",
    "Answer with the option's letter from the given choices directly. A. one B. two C. three D. four",
    "USER: ASSISTANT: system user assistant You are a helpful assistant.",
    "Select the best answer to the following multiple-choice question based on the video and the subtitles.",
)


def make_tokenizer(
    extra: Mapping[str, str], specials: tuple[str, ...] = (), *, corpus: Sequence[str] = CORPUS, size: int = 320
) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer whose named extra tokens become attributes, as in published multimodal tokenizers.

    It learns at most ``size`` tokens of the corpus and bytes, beside those that are named.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = ["<pad>", "<s>", "</s>", *dict.fromkeys((*extra.values(), *specials))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size + len(named), special_tokens=named, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(extra),
        additional_special_tokens=list(specials),
        padding_side="left",
    )


def text_config(model_type: str, vocab_size: int, **extra: Any) -> dict[str, Any]:
    """Return the configuration of a small decoder."""
    return {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **extra,
    }


def clip_config(model_type: str = "clip_vision_model") -> dict[str, Any]:
    """Configuration of a small vision tower."""
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 32,
    }


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw weights large enough that answers depend on the question and the image, as tiny initial ones do not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
                if "embed_tokens" in name or "lm_head" in name:
                    parameter.mul_(fan_in**0.5)
            elif name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.zero_()


def save(config: dict[str, Any], processor: Any, folder: Path, seed: int, dtype: torch.dtype) -> None:
    """Write a random model of a configuration together with its processor."""
    config = dict(config)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    randomise(model, seed)
    model.generation_config.pad_token_id = 0
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_llava(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """LLaVA-1.5: CLIP without its class token, Llama."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = make_tokenizer({"image_token": "<image>"})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = {
        "model_type": "llava",
        "text_config": text_config("llama", len(tokenizer)),
        "vision_config": clip_config(),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    save(config, processor, folder, seed, dtype)


def make_llava_next(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """LLaVA-NeXT: image tiles, so that the number of vision tokens differs by image."""
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    pinpoints = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE, 2 * IMAGE_SIZE]]
    tokenizer = make_tokenizer({"image_token": "<image>"})
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = {
        "model_type": "llava_next",
        "text_config": text_config("mistral", len(tokenizer)),
        "vision_config": clip_config(),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_grid_pinpoints": pinpoints,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    save(config, processor, folder, seed, dtype)


def make_llava_onevision(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """LLaVA-OneVision: SigLIP, Qwen2, images in tiles, videos pooled."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    pinpoints = [[IMAGE_SIZE, IMAGE_SIZE], [IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
    tokenizer = make_tokenizer({"image_token": "<image>", "video_token": "<video>"}, ("<|im_start|>", "<|im_end|>"))
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    template = CHATML_TEMPLATE.replace("IMAGE", "<image>").replace("VIDEO", "<video>")
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    config = {
        "model_type": "llava_onevision",
        "text_config": text_config("qwen2", len(tokenizer)),
        "vision_config": clip_config("siglip_vision_model") | {"vision_use_head": False},
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        "image_grid_pinpoints": pinpoints,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    save(config, processor, folder, seed, dtype)


def make_video_llava(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """Video-LLaVA: one CLIP tower for images, one for the eight frames of a video."""
    from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

    tokenizer = make_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**sizes),
        VideoLlavaVideoProcessor(**sizes),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = {
        "model_type": "video_llava",
        "text_config": text_config("llama", len(tokenizer)),
        "vision_config": clip_config(),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "video_seq_length": 8 * ((IMAGE_SIZE // PATCH_SIZE) ** 2 + 1),
    }
    save(config, processor, folder, seed, dtype)


def _qwen_parts(processor_class: Any, video_processor_class: Any = None) -> tuple[PreTrainedTokenizerFast, Any]:
    """Tokenizer and processor of Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    patch = {"patch_size": QWEN3_PATCH} if video_processor_class else {}

    tokenizer = make_tokenizer(
        {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    )
    limits = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    template = CHATML_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
        "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
    )
    processor = processor_class(
        Qwen2VLImageProcessor(size=limits, **patch),
        tokenizer,
        (video_processor_class or Qwen2VLVideoProcessor)(size=limits, **patch),
        chat_template=template,
    )
    return tokenizer, processor


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    tokens = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def make_qwen2_vl(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """Qwen2-VL: native resolution, M-RoPE."""
    from transformers import Qwen2VLProcessor

    tokenizer, processor = _qwen_parts(Qwen2VLProcessor)
    config = {
        "model_type": "qwen2_vl",
        "text_config": text_config("qwen2_vl_text", len(tokenizer), rope_parameters=ROPE),
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": QWEN_PATCH,
        },
        **_qwen_ids(tokenizer),
    }
    save(config, processor, folder, seed, dtype)


def make_qwen2_5_vl(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """Qwen2.5-VL: native resolution, window attention in the tower, M-RoPE."""
    from transformers import Qwen2_5_VLProcessor

    tokenizer, processor = _qwen_parts(Qwen2_5_VLProcessor)
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": text_config("qwen2_5_vl_text", len(tokenizer), rope_parameters=ROPE),
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "num_heads": 4,
            "patch_size": QWEN_PATCH,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        **_qwen_ids(tokenizer),
    }
    save(config, processor, folder, seed, dtype)


def make_qwen3_vl(folder: Path, seed: int, dtype: torch.dtype, model_type: str = "qwen3_vl", **of_text: Any) -> None:
    """Qwen3-VL: patches of 16, time stamps in the prompt, interleaved M-RoPE, features for the first layers."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer, processor = _qwen_parts(Qwen3VLProcessor, Qwen3VLVideoProcessor)
    of_text = {"rope_parameters": {**ROPE, "mrope_interleaved": True}, "head_dim": HIDDEN // HEADS, **of_text}
    config = {
        "model_type": model_type,
        "text_config": text_config(f"{model_type}_text", len(tokenizer), **of_text),
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "num_heads": 4,
            "patch_size": QWEN3_PATCH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        **_qwen_ids(tokenizer),
    }
    save(config, processor, folder, seed, dtype)


def make_qwen3_vl_moe(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """Qwen3-VL with four experts in each layer, of which a token passes two."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN}
    make_qwen3_vl(folder, seed, dtype, "qwen3_vl_moe", **experts)


def make_internvl(folder: Path, seed: int, dtype: torch.dtype, text: str = "qwen2", **of_text: Any) -> None:
    """InternVL in transformers format: images in tiles, pixel shuffle, Qwen2 or what ``text`` says."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokenizer = make_tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ("<|im_start|>", "<|im_end|>"),
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    template = CHATML_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n").replace("VIDEO", "<video>\n")
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )
    config = {
        "model_type": "internvl",
        "text_config": text_config(text, len(tokenizer), **of_text),
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
        },
        "tie_word_embeddings": False,
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "vision_feature_layer": -1,
    }
    save(config, processor, folder, seed, dtype)


def make_internvl3_5(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """InternVL3.5 in transformers format, which has Qwen3 for Qwen2."""
    make_internvl(folder, seed, dtype, "qwen3", head_dim=HIDDEN // HEADS)


REMOTE_CODE = Path(__file__).parent / "remote_code"
"""Source of the remote-code checkpoint, with the public interface of OpenGVLab's InternVL2."""


def make_internvl_remote(folder: Path, seed: int, dtype: torch.dtype) -> None:
    """InternVL2-like checkpoint whose code travels with it (``trust_remote_code``)."""
    from tests.support.remote_code.configuration_internvl_chat import InternVLChatConfig
    from tests.support.remote_code.modeling_internvl_chat import InternVLChatModel

    tokenizer = make_tokenizer({}, ("<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"))
    config = InternVLChatConfig(
        llm_config=text_config("qwen2", len(tokenizer)),
        vision_config={"hidden_size": 32, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        template="chatml-tiny",
        downsample_ratio=0.5,
        force_image_size=IMAGE_SIZE,
    )
    model: Any = InternVLChatModel(config)
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config.auto_map = {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    }
    config.architectures = ["InternVLChatModel"]
    config.save_pretrained(folder)
    for source in REMOTE_CODE.glob("*.py"):
        if source.name != "__init__.py":
            shutil.copy(source, folder)


FAMILIES: Mapping[str, Callable[[Path, int, torch.dtype], None]] = {
    "llava": make_llava,
    "llava_next": make_llava_next,
    "llava_onevision": make_llava_onevision,
    "video_llava": make_video_llava,
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "qwen3_vl-A1B": make_qwen3_vl_moe,  # lmms-eval tells experts by such a name
    "internvl": make_internvl,
    "internvl3_5": make_internvl3_5,
    "internvl_remote": make_internvl_remote,
}


def make_checkpoint(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny random checkpoint of a family and return its folder; the same seed gives the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[family](folder, seed, dtype)
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random checkpoint.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_checkpoint(arguments.family, arguments.folder, seed=arguments.seed))


if __name__ == "__main__":
    main()
