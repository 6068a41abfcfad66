"""Tiny random vision-language models of every family, and inputs for them without a processor or a download.

``make_model(name)`` gives the model and ``make_inputs(name, model, rows)`` the keywords of ``model(**inputs)`` and of
``model.generate(**inputs)``, laid out as the family's own processor would (start and end tokens, tiles, frames, token
types). A row is a list of segments: ``"t5"`` (five text tokens), ``"i"`` (an image), ``"I"`` (an image with another
number of vision tokens where the family has such), ``"v"`` (a video; only the families in ``VIDEO``), ``"V"`` (one of
six frames that change in part, and all at once in the middle).
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel, VipLlavaConfig

VOCAB = 120
PAD = 0
TEXT_IDS = range(10, 100)
"""Ordinary text tokens; everything a processor would add comes after them."""
IMAGE, VIDEO_PAD, START, END, VIDEO_START, VIDEO_END, BREAK, LAST_BREAK, FRAME, AROUND, GLOBAL, TILE = range(100, 112)
"""The placeholders (``IMAGE``, ``VIDEO_PAD``) and the special tokens which processors put around and between them."""

PATCH = 4
SLIDING_WINDOW = 6
LONG = 6
"""Frames, or pairs of them, of a long video."""
ANYRES_PINPOINTS = [[16, 16], [8, 24]]


# --- configs


def _text(model_type: str, **options: Any) -> dict[str, Any]:
    """Text config: four layers, grouped key-value heads, none of the special tokens that could end a generation."""
    defaults = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return {"model_type": model_type, **defaults, **options}


def _vision(model_type: str, image_size: int, **options: Any) -> dict[str, Any]:
    """Vision config of the encoders that have a fixed image size."""
    defaults = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": PATCH,
    }
    return {"model_type": model_type, **defaults, **options}


def _grid_vision(model_type: str, text_hidden: int, **options: Any) -> dict[str, Any]:
    """Vision config of the encoders that take flattened patches and their grid (Qwen, GLM)."""
    defaults = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": text_hidden,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {"model_type": model_type, **defaults, **options}


def _llava(kv_heads: int = 4) -> PreTrainedConfig:
    return AutoConfig.for_model(
        "llava",
        text_config=_text("llama", num_key_value_heads=kv_heads),
        vision_config=_vision("clip_vision_model", 8),
        image_token_index=IMAGE,
        image_seq_length=4,
    )


def _pixtral_llava() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "llava",
        text_config=_text("mistral", head_dim=8, sliding_window=None),
        vision_config=_vision("pixtral", 32, patch_size=8),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _vipllava() -> PreTrainedConfig:
    names = inspect.signature(VipLlavaConfig).parameters
    layers = "vision_feature_layer" if "vision_feature_layer" in names else "vision_feature_layers"  # before 5.23
    return AutoConfig.for_model(
        "vipllava",
        text_config=_text("llama"),
        vision_config=_vision("clip_vision_model", 8),
        image_token_index=IMAGE,
        image_seq_length=4,
        **{layers: [-1, -2]},
    )


def _llava_next() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "llava_next",
        text_config=_text("mistral", head_dim=8, sliding_window=None),
        vision_config=_vision("clip_vision_model", 8),
        image_token_index=IMAGE,
        image_grid_pinpoints=ANYRES_PINPOINTS,
    )


def _llava_onevision() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "llava_onevision",
        text_config=_text("qwen2"),
        vision_config=_vision("siglip_vision_model", 8, vision_use_head=False),
        image_token_index=IMAGE,
        video_token_index=VIDEO_PAD,
        image_grid_pinpoints=ANYRES_PINPOINTS,
    )


def _video_llava() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "video_llava",
        text_config=_text("llama"),
        vision_config=_vision("clip_vision_model", 8),
        image_token_index=IMAGE,
        video_token_index=VIDEO_PAD,
        image_seq_length=4,
        video_seq_length=10,
    )


def _mistral3(sliding_window: int | None = None) -> PreTrainedConfig:
    return AutoConfig.for_model(
        "mistral3",
        text_config=_text("mistral", head_dim=8, sliding_window=sliding_window),
        vision_config=_vision("pixtral", 32),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _qwen2_vl() -> PreTrainedConfig:
    vision = _grid_vision("qwen2_vl_vision", 32, embed_dim=16, hidden_size=32)  # hidden_size is that of its output
    return _grid_config("qwen2_vl", vision, _text("qwen2_vl_text", rope_parameters=_mrope()))


def _qwen2_5_vl() -> PreTrainedConfig:
    # A window of 2 x 2 vision tokens, so that window attention differs from full attention on the larger image
    vision = _grid_vision("qwen2_5_vl_vision", 32, window_size=4 * PATCH, fullatt_block_indexes=[1])
    return _grid_config("qwen2_5_vl", vision, _text("qwen2_5_vl_text", rope_parameters=_mrope()))


def _qwen3_vl() -> PreTrainedConfig:
    vision = _grid_vision("qwen3_vl_vision", 32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
    text = _text("qwen3_vl_text", head_dim=8, rope_parameters=_mrope(mrope_interleaved=True))
    return _grid_config("qwen3_vl", vision, text)


def _qwen3_vl_moe() -> PreTrainedConfig:
    vision = _grid_vision("qwen3_vl_moe_vision", 32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    text = _text("qwen3_vl_moe_text", head_dim=8, rope_parameters=_mrope(mrope_interleaved=True), **experts)
    config = _grid_config("qwen3_vl_moe", vision, text)
    config.text_config._experts_implementation = "eager"  # grouped matrix products have no float64
    return config


def _glm4v() -> PreTrainedConfig:
    vision = _grid_vision("glm4v_vision", 64, image_size=16)
    # GLM rotates half of each head: 16 dimensions a head leave the same sections as in the Qwen models
    text = _text("glm4v_text", hidden_size=64, rope_parameters=_mrope(partial_rotary_factor=0.5))
    return _grid_config(
        "glm4v",
        vision,
        text,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
    )


def _mrope(**options: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], **options}


def _grid_config(model_type: str, vision: dict[str, Any], text: dict[str, Any], **specials: int) -> PreTrainedConfig:
    specials = specials or {"vision_start_token_id": START, "vision_end_token_id": END}
    return AutoConfig.for_model(
        model_type,
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO_PAD,
        **specials,
    )


def _internvl() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "internvl",
        text_config=_text("qwen2"),
        vision_config=_vision("internvl_vision", 16),
        image_token_id=IMAGE,
        image_seq_length=4,
    )


def _idefics3(model_type: str = "idefics3") -> PreTrainedConfig:
    return AutoConfig.for_model(
        model_type,
        text_config=_text("llama"),
        vision_config=_vision(f"{model_type}_vision", 16),
        image_token_id=IMAGE,
        scale_factor=2,
    )


def _gemma3(
    layer_types: Sequence[str] = ("sliding_attention", "sliding_attention", "full_attention"),
) -> PreTrainedConfig:
    return AutoConfig.for_model(
        "gemma3",
        text_config=_text(
            "gemma3_text",
            num_hidden_layers=6,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=SLIDING_WINDOW,
            layer_types=[*layer_types, *layer_types],
        ),
        # Nine tokens an image: more than the window, which cuts what a token sees before it in its block (not after it)
        vision_config=_vision("siglip_vision_model", 24, vision_use_head=False),
        mm_tokens_per_image=9,
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE,
    )


def _paligemma() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "paligemma",
        text_config=_text("gemma", head_dim=8, num_key_value_heads=1),
        vision_config=_vision("siglip_vision_model", 12, vision_use_head=False),
        image_token_index=IMAGE,
        vocab_size=VOCAB,
        projection_dim=32,
        hidden_size=32,
    )


def _aya_vision() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "aya_vision",
        text_config=_text("cohere2", logit_scale=1.0),
        vision_config=_vision("siglip_vision_model", 16, vision_use_head=False),
        image_token_index=IMAGE,
    )


def _cohere2_vision() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "cohere2_vision",
        text_config=_text("cohere2", logit_scale=1.0, sliding_window=SLIDING_WINDOW),
        vision_config=_vision("siglip_vision_model", 16, vision_use_head=False),
        image_token_id=IMAGE,
        alignment_intermediate_size=48,
    )


def _llava_next_video() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "llava_next_video",
        text_config=_text("llama"),
        vision_config=_vision("clip_vision_model", 16),
        image_token_index=IMAGE,
        video_token_index=VIDEO_PAD,
        image_grid_pinpoints=[[32, 32]],
    )


def _qwen3_5(model_type: str = "qwen3_5") -> PreTrainedConfig:
    """Gated DeltaNet in the first layers, between those with attention, and in the last."""
    vision = _grid_vision(f"{model_type}_vision", 32, num_position_embeddings=16)
    text = _text(
        f"{model_type}_text",
        num_hidden_layers=6,
        layer_types=[*("linear_attention", "full_attention", "linear_attention") * 2],
        head_dim=16,
        rope_parameters=_mrope(mrope_interleaved=True, partial_rotary_factor=0.5),
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24} if "moe" in model_type else {}),
        **({"shared_expert_intermediate_size": 24} if "moe" in model_type else {}),
    )
    config = _grid_config(model_type, vision, text)
    config.text_config._experts_implementation = "eager"  # grouped matrix products have no float64
    return config


def _lfm2_vl() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "lfm2_vl",
        text_config=_text(
            "lfm2",
            num_hidden_layers=5,
            layer_types=["conv", "full_attention", "conv", "full_attention", "conv"],
            block_auto_adjust_ff_dim=False,
        ),
        vision_config=_vision("siglip2_vision_model", 16, num_patches=16, vision_use_head=False),
        image_token_id=IMAGE,
        projector_hidden_size=24,
    )


def _gemma4(**options: Any) -> PreTrainedConfig:
    """The last three of six layers share keys, as in the small models; or what the options say."""
    return AutoConfig.for_model(
        "gemma4",
        text_config=_text(
            "gemma4_text",
            num_hidden_layers=6,
            layer_types=[*("sliding_attention", "full_attention") * 3],
            head_dim=8,
            global_head_dim=16,
            sliding_window=SLIDING_WINDOW,
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=4,
            **{"num_kv_shared_layers": 3, **options},
        ),
        vision_config=_vision(
            "gemma4_vision",
            16,
            num_key_value_heads=2,
            head_dim=8,
            pooling_kernel_size=2,
            position_embedding_size=64,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO_PAD,
        boi_token_id=START,
        eoi_token_id=END,
    )


# --- images and videos


@dataclass
class _Vision:
    """One image or video: its tokens, the keywords with its pixels, and the token type of its placeholders."""

    ids: list[int]
    features: dict[str, Tensor]
    type: int = 1


@dataclass
class _Request:
    """What an encoder of images or videos may look at."""

    model: PreTrainedModel
    generator: torch.Generator
    large: bool = False
    alone: bool = True
    """Whether it is the only image of its row (LLaVA-OneVision divides only such images into tiles)."""

    def noise(self, *shape: int) -> Tensor:
        """Pixels in [-1, 1), the same for every dtype of the model up to rounding."""
        pixels = torch.rand(*shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return pixels.to(self.model.device, self.model.dtype)

    def images(self, count: int = 1) -> Tensor:
        """Images of the fixed size of the vision tower."""
        size = self.model.config.vision_config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return self.noise(count, 3, height, width)


def _lengths(outputs: Any) -> list[int]:
    """Give the number of vision tokens of each image (or tile) in what ``get_*_features`` returned."""
    return [feature.shape[-2] for feature in outputs.pooler_output]


@torch.no_grad()
def _image_lengths(model: PreTrainedModel, **features: Tensor) -> list[int]:
    return _lengths(model.model.get_image_features(**features, return_dict=True))


@torch.no_grad()
def _video_lengths(model: PreTrainedModel, **features: Tensor) -> list[int]:
    return _lengths(model.model.get_video_features(**features, return_dict=True))


def _sizes(*values: int) -> Tensor:
    return torch.tensor([values])


def _plain_image(request: _Request, before: Sequence[int] = (), after: Sequence[int] = ()) -> _Vision:
    """Fixed size, fixed number of tokens."""
    names = inspect.signature(request.model.model.get_image_features).parameters
    pixels = "pixel_values" if "pixel_values" in names else "pixel_values_images"  # Video-LLaVA before 5.21
    features = {pixels: request.images()}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([*before, *[IMAGE] * length, *after], features)


def _llava_next_image(request: _Request) -> _Vision:
    """Tiles of the best fitting grid after the whole image; each row of tokens ends with the learnt newline."""
    size, tiles = ((8, 24), 4) if request.large else ((16, 8), 5)
    pixels = request.images(tiles)[None]
    features = {"pixel_values": pixels, "image_sizes": _sizes(*size).to(pixels.device)}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([IMAGE] * length, features)


def _onevision_image(request: _Request) -> _Vision:
    """As LLaVA-NeXT, but the images of a row with several of them are not divided into tiles."""
    vision = _llava_next_image(request)
    if request.alone:
        return vision
    features = {**vision.features, "pixel_values": vision.features["pixel_values"][:, :1]}
    (length,) = _image_lengths(request.model, **features, batch_num_images=torch.tensor([2]))
    return _Vision([IMAGE] * length, features)


def _onevision_video(request: _Request) -> _Vision:
    """All the frames and then one newline."""
    return _whole_video(request, frames=3)


def _slow(frames: Tensor) -> Tensor:
    """Let half of each frame, ``[frames, ..., rows, columns]``, be that of the one before, except in the middle."""
    frames = frames.clone()
    for i in range(1, len(frames)):
        if i != len(frames) // 2:
            frames[i, ..., frames.shape[-2] // 2 :, :] = frames[i - 1, ..., frames.shape[-2] // 2 :, :]
    return frames


def _whole_video(request: _Request, frames: int = 2) -> _Vision:
    """Frames without anything between them."""
    pixels = (_slow(request.images(LONG)) if request.large else request.images(frames))[None]
    length = sum(_video_lengths(request.model, pixel_values_videos=pixels))
    return _Vision([VIDEO_PAD] * length, {"pixel_values_videos": pixels}, type=2)


def _next_video_image(request: _Request) -> _Vision:
    """The whole image, four tiles, and a newline after each row of tokens."""
    pixels = request.images(5)[None]
    features = {"pixel_values": pixels, "image_sizes": _sizes(*((16, 32) if request.large else (32, 32)))}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([IMAGE] * length, features)


def _patches(request: _Request, count: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Flattened patches of images as large as the largest there are, and where they are: -1 for what is none."""
    most = 24
    pixels = request.noise(count, most, 3 * PATCH**2)
    at = torch.cartesian_prod(torch.arange(columns), torch.arange(rows)).view(columns, rows, 2).transpose(0, 1)
    places = torch.full((count, most, 2), -1)
    places[:, : rows * columns] = at.reshape(-1, 2)
    return pixels * (places >= 0).all(dim=-1, keepdim=True), places


def _gemma4_image(request: _Request) -> _Vision:
    pixels, places = _patches(request, 1, 4, 6 if request.large else 4)
    features = {"pixel_values": pixels, "image_position_ids": places}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([START, *[IMAGE] * length, END], features)


def _gemma4_video(request: _Request) -> _Vision:
    """Two frames with a time before each."""
    pixels, places = _patches(request, 2, 4, 4)
    features = {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": torch.tensor([2])}
    (length,) = _video_lengths(request.model, **features)
    return _Vision([FRAME, START, *[VIDEO_PAD] * (length // 2), END] * 2, features, type=2)


def _lfm2_vl_image(request: _Request) -> _Vision:
    pixels, places = _patches(request, 1, 4, 6 if request.large else 4)
    shape = _sizes(4, 6 if request.large else 4)
    mask = (places >= 0).all(dim=-1).long()
    features = {"pixel_values": pixels, "spatial_shapes": shape, "pixel_attention_mask": mask}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([START, *[IMAGE] * length, END], features)


def _pixtral_image(request: _Request) -> _Vision:
    """Rows of tokens between which there are break tokens, and an end token after the last row."""
    config = request.model.config
    unit = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    rows, columns = 2, 3 if request.large else 2
    features = {"pixel_values": request.noise(1, 3, rows * unit, columns * unit)}
    features["image_sizes"] = _sizes(rows * unit, columns * unit).to(features["pixel_values"].device)
    assert _image_lengths(request.model, **features) == [rows * columns]
    ids = [*[IMAGE] * columns, BREAK] * rows
    return _Vision([*ids[:-1], LAST_BREAK], features)


def _tiled_image(
    request: _Request,
    *,
    before: Sequence[int] = (),
    tile: Sequence[int] = (),
    whole: Sequence[int] = (),
    each_end: Sequence[int] = (),
    after: Sequence[int] = (),
    nested: bool = False,
) -> _Vision:
    """One image for the vision tower, or (large) two tiles and then the whole image.

    ``tile`` and ``whole`` come before the tokens of a tile and of the whole image, ``each_end`` after those of either;
    ``nested`` towers take the images of each row apart.
    """
    pixels = request.images(3 if request.large else 1)
    lengths = _image_lengths(request.model, pixel_values=pixels[:, None] if nested else pixels)
    marks = [tile] * (len(lengths) - 1) + [whole]
    ids = [*before]
    for mark, length in zip(marks, lengths, strict=True):
        ids += [*mark, *[IMAGE] * length, *each_end]
    return _Vision([*ids, *after], {"pixel_values": pixels})


def _idefics3_image(request: _Request) -> _Vision:
    vision = _tiled_image(request, tile=(AROUND, TILE), whole=(AROUND, GLOBAL), after=(AROUND,), nested=True)
    mask = torch.ones_like(vision.features["pixel_values"][:, 0], dtype=torch.long)
    return _Vision(vision.ids, {**vision.features, "pixel_attention_mask": mask})


_internvl_image = partial(_tiled_image, before=(START,), after=(END,))


def _frames_as_images(request: _Request, image: Callable[[_Request], _Vision], frames: int = 2) -> _Vision:
    """A video which the model sees as images with a text before each."""
    images = [image(replace(request, large=False)) for _ in range(LONG if request.large else frames)]
    if request.large:
        pixels = _slow(torch.cat([image.features["pixel_values"] for image in images]))
        for image, frame in zip(images, pixels, strict=True):
            image.features["pixel_values"] = frame[None]
    features = {key: torch.cat([image.features[key] for image in images]) for key in images[0].features}
    return _Vision([id_ for image in images for id_ in (FRAME, *image.ids)], features)


def _grid(request: _Request, *grid: int) -> tuple[Tensor, Tensor]:
    """Flattened patches of a grid (frame pairs, rows, columns), and the grid."""
    vision = request.model.config.vision_config
    frames, rows, columns = grid
    pixels = request.noise(frames * rows * columns, 3 * vision.temporal_patch_size * vision.patch_size**2)
    if frames == LONG:
        pixels = _slow(pixels.unflatten(0, (frames, -1))).flatten(0, 1)
    return pixels, _sizes(*grid).to(pixels.device)


def _grid_image(request: _Request) -> _Vision:
    """Four or six tokens between start and end tokens."""
    pixels, grid = _grid(request, 1, 4, 6 if request.large else 4)
    features = {"pixel_values": pixels, "image_grid_thw": grid}
    (length,) = _image_lengths(request.model, **features)
    return _Vision([START, *[IMAGE] * length, END], features)


def _grid_video(request: _Request) -> _Vision:
    """Two pairs of frames: one run of tokens (Qwen2), or one for each pair with its time stamp (Qwen3, GLM)."""
    pairs = LONG if request.large else 2
    pixels, grid = _grid(request, pairs, 4, 4)
    features = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    (length,) = _video_lengths(request.model, **features)
    family = request.model.config.model_type
    if family == "qwen2_5_vl":
        features["second_per_grid_ts"] = torch.tensor([0.5], device=pixels.device)
    if family.startswith("qwen3_"):
        ids = [FRAME, START, *[VIDEO_PAD] * (length // pairs), END] * pairs
    elif family == "glm4v":
        # The frames of a video have the placeholder of images; only where they are makes them frames
        ids = [VIDEO_START, *[START, *[IMAGE] * (length // pairs), END, FRAME] * pairs, VIDEO_END]
    else:
        ids = [START, *[VIDEO_PAD] * length, END]
    return _Vision(ids, features, type=2)


# --- batches


@dataclass
class _Row:
    """An encoded row: tokens, their types, and the keywords of its images and videos in order."""

    ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    visions: list[dict[str, Tensor]] = field(default_factory=list)

    def text(self, ids: Sequence[int]) -> None:
        """Append text tokens."""
        self.ids += ids
        self.types += [0] * len(ids)

    def vision(self, vision: _Vision) -> None:
        """Append an image or a video."""
        self.ids += vision.ids
        self.types += [vision.type if id_ in (IMAGE, VIDEO_PAD) else 0 for id_ in vision.ids]
        self.visions.append(vision.features)


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Join along the first dimension, after zero-padding the others to their largest size at the end."""
    shape = [max(sizes) for sizes in zip(*[tensor.shape[1:] for tensor in tensors], strict=True)]
    joined = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *shape)
    start = 0
    for tensor in tensors:
        joined[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return joined


def _collect(visions: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the keywords of images and videos."""
    collected: dict[str, list[Tensor]] = {}
    for vision in visions:
        for key, tensor in vision.items():
            collected.setdefault(key, []).append(tensor)
    return {key: _concatenate(tensors) for key, tensors in collected.items()}


def _flat(rows: Sequence[_Row]) -> dict[str, Tensor]:
    """All the images of all rows one after the other, whichever row they belong to."""
    return _collect(vision for row in rows for vision in row.visions)


def _onevision_flat(rows: Sequence[_Row]) -> dict[str, Tensor]:
    inputs = _flat(rows)
    if "pixel_values" in inputs:
        counts = [sum("pixel_values" in vision for vision in row.visions) for row in rows]
        inputs["batch_num_images"] = torch.tensor(counts, device=inputs["pixel_values"].device)
    return inputs


def _by_row(rows: Sequence[_Row]) -> dict[str, Tensor]:
    """The images of each row apart; rows with fewer images end with images of zeros."""
    joined = [_collect(row.visions) for row in rows]
    example = next((row for row in joined if row), {})
    return {key: _concatenate([row.get(key, tensor[:0])[None] for row in joined]) for key, tensor in example.items()}


# --- families


@dataclass(frozen=True)
class _Family:
    """How to make the config and the inputs of a family."""

    config: Callable[[], PreTrainedConfig]
    image: Callable[[_Request], _Vision] = _plain_image
    video: Callable[[_Request], _Vision] | None = None
    collate: Callable[[Sequence[_Row]], dict[str, Tensor]] = _flat
    types: str | None = None
    """Keyword of the token types, if any."""
    mark_vision: bool = True
    """Whether the token types tell vision from text (PaliGemma's tell prompt from suffix)."""


_mm = "mm_token_type_ids"

_FAMILIES: dict[str, _Family] = {
    "llava": _Family(_llava),
    "vipllava": _Family(_vipllava),
    "llava_next": _Family(_llava_next, _llava_next_image),
    "llava_onevision": _Family(_llava_onevision, _onevision_image, _onevision_video, _onevision_flat),
    "video_llava": _Family(_video_llava, video=_whole_video),
    "qwen2_vl": _Family(_qwen2_vl, _grid_image, _grid_video, types=_mm),
    "qwen2_5_vl": _Family(_qwen2_5_vl, _grid_image, _grid_video, types=_mm),
    "qwen3_vl": _Family(_qwen3_vl, _grid_image, _grid_video, types=_mm),
    "qwen3_vl_moe": _Family(_qwen3_vl_moe, _grid_image, _grid_video, types=_mm),
    "internvl": _Family(_internvl, _internvl_image, partial(_frames_as_images, image=_internvl_image)),
    "idefics3": _Family(_idefics3, _idefics3_image, collate=_by_row),
    "smolvlm": _Family(
        partial(_idefics3, "smolvlm"),
        _idefics3_image,
        partial(_frames_as_images, image=_idefics3_image),
        collate=_by_row,
    ),
    "mistral3": _Family(_mistral3, _pixtral_image),
    "gemma3": _Family(_gemma3, partial(_plain_image, before=(START,), after=(END,)), types="token_type_ids"),
    "aya_vision": _Family(
        _aya_vision, partial(_tiled_image, before=(START,), tile=(TILE,), whole=(GLOBAL,), after=(END,))
    ),
    "cohere2_vision": _Family(_cohere2_vision, partial(_tiled_image, before=(START,), each_end=(BREAK,), after=(END,))),
    "glm4v": _Family(_glm4v, _grid_image, _grid_video, types=_mm),
    "paligemma": _Family(_paligemma, types="token_type_ids", mark_vision=False),
}
_FAMILIES |= {
    "pixtral_llava": _Family(_pixtral_llava, _pixtral_image),
    "gemma3_full_first": _Family(
        partial(_gemma3, ("full_attention", "sliding_attention", "sliding_attention")),
        _FAMILIES["gemma3"].image,
        types="token_type_ids",
    ),
    "mistral3_sliding": _Family(partial(_mistral3, SLIDING_WINDOW), _pixtral_image),
    "llava_gqa": _Family(partial(_llava, 2)),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
"""Names of all families and variants in which any method may run."""

_FAMILIES |= {
    "llava_next_video": _Family(_llava_next_video, _next_video_image, _whole_video),
    "qwen3_5": _Family(_qwen3_5, _grid_image, _grid_video, types=_mm),
    "qwen3_5_moe": _Family(partial(_qwen3_5, "qwen3_5_moe"), _grid_image, _grid_video, types=_mm),
    "lfm2_vl": _Family(_lfm2_vl, _lfm2_vl_image),
    "gemma4": _Family(_gemma4, _gemma4_image, _gemma4_video, types=_mm),
    "gemma4_bidirectional": _Family(
        partial(_gemma4, num_kv_shared_layers=0, use_bidirectional_attention="vision"),
        _gemma4_image,
        _gemma4_video,
        types=_mm,
    ),
}

DECODERS: tuple[str, ...] = tuple(name for name in _FAMILIES if name not in FAMILIES)
"""Families and variants whose towers no method may read; most have layers without keys of their own."""

DENSE: tuple[str, ...] = tuple(name for name in FAMILIES if name != "qwen3_vl_moe")
"""Those whose costs have a closed form, because every token passes the same weights."""

VIDEO: frozenset[str] = frozenset(name for name, family in _FAMILIES.items() if family.video)
"""Names of those whose rows may contain videos (InternVL and SmolVLM see frames as images with texts between)."""


@torch.no_grad()
def _spread_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw all weights anew, wide enough that attention is far from uniform and every token matters.

    Drawn in float64 whatever the dtype of the model, so that models of all dtypes have the same weights up to
    rounding. The norms stay around their neutral weight, which is zero in Gemma and one elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    # Gemma multiplies its embeddings by a scale of its own
    embeddings = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    head = model.get_output_embeddings().weight
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() == 1:
            noise = noise * 0.2 + parameter.double().mean().round()
        else:
            noise = noise * (0.5 if id(parameter) in embeddings else 0.2)
        if parameter is head:
            # Greedy search then never makes a placeholder, with which the longer prompt could not be run again
            noise[: TEXT_IDS.start] *= 0.1
            noise[TEXT_IDS.stop :] *= 0.1
        parameter.copy_(noise)


def make_model(name: str, *, attn: str = "eager", dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """Make a tiny model with random weights, in eval mode.

    It has four decoder layers (Gemma 3: six). ``attn`` is the attention implementation of the text model; the vision
    tower always has sdpa, which unlike eager does not round float64 to float32.
    """
    config = _FAMILIES[name].config()
    config._attn_implementation = {"": attn, "text_config": attn, "vision_config": "sdpa"}
    torch.manual_seed(seed)
    # With the dtype from the start instead of a later .to(), buffers such as RoPE frequencies stay float32 as they do
    # in a model that from_pretrained loads
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    _spread_weights(model, seed)
    # generate() then always makes as many tokens as asked for
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def _encode(family: _Family, model: PreTrainedModel, segments: Sequence[str], seed: int) -> _Row:
    """Encode a row; what is random in it depends on nothing but the seed and its segments."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, tuple(segments))).encode()))
    row = _Row()
    alone = sum(segment in ("i", "I") for segment in segments) == 1
    for segment in segments:
        if segment in ("i", "I"):
            row.vision(family.image(_Request(model, generator, large=segment == "I", alone=alone)))
        elif segment in ("v", "V"):
            if family.video is None:
                raise ValueError(f"{model.config.model_type} has no videos")
            row.vision(family.video(_Request(model, generator, large=segment == "V")))
        elif segment[:1] == "t" and segment[1:].isdigit():
            ids = torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (int(segment[1:]),), generator=generator)
            row.text(ids.tolist())
        else:
            raise ValueError(f"unknown segment {segment!r}")
    return row


def make_inputs(
    name: str,
    model: PreTrainedModel,
    rows: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    padding: Literal["left", "right"] = "left",
) -> dict[str, Tensor]:
    """Make the keywords of ``model(**inputs)`` and of ``model.generate(**inputs)`` for a batch of rows.

    A row has the same tokens and pixels alone and in any batch. The numbers of vision tokens are those of the features
    that the model itself makes of the pixels.
    """
    family = _FAMILIES[name]
    encoded = [_encode(family, model, segments, seed) for segments in rows]
    width = max(len(row.ids) for row in encoded)

    def padded(lists: Iterable[list[int]]) -> Tensor:
        filled = []
        for list_ in lists:
            fill = [0] * (width - len(list_))
            filled.append(fill + list_ if padding == "left" else list_ + fill)
        return torch.tensor(filled, device=model.device)

    inputs = {
        "input_ids": padded(row.ids for row in encoded),
        "attention_mask": padded([1] * len(row.ids) for row in encoded),
    }
    if family.types:
        inputs[family.types] = padded(row.types if family.mark_vision else [0] * len(row.ids) for row in encoded)
    return inputs | family.collate(encoded)
