"""The model that is talked to, and the methods it can be given."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vtw_eval.anatomy import Anatomy, find_anatomy
from vtw_eval.chat.features import KeptFeatures
from vtw_eval.cost.geometry import Geometry
from vtw_eval.methods import Method, parse_method
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.family import Family
from vtw_eval.models.loading import family_of, find_adapter, load
from vtw_eval.models.options import parse_options
from vtw_eval.verify.verdict import verify


@dataclass
class ChatModel:
    """A model in memory, for any number of conversations, of which one at a time is answered."""

    family: Family[Any]
    anatomy: Anatomy
    verify: bool
    """Whether each method is compared with masked attention before its first answer."""
    features: KeptFeatures = field(init=False)
    """The encoding of the last pictures."""
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    """Held while it answers: one method at a time can be installed."""
    geometry: Geometry | None = field(init=False)
    """Sizes that its FLOPs depend on; None where no closed form covers them."""

    plain_ids: bool | None = field(init=False, default=None)
    """Whether the tokenizer alone tells the ids of later turns as the processor does; None before it was compared."""

    def __post_init__(self) -> None:
        self.features = KeptFeatures(self.anatomy)
        try:
            self.geometry = Geometry.from_config(self.family.model.config)
        except ValueError:
            self.geometry = None

    def method(self, spec: str) -> Method:
        """Return a method that this model can have, checked.

        Raises
        ------
        ValueError
            If there is no such method, the model cannot have it, or it has to search a parameter first.
        VerificationError
            If it does not compute what it should with the installed packages.
        """
        method = parse_method(spec).bind(self.anatomy)
        if method.search is not None:
            raise ValueError(f"{spec} has to search a parameter on documents of a task first: give a number.")
        if self.verify:
            with self.lock:
                verify(self.family.model, method)
        return method


def open_model(
    pretrained: str, arguments: Mapping[str, Any], *, device: torch.device, verify: bool = True
) -> ChatModel:
    """Open a checkpoint of any family that has an adapter.

    Parameters
    ----------
    pretrained
        Folder or Hub id; "shapes" is the embedded one.
    arguments
        More options of the adapter, as for ``lmms_eval --model_args``.
    device
        Where it goes, unless a device map is given.
    verify
        See :class:`ChatModel`.

    Raises
    ------
    ValueError
        If no adapter opens it, an option is unknown, or the model cannot go on from its KV cache.
    """
    adapter = find_adapter(pretrained, str(arguments.get("revision", "main")))
    given = {**arguments, "pretrained": pretrained, "method": "baseline"}
    options, _ = parse_options(adapter, ADAPTERS[adapter].options, given)
    if not options.use_cache:
        raise ValueError("a conversation goes on from the KV cache: use_cache=False does not work with chat.")
    if family_of(adapter, replace(options, trust_remote_code=True))[0].auto_class == "AutoModel":
        raise ValueError(f"{pretrained} runs code of its own, which chat does not: take it in transformers' format.")
    family = load(adapter, options, simple=False, device=device)
    return ChatModel(family, find_anatomy(family.model), verify)
