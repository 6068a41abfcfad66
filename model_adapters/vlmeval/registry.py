"""Names under which VLMEvalKit finds our models, and putting them into its tables."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from vtw_eval.model_adapters.vlmeval import models
from vtw_eval.model_adapters.vlmeval.models import VTWKitModel

CLASSES: Mapping[str, Any] = {
    cls.adapter: cls for cls in (models.LlavaVTW, models.Qwen2VLVTW, models.InternVLVTW, models.VideoLlavaVTW)
}
"""Class of each adapter."""

CHECKPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "LLaVA-1.5-7B": ("llava_vtw", {"pretrained": "llava-hf/llava-1.5-7b-hf"}),
    "LLaVA-1.5-13B": ("llava_vtw", {"pretrained": "llava-hf/llava-1.5-13b-hf"}),
    "LLaVA-NeXT-7B": ("llava_vtw", {"pretrained": "llava-hf/llava-v1.6-vicuna-7b-hf"}),
    "Video-LLaVA-7B": ("video_llava_vtw", {"pretrained": "LanguageBind/Video-LLaVA-7B-hf"}),
    "Qwen2-VL-2B": ("qwen2vl_vtw", {"pretrained": "Qwen/Qwen2-VL-2B-Instruct"}),
    # The only released code of this checkpoint is its own, which the kit's entry runs too.
    "InternVL2-4B": ("internvl_vtw", {"pretrained": "OpenGVLab/InternVL2-4B", "trust_remote_code": True}),
}
"""Adapter and arguments of the checkpoints that the VTW paper reports."""

METHODS: Mapping[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "VTW": {"method": "vtw"},
    "FastV": {"method": "fastv", "k": 2, "r": 0.5},
}
"""Arguments of the methods by the ending of a named model; VTW takes the paper's k for the checkpoint."""


def entries() -> dict[str, functools.partial[VTWKitModel]]:
    """Return every name of ours with what makes its model: the adapters, and each checkpoint with each method."""
    found = {adapter: functools.partial(cls) for adapter, cls in CLASSES.items()}
    for checkpoint, (adapter, arguments) in CHECKPOINTS.items():
        for ending, method in METHODS.items():
            found[f"{checkpoint}-{ending}"] = functools.partial(CLASSES[adapter], **arguments, **method)
    return found


def register() -> None:
    """Put the names into ``supported_VLM`` and the classes into ``vlmeval.vlm``, where ``--config`` finds them."""
    import vlmeval.vlm
    from vlmeval.config import supported_VLM

    supported_VLM.update(entries())
    for cls in CLASSES.values():
        setattr(vlmeval.vlm, cls.__name__, cls)


def class_of(config: Mapping[str, Any]) -> type[VTWKitModel] | None:
    """Return the class that a model's entry in a ``--config`` file names, if it is one of ours."""
    return next((cls for cls in CLASSES.values() if cls.__name__ == config.get("class")), None)


def is_ours(maker: Any) -> bool:
    """Tell whether an entry of ``supported_VLM`` makes a model of ours."""
    made = maker.func if isinstance(maker, functools.partial) else maker
    return inspect.isclass(made) and issubclass(made, VTWKitModel)
