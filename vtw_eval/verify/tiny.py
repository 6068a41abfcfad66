"""A model as small as can be with the architecture of a checkpoint, and prompts for it without a processor.

Sizes shrink; what decides how a decoder calls its layers stays: classes, number of layers, their kinds, grouped keys,
M-RoPE, soft caps, norms. The vision tower does not run: random features stand in for its output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine.calls import by_name, parameters

VOCAB = 128
PLACEHOLDERS = range(100, 110)
"""Ids of image and video placeholders; other special tokens come after them, words before."""
_SPECIAL = range(110, VOCAB)
_WORDS = range(10, 100)
HIDDEN, HEADS, HEAD_DIM, WINDOW = 64, 4, 16, 12
_TOWER = {
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 8,
    "out_hidden_size": HIDDEN,
}
_MROPE = {
    "glm4v_moe_text": [8, 12, 12],
    "glm4v_text": [8, 12, 12],
    "glm_ocr_text": [8, 12, 12],
    "paddleocr_vl_text": [16, 24, 24],
    "qwen2_5_vl_text": [16, 24, 24],
    "qwen2_vl_text": [16, 24, 24],
}
"""Sections of M-RoPE that a default config leaves out."""
_LAYERS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "gemma4": (("sliding_attention", "full_attention") * 3, {"num_kv_shared_layers": 3}),
    "gemma4_unified": (("sliding_attention", "full_attention") * 2, {"num_kv_shared_layers": 2}),
    "lfm2_vl": (("conv", "conv", "full_attention", "conv", "full_attention"), {}),
}
"""Kinds of layers, and what else checkpoints have, of families whose default config has layers of one kind only."""
_DEAF = frozenset({"gemma4", "gemma4_unified"})
"""Families that do without their audio tower."""
_LAYER_SIZES = {"head_dim": 2 * HEAD_DIM, "num_key_value_heads": 1}
"""Sizes of the layers that a config sets apart from the others."""
_PARTIAL = ("partial_rotary_factor", "rotary_pct")


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a vision-language model's config with small sizes, and as many layers.

    Parameters
    ----------
    config
        Of a checkpoint, or a family's default.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):  # how a checkpoint keeps weights, of which nothing is looked at
        del config.quantization_config
    text: Any = config.get_text_config(decoder=True)
    apart = text.to_dict().get("per_layer_config") or {}
    if apart:
        text.per_layer_config = None
    if getattr(config, "audio_config", None) is not None and config.model_type in _DEAF:
        config.audio_config = None
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_attention_heads": HEADS,
        "num_key_value_heads": _key_heads(text),
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "sliding_window": WINDOW,
        "max_position_embeddings": 512,
        "qk_rope_head_dim": HEAD_DIM,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": HEADS,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
    }
    _set(text, sizes)
    _set(getattr(config, "vision_config", None), _tower(config))
    for name in ("alignment_intermediate_size", "hidden_size", "projection_dim", "vocab_size"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, VOCAB if name == "vocab_size" else HIDDEN)
    _shrink_rotary(text)
    _renumber(config, text)
    if apart:
        small = {int(i): {name: _LAYER_SIZES.get(name, size) for name, size in own.items()} for i, own in apart.items()}
        text.per_layer_config = small
    return config


def _set(config: Any, values: Mapping[str, Any]) -> None:
    """Set what a config has."""
    for name, value in values.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)


def family_config(model_type: str) -> PreTrainedConfig:
    """Return the default config of a family, with no more layers than show every kind of layer that it has."""
    config = AutoConfig.for_model(model_type)
    text: Any = config.get_text_config(decoder=True)
    types = list(getattr(text, "layer_types", None) or [""])
    layers = max(4, *(types.index(kind) + 2 for kind in set(types)))
    if model_type in _LAYERS:
        kinds, more = _LAYERS[model_type]
        own = {"num_hidden_layers": len(kinds), "layer_types": list(kinds), **more}
        return AutoConfig.for_model(model_type, text_config={"model_type": text.model_type, **own})
    text.num_hidden_layers = layers
    if types != [""]:
        text.layer_types = types[:layers]
    return config


def _key_heads(text: Any) -> int:
    keys = getattr(text, "num_key_value_heads", None)
    if keys in (None, text.num_attention_heads):
        return HEADS
    return 1 if keys == 1 else 2


def _tower(config: PreTrainedConfig) -> Mapping[str, Any]:
    # Qwen2-VL calls the width of the tower's output hidden_size.
    return {**_TOWER, "hidden_size": HIDDEN} if config.model_type == "qwen2_vl" else _TOWER


def _shrink_rotary(text: Any) -> None:
    """Scale what depends on the width of a head: M-RoPE's sections, LongRoPE's factors."""
    found = getattr(text, "rope_parameters", None) or {}
    if text.model_type in _MROPE:
        found.setdefault("mrope_section", _MROPE[text.model_type])
    nested = [value for value in found.values() if isinstance(value, dict)]
    for rope in [found, *nested]:
        share = next((rope[name] for name in _PARTIAL if rope.get(name)), 1.0)
        half = int(HEAD_DIM * share) // 2
        if rope.get("mrope_section"):
            rope["mrope_section"] = _scaled(rope["mrope_section"], half)
        for name in ("long_factor", "short_factor"):
            if rope.get(name):
                rope[name] = rope[name][:half]


def _scaled(sections: list[int], total: int) -> list[int]:
    """Return sections of the same proportions with another sum."""
    new = [max(section * total // sum(sections), 1) for section in sections]
    new[0] += total - sum(new)
    return new


def _renumber(config: Any, text: Any) -> None:
    """Give special tokens ids that the small vocabulary has."""
    placeholders, special = iter(PLACEHOLDERS), iter(_SPECIAL)
    for part in (config, text):
        for name, value in list(vars(part).items()):
            if not name.endswith(("_token_id", "_token_index")) or not isinstance(value, int | list):
                continue
            if name == "pad_token_id":
                setattr(part, name, 0)
            elif name in ("eos_token_id", "bos_token_id"):  # a generation always makes as many tokens as asked for
                setattr(part, name, None)
            else:
                setattr(part, name, next(placeholders if name.startswith(("image_token", "video_token")) else special))


def make_model(config: PreTrainedConfig, attention: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Make a model of a shrunk config with random weights, wide enough that every token matters; always the same ones.

    Parameters
    ----------
    config
        Of :func:`shrink`.
    attention
        Attention implementation.
    dtype, device
        Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config), attn_implementation=attention, dtype=dtype
        )
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms stay around their neutral weight, zero or one
                noise = noise * 0.2 + parameter.float().mean().round()
            else:
                noise = noise * (0.5 if id(parameter) in embeddings else 0.2)
            if parameter is head:  # greedy search then makes words only
                noise[: _WORDS.start] *= 0.1
                noise[_WORDS.stop :] *= 0.1
            parameter.copy_(noise)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(device).eval()


@dataclass(frozen=True)
class Inputs:
    """A batch of prompts."""

    tensors: Mapping[str, Tensor]
    """Keywords of ``model(**...)`` and ``model.generate(**...)``; rows first."""
    grids: Mapping[int, list[list[int]]]
    """Row to the grids of its images, for families with M-RoPE."""
    vision: Tensor
    """Boolean ``[rows, tokens]``."""
    features: Tensor
    """What stands in for the output of the vision tower, ``[rows, tokens, width]``."""
    suffix_type: int
    """``token_type_ids`` of a generated token."""

    @property
    def length(self) -> int:
        """Number of tokens, padding included."""
        return self.vision.shape[1]

    @property
    def valid(self) -> Tensor:
        """Boolean ``[rows, tokens]``, False for padding."""
        return self.tensors["attention_mask"].bool()

    def keywords(self) -> dict[str, Tensor]:
        """Return the keywords with the grids of all images."""
        grids = [grid for row in sorted(self.grids) for grid in self.grids[row]]
        extra = {"image_grid_thw": torch.tensor(grids, device=self.vision.device)} if grids else {}
        return {**self.tensors, **extra}

    def row(self, row: int) -> Inputs:
        """Return one row without its padding."""
        keep = self.valid[row]
        return Inputs(
            {name: value[row : row + 1, keep] for name, value in self.tensors.items()},
            {0: self.grids[row]} if row in self.grids else {},
            self.vision[row : row + 1, keep],
            self.features[row : row + 1, keep],
            self.suffix_type,
        )

    def extended(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the keywords of the prompts with tokens appended, long ``[rows, new]``."""
        new = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "token_type_ids": torch.full_like(tokens, self.suffix_type),
            "mm_token_type_ids": torch.zeros_like(tokens),
        }
        return {**self.keywords(), **{n: torch.cat([v, new[n]], dim=1) for n, v in self.tensors.items()}}


@dataclass(frozen=True)
class _Image:
    """The vision tokens of an image, and its grid in units of merged patches."""

    tokens: int
    rows: int
    columns: int


_SMALL, _LARGE = _Image(4, 2, 2), _Image(6, 2, 3)
_ROWS: tuple[tuple[int | _Image, ...], ...] = ((5, _SMALL, 6), (3, _LARGE, 2, _SMALL, 4), (7,))
"""Prompts as numbers of words, and images; the first has an image and gets padding."""


def make_inputs(model: PreTrainedModel) -> Inputs:
    """Make a left-padded batch of prompts with one image, with two of different size, and without any."""
    anatomy = find_anatomy(model)
    known = parameters(model)
    generator = torch.Generator().manual_seed(1)
    placeholder = int(getattr(model.config, "image_token_id", anatomy.vision_token_ids[0]))
    width = max(sum(part if isinstance(part, int) else part.tokens for part in row) for row in _ROWS)
    ids, mask = torch.zeros(len(_ROWS), width, dtype=torch.long), torch.zeros(len(_ROWS), width, dtype=torch.long)
    merge = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", 1)
    grids: dict[int, list[list[int]]] = {}
    for number, row in enumerate(_ROWS):
        parts = [
            torch.randint(_WORDS.start, _WORDS.stop, (part,), generator=generator)
            if isinstance(part, int)
            else torch.full((part.tokens,), placeholder)
            for part in row
        ]
        whole = torch.cat(parts)
        ids[number, width - len(whole) :], mask[number, width - len(whole) :] = whole, 1
        images = [part for part in row if isinstance(part, _Image)]
        if images and "image_grid_thw" in known:
            grids[number] = [[1, merge * image.rows, merge * image.columns] for image in images]
    vision = ids == placeholder
    prefix = model.config.model_type == "paligemma"  # its token types tell prompt from suffix, others' vision from text
    tensors = {"input_ids": ids, "attention_mask": mask}
    types = {"token_type_ids": torch.zeros_like(ids) if prefix else vision.long(), "mm_token_type_ids": vision.long()}
    tensors |= {name: value for name, value in types.items() if name in known}
    features = torch.randn(*ids.shape, anatomy.hidden_size, generator=generator) * vision[..., None]
    device = model.device
    return Inputs(
        {name: value.to(device) for name, value in tensors.items()},
        grids,
        vision.to(device),
        features.to(device, model.dtype),
        int(prefix),
    )


@contextmanager
def features_in(model: PreTrainedModel, inputs: Inputs) -> Iterator[None]:
    """Let vision features enter the decoder where a prompt has placeholders; where the family has it, deepstack too."""
    decoder = find_anatomy(model).decoder
    deepstack = "deepstack_visual_embeds" in parameters(decoder)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = by_name(module, args, kwargs)
        embeds: Tensor = named["inputs_embeds"]
        since = embeds.shape[1] - inputs.length
        if since < 0:  # a decode step
            return (), named
        named["inputs_embeds"] = embeds + nn.functional.pad(inputs.features, (0, 0, 0, since))
        if deepstack:
            named["visual_pos_masks"] = nn.functional.pad(inputs.vision, (0, since))
            named["deepstack_visual_embeds"] = [inputs.features[inputs.vision] * scale for scale in (0.7, -0.5)]
        return (), named

    # Before the hooks of a method, which cut what enters.
    handle = decoder.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
