"""The sizes of a model that its costs depend on, from numbers or from a transformers config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from vtw_eval.anatomy import module_with_layers

_TOWERS = ("clip_vision_model", "siglip_vision_model")
_PROJECTED = ("llava", "llava_next", "llava_onevision", "paligemma", "video_llava", "vipllava")
"""Families whose projector is a chain of linear layers on each feature that the tower hands on."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """A plain vision transformer (CLIP, SigLIP, InternViT) that sees images of one size."""

    layers: int
    """Layers that run; all of them, also where the features are taken from an earlier one."""
    hidden: int
    ffn: int
    heads: int
    tokens: int
    """Tokens per image, with the CLS token if there is one."""
    patches: int
    """Patches per image."""
    patch_dim: int
    """Numbers per patch, ``3 * patch * patch``."""
    features: int
    """Features per image that the projector gets."""
    gated: bool = False
    """Whether the FFN has three matrices instead of two."""
    images: int = 1
    """Images, tiles or frames that are encoded."""
    frame_features: int | None = None
    """Features per frame of a video, where images lose some that frames keep; None where they have as many."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a decoder-only language model and, where it has a closed form, of what makes its vision tokens."""

    name: str
    """For messages, and for defaults that depend on the checkpoint."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    """Whether the FFN has three matrices (gate, up, down) instead of two."""
    vocab: int
    """Rows of the language-model head."""
    vision: VisionGeometry | None = None
    projector: tuple[tuple[int, int], ...] = ()
    """Inputs and outputs of the projector's linear layers."""
    vision_tokens: int | None = None
    """Vision tokens in a prompt with one image (or video), None where it depends on the image."""
    windows: tuple[int | None, ...] = ()
    """Sliding window of each layer's KV cache, None for none; empty if no layer has one."""
    no_vision: str = "the geometry names no vision tower"
    """Why :attr:`vision` is None, where it is."""

    def video_tokens(self, frames: int) -> int | None:
        """Return the vision tokens of a video of so many frames, None where it is not known that a frame has as many.

        Known where :attr:`vision_tokens` are the features of all images that the tower sees: not with tiles, pooling or
        other packing of videos.
        """
        tower = self.vision
        if tower is None or self.vision_tokens != tower.images * tower.features:
            return None
        return frames * (tower.frame_features or tower.features)

    @property
    def layer_macs(self) -> int:
        """Multiply-adds of one layer's matrices on one token: q, k, v, o and FFN, no attention products."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def key_macs(self) -> int:
        """Multiply-adds of one layer's k and v matrices on one token: all that a frozen vision token costs there."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def head_macs(self) -> int:
        """Multiply-adds of the language-model head on one token."""
        return self.hidden * self.vocab

    @classmethod
    def from_config(cls, config: Any, name: str = "") -> Geometry:
        """Read the sizes from a transformers config.

        The numbers come from the config and are compared with the matrices of the model itself, which is built
        without memory (meta device): a model whose layers hold anything else is refused.

        Parameters
        ----------
        config
            A ``PreTrainedConfig`` of a vision-language or language model.
        name
            Name of the geometry; by default the config's.

        Raises
        ------
        ValueError
            If the closed forms do not describe the model: mixture of experts, layers that differ from each other,
            attention or FFN of another shape, or no modelling code in transformers.
        """
        text = config.get_text_config(decoder=True)
        _refuse_experts(text)
        missing = [field for field in ("hidden_size", "num_attention_heads") if not hasattr(text, field)]
        if missing:
            raise ValueError(f"{text.model_type} is no transformer of the usual kind: it has no {missing[0]}.")
        model = _on_meta(config)
        layers = _decoder_layers(model, text.num_hidden_layers)
        gated = cls(
            name=name or str(getattr(config, "_name_or_path", "") or config.model_type),
            layers=len(layers),
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            ffn=_ffn(text),
            gated=True,
            vocab=model.get_output_embeddings().weight.shape[0],
            windows=_windows(text),
            **_vision(config, model),
        )
        found = {_matrices(layer) for layer in layers}
        if len(found) > 1:
            raise ValueError(
                f"the layers of {text.model_type} differ from each other: no closed form here covers that."
            )
        weights = sum(rows * columns for _, (rows, columns) in next(iter(found)))
        for geometry in (gated, plain := replace(gated, gated=False)):
            if weights == geometry.layer_macs:
                return geometry
        raise ValueError(
            f"the costs of {text.model_type} have no closed form here: by its config a layer has {gated.layer_macs} "
            f"weights with a gated FFN and {plain.layer_macs} with a plain one, but it has {weights}."
        )

    @property
    def cache_limits(self) -> Tensor:
        """Sliding windows as float64 ``[layers]``, infinity for none."""
        windows = self.windows or (None,) * self.layers
        return torch.tensor([torch.inf if window is None else window for window in windows], dtype=torch.float64)


def _matrices(layer: nn.Module) -> tuple[tuple[str, tuple[int, int]], ...]:
    """Return name, rows and columns of all weights of a layer that are no vectors."""
    return tuple((name, (p.shape[0], p[0].numel())) for name, p in layer.named_parameters() if p.ndim > 1)


def _refuse_experts(text: Any) -> None:
    for field in _EXPERTS:
        number = getattr(text, field, None)
        if isinstance(number, int) and number > 1:
            raise ValueError(
                f"{text.model_type} is a mixture of experts ({field}={number}): what a token costs depends on its "
                "experts, and no closed form here covers that."
            )


def _ffn(text: Any) -> int:
    for field in ("intermediate_size", "ffn_dim", "n_inner"):
        size = getattr(text, field, None)
        if isinstance(size, int):
            return size
        if size is not None:
            raise ValueError(
                f"the layers of {text.model_type} differ from each other: its {field} is no single number."
            )
    return 4 * text.hidden_size


def _windows(text: Any) -> tuple[int | None, ...]:
    """Ask transformers' own cache which layers keep a window only."""
    windows = tuple(getattr(layer, "sliding_window", None) for layer in DynamicCache(config=text).layers)
    return windows if any(windows) else ()


def _on_meta(config: Any) -> Any:
    """Build the model without memory."""
    for known, factory in (
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    ):
        if type(config) in known:
            with torch.device("meta"):
                return factory.from_config(config)
    raise ValueError(
        f"transformers {transformers.__version__} has no vision-language or causal language model for "
        f"{type(config).__name__} ({config.model_type})."
    )


def _decoder_layers(model: Any, number: int) -> nn.ModuleList:
    decoder = module_with_layers(model.get_decoder(), number)
    if decoder is not None:
        return cast(nn.ModuleList, decoder.layers)
    raise ValueError(f"no module of {type(model).__name__} holds {number} decoder layers in `layers`.")


def _vision(config: Any, model: Any) -> dict[str, Any]:
    """Return tower, projector and vision tokens per image, or the reason why they have no closed form."""
    tower = getattr(config, "vision_config", None)
    if tower is None:
        return {"no_vision": f"{config.model_type} has no vision tower"}
    if tower.model_type not in _TOWERS:
        return {"no_vision": f"a tower of type {tower.model_type} has no closed form here ({', '.join(_TOWERS)} have)"}
    if config.model_type not in _PROJECTED:
        return {"no_vision": f"the projector of {config.model_type} has no closed form here"}
    clip = tower.model_type == "clip_vision_model"
    if not clip and tower.vision_use_head:
        return {"no_vision": "its SigLIP tower has a pooling head (vision_use_head), which has no closed form here"}
    patches = (tower.image_size // tower.patch_size) ** 2
    tokens = patches + clip
    select = "default" if config.model_type == "vipllava" else "full"
    features = tokens - (getattr(config, "vision_feature_select_strategy", select) == "default")  # without the first
    projector = [m.weight.shape for m in model.model.multi_modal_projector.modules() if isinstance(m, nn.Linear)]
    return {
        "vision": VisionGeometry(
            layers=tower.num_hidden_layers,
            hidden=tower.hidden_size,
            ffn=tower.intermediate_size,
            heads=tower.num_attention_heads,
            tokens=tokens,
            patches=patches,
            patch_dim=tower.num_channels * tower.patch_size**2,
            features=features,
            frame_features=tokens if config.model_type == "video_llava" else None,
        ),
        "projector": tuple((int(inputs), int(outputs)) for outputs, inputs in projector),
        "vision_tokens": None if config.model_type in ("llava_next", "llava_onevision") else features,
    }
