"""What prompts begin with, run once by the unchanged model, for VTW at every k."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.calls import EMBEDDINGS, POSITIONS, changed, check_embeddings, check_layer_call, entering
from vtw_eval.engine.layout import pick, right_aligned
from vtw_eval.engine.prefix import Prefix, run_prefix
from vtw_eval.engine.wrappers import uncompiled


@dataclass(frozen=True)
class Beginnings:
    """What prompts begin with, run once by the unchanged model, and what each k needs of it."""

    prefix: Prefix
    before: Tensor
    """Places of the text in front of the first vision token, long ``[prefixes, tokens]``, padded on the left."""
    before_valid: Tensor
    behind: Tensor
    """Places of the text tokens that follow the first vision token, padded on the left."""
    behind_valid: Tensor
    entered: Mapping[int, Entered]
    """By layer, from the first k on: the tokens of ``behind`` as they enter it."""


@dataclass(frozen=True)
class Entered:
    """Some tokens as they enter a layer."""

    hidden: Tensor
    embeddings: tuple[Tensor, ...] | None
    positions: Tensor | None

    def rows(self, index: Tensor) -> Entered:
        """Return those of some rows."""

        def chosen(tensor: Tensor, dim: int) -> Tensor:
            return tensor if tensor.shape[dim] == 1 and len(self.hidden) > 1 else tensor.index_select(dim, index)

        embeddings = None if self.embeddings is None else tuple(chosen(part, -3) for part in self.embeddings)
        return Entered(self.hidden[index], embeddings, None if self.positions is None else chosen(self.positions, -2))


def begin(anatomy: Anatomy, inputs: Mapping[str, Any], ks: Sequence[int]) -> Beginnings:
    """Run what prompts begin with.

    Parameters
    ----------
    anatomy
        The model; no method is installed on it.
    inputs
        Keyword arguments of ``generate``: ``input_ids`` and ``attention_mask``, padded on the left, and the media.
    ks
        The k that will be asked for, in ascending order; each below the number of layers.

    Raises
    ------
    ValueError
        If a prompt shows nothing before its own tokens.
    """
    valid = inputs["attention_mask"].bool()
    vision = anatomy.is_vision(inputs["input_ids"]) & valid
    if not bool(vision.any(dim=1).all()):
        raise ValueError("a prompt has no vision token among those that it begins with.")
    early = vision.cumsum(dim=1) == 0
    before, late = valid & early, valid & ~early & ~vision
    behind, behind_valid = right_aligned(late, int(late.sum(dim=1).max()))
    entered: dict[int, Entered] = {}
    handles = []

    def note(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, named = entering(layer, args, kwargs)
        check_layer_call(i, named)
        parts, places = named.get(EMBEDDINGS), named.get(POSITIONS)
        if parts is not None:
            check_embeddings(parts, *hidden.shape[:2])
            parts = tuple(pick(part, behind, -2) for part in parts)
        places = None if places is None else pick(places, behind, -1)
        entered[i] = Entered(pick(hidden, behind, -2), parts, places)

    layers = range(min(ks, default=anatomy.num_layers), anatomy.num_layers)
    for i in layers:
        handles.append(anatomy.layers[i].register_forward_pre_hook(functools.partial(note, i), with_kwargs=True))
    try:
        with uncompiled(anatomy.decoder, anatomy.layers), torch.no_grad():
            prefix = run_prefix(anatomy.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(entered) != len(layers):
        raise changed(f"{len(entered)} of the {len(layers)} hooks on decoder layers have run")
    return Beginnings(prefix, *right_aligned(before, int(before.sum(dim=1).max())), behind, behind_valid, entered)
