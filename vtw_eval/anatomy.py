"""Where things are in a vision-language model: decoder, layers, rotary module, placeholder ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vtw_eval.families import DECODER_TESTED, FULL, LAYERS, RECURRENT, REFUSED, TESTED

_PLACEHOLDERS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
_TOWERS = ("vision_tower", "vision_model", "visual", "image_tower", "video_tower")
_PROJECTORS = ("multi_modal_projector", "connector", "merger")


class UnsupportedModelError(TypeError):
    """The model is not one that tokens can be withdrawn from, or not known to be."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a vision-language model that token reduction needs."""

    model: nn.Module
    decoder: nn.Module
    """The text decoder, the module that owns the layers."""
    layers: tuple[nn.Module, ...]
    rotary: nn.Module | None
    """The module that makes the position embeddings, when the decoder has one."""
    text_config: Any
    vision_token_ids: tuple[int, ...]
    """Ids that stand for image or video features in a prompt; empty when only the caller knows them."""
    model_type: str
    name: str
    """Name or path of the checkpoint, for defaults that depend on it."""

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, N."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder, h."""
        return int(self.text_config.hidden_size)

    @property
    def attention(self) -> str | None:
        """Name of the decoder's attention, as in ``attn_implementation``; None where its config has none."""
        return getattr(self.text_config, "_attn_implementation", None)

    def is_vision(self, ids: Tensor) -> Tensor:
        """Return which token ids stand for vision features; boolean, of the shape of ``ids``."""
        return torch.isin(ids, ids.new_tensor(self.vision_token_ids))

    def kind(self, layer: int) -> str:
        """Return how a layer mixes tokens, as its config calls it: see :data:`vtw_eval.families.LAYERS`."""
        return self._kinds[layer]

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer mixes tokens by a recurrence or a convolution: it holds a state, and no keys."""
        return self._kinds[layer] in RECURRENT

    def keys_of(self, layer: int) -> int:
        """Return the layer whose keys and values a layer attends to: itself, or an earlier one that shares them."""
        return self._sources[layer]

    def has_own_keys(self, layer: int) -> bool:
        """Whether a layer attends to keys and values of its own."""
        return not self.is_recurrent(layer) and self.keys_of(layer) == layer

    @property
    def shares_keys(self) -> bool:
        """Whether some layers attend to keys of earlier ones."""
        return self._sources != tuple(range(self.num_layers))

    @property
    def plain_cache(self) -> bool:
        """Whether every layer keeps keys and values of its own."""
        return all(map(self.has_own_keys, range(self.num_layers)))

    @functools.cached_property
    def _kinds(self) -> tuple[str, ...]:
        return tuple(getattr(self.text_config, "layer_types", None) or (FULL,) * self.num_layers)

    @functools.cached_property
    def _sources(self) -> tuple[int, ...]:
        modes = getattr(self.text_config, "kv_sharing_modes", None) or (None,) * self.num_layers
        if "reuse" in modes and "store" not in modes:
            raise UnsupportedModelError(f"all layers of {self.model_type} attend to keys of another model.")
        return tuple(
            layer if mode != "reuse" else max(i for i in range(layer) if self._is_source(i, layer, modes))
            for layer, mode in enumerate(modes)
        )

    def _is_source(self, i: int, layer: int, modes: Sequence[str | None]) -> bool:
        return modes[i] == "store" and self._kinds[i] == self._kinds[layer]

    def sliding_window(self, layer: int) -> int | None:
        """Return the sliding window of a layer's attention, None for full attention."""
        attention = getattr(self.layers[layer], "self_attn", self.layers[layer])
        config = getattr(attention, "config", self.text_config)  # Mistral's attention reads it there
        return getattr(attention, "sliding_window", getattr(config, "sliding_window", None))


@dataclass(frozen=True)
class Tower:
    """The vision tower of a model, and what stands between it and the decoder."""

    owner: nn.Module
    """The module whose ``get_image_features`` and ``get_video_features`` run the tower."""
    towers: tuple[nn.Module, ...]
    """The tower; two where videos have one of their own."""
    layers: tuple[tuple[nn.Module, ...], ...]
    """Transformer layers of each tower."""
    projector: nn.Module
    """What makes the decoder's features of the tower's; inside the tower where that merges patches itself."""
    has_cls: bool
    """Whether a CLS token stands before the patches of each image."""

    @property
    def num_layers(self) -> int:
        """Number of layers of a tower."""
        return len(self.layers[0])

    @property
    def merges(self) -> bool:
        """Whether the projector is a part of the tower, which merges flattened patches of images of any size."""
        return any(module is self.projector for module in self.towers[0].modules())


def find_tower(anatomy: Anatomy) -> Tower:
    """Find the vision tower of a model.

    Raises
    ------
    UnsupportedModelError
        If it has none that is known, with the reason.
    """
    model = anatomy.model
    owner = next((part for part in (getattr(model, "model", None), model) if hasattr(part, "get_image_features")), None)
    if owner is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} makes its vision features in no get_image_features(), as remote code does: its "
            "vision tower cannot be read. Take the checkpoint in transformers' own class, if there is one."
        )
    towers = tuple(part for name in _TOWERS if (part := getattr(owner, name, None)) is not None)
    layers = tuple(found for tower in towers if (found := _tower_layers(tower)))
    projectors = [getattr(part, name, None) for part in (owner, *towers) for name in _PROJECTORS]
    projector = next((part for part in projectors if part is not None), None)
    if not towers or len(layers) != len(towers) or projector is None:
        raise UnsupportedModelError(
            f"no vision tower with transformer layers and a projector behind it was found in {type(owner).__name__} "
            f"(looked for {', '.join((*_TOWERS, *_PROJECTORS))}): it cannot be read."
        )
    own = (name.rpartition(".")[2] for name, _ in towers[0].named_parameters())
    return Tower(owner, towers, layers, projector, has_cls=any(n in ("class_embedding", "cls_token") for n in own))


def _tower_layers(tower: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers of a vision tower, none if it has no list of them."""
    lists = (m for name, m in tower.named_modules() if name.rpartition(".")[2] in ("layers", "layer", "blocks"))
    return tuple(next((found for found in lists if isinstance(found, nn.ModuleList)), ()))


def inner_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside modules of PEFT, ``torch.compile`` and the like; itself if it is one.

    Raises
    ------
    UnsupportedModelError
        For modules that copy the model, cut its weights or add tokens to its prompt.
    """
    if isinstance(model, PreTrainedModel):
        return model
    name = type(model).__name__
    if isinstance(model, nn.DataParallel):
        raise UnsupportedModelError(f"{name} runs copies of the model: use one process per GPU, or its .module.")
    peft = getattr(model, "active_peft_config", None)
    kind = str(getattr(peft, "peft_type", "")).rpartition(".")[2]
    if getattr(peft, "is_prompt_learning", False) or getattr(peft, "is_adaption_prompt", False) or kind == "XLORA":
        raise UnsupportedModelError(
            f"{name} with {kind} adds tokens to the prompt or runs the model twice: of PEFT's adapters only those that "
            "change weights, such as LoRA, are supported."
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UnsupportedModelError("FullyShardedDataParallel cuts the weights into parts: load the model whole.")
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of a vision-language model.

    Parameters
    ----------
    model
        A transformers model with a ``config``; also remote code whose decoder layers are a ``ModuleList`` called
        ``layers``; also one of them inside a wrapper, see :func:`inner_model`.

    Raises
    ------
    UnsupportedModelError
        If the model has no decoder layers of the number that its config names, is a text-only model, or stands in a
        wrapper that changes what it computes.
    """
    model = inner_model(model)
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no config: pass a transformers model.")
    _check_refused(config.model_type)
    text_config = config.get_text_config(decoder=True)
    if text_config is config and hasattr(config, "llm_config"):  # OpenGVLab's remote code
        text_config = config.llm_config
    vision_token_ids = sorted(
        {int(value) for name in _PLACEHOLDERS if isinstance(value := getattr(config, name, None), int)}
    )
    if text_config is config and not vision_token_ids:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({config.model_type}) is a text-only model: it has no vision tokens."
        )
    get_decoder: Any = getattr(model, "get_decoder", None)
    start = model if get_decoder is None else get_decoder()
    decoder = module_with_layers(start, text_config.num_hidden_layers)
    if decoder is None:
        raise UnsupportedModelError(
            f"no module of {type(model).__name__} holds {text_config.num_hidden_layers} decoder layers in `layers`."
        )
    return Anatomy(
        model=model,
        decoder=decoder,
        layers=tuple(decoder.layers),  # type: ignore[arg-type]
        rotary=getattr(decoder, "rotary_emb", None),
        text_config=text_config,
        vision_token_ids=tuple(vision_token_ids),
        model_type=config.model_type,
        name=str(getattr(config, "_name_or_path", "") or ""),
    )


def module_with_layers(start: nn.Module, num_layers: int) -> nn.Module | None:
    """Return the outermost module in ``start`` that owns a list of so many ``layers``, None if there is none."""
    for module in start.modules():  # a parent comes before its children
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) == num_layers:
            return module
    return None


def check_support(anatomy: Anatomy, allow_untested: bool) -> None:
    """Raise :class:`UnsupportedModelError` for a refused family, and for an untested one unless allowed."""
    family = anatomy.model_type
    _check_refused(family)
    if unknown := sorted({anatomy.kind(layer) for layer in range(anatomy.num_layers)} - LAYERS):
        raise UnsupportedModelError(
            f"{family} has layers of type {', '.join(unknown)}: what they see of removed tokens is unknown."
        )
    if family not in TESTED | DECODER_TESTED and not allow_untested:
        raise UnsupportedModelError(
            f"{family} is not a tested family ({', '.join(sorted(TESTED | DECODER_TESTED))}). Pass allow_untested=True "
            "to go on, and compare its logits with those of masked attention before believing a number."
        )


def _check_refused(family: str) -> None:
    if family in REFUSED:
        raise UnsupportedModelError(f"{family} is not supported: {REFUSED[family]}.")
