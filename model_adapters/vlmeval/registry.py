"""Names under which VLMEvalKit finds our models, and putting them into its tables."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from vtw_eval.checkpoints import KNOWN
from vtw_eval.model_adapters.vlmeval.models import CLASSES, VTWKitModel

CHECKPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    entry.name: (
        entry.adapter,
        {"pretrained": entry.hub[0], **({"trust_remote_code": True} if entry.trust_remote_code else {})},
    )
    for entry in KNOWN
    if entry.k is not None
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
