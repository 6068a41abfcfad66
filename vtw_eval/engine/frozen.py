"""Layers that leave vision tokens as they are: text attends to them, they attend to nothing and no FFN sees them.

The layer runs on the other tokens alone. Keys and values of vision tokens are those of the states that enter it, so
they are projected beside it and joined with its own on their way into the KV cache, which stays full: a decode step
finds what it always finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.arguments import cut_others, cut_per_layer, pick_tokens
from vtw_eval.engine.cache import key_slots
from vtw_eval.engine.calls import MASK, cache_of, changed, entering, layer_output, with_cache
from vtw_eval.engine.layout import pick, right_aligned
from vtw_eval.engine.masks import MaskKind, built_mask
from vtw_eval.engine.probes import keys_and_values
from vtw_eval.engine.step import Step
from vtw_eval.engine.wrappers import is_compiled

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Split:
    """Which slots of a layer are updated: as many in each row, those of a shorter one filled up with frozen ones."""

    updated: Tensor
    """Boolean ``[rows, slots]``."""
    runs: Tensor
    """Long ``[rows, n]``: the slots on which the layer runs, in ascending order but for those that fill up."""
    rests: Tensor
    """Long ``[rows, slots - n]``: the others."""
    back: Tensor
    """Long ``[rows, slots]``: where each slot stands when ``rests`` and then ``runs`` are side by side."""


class Freezer:
    """Runs layers on text tokens alone.

    Parameters
    ----------
    anatomy
        The model.
    kind
        Which masks its attention takes.

    Raises
    ------
    ValueError
        If the model's layers cannot run so.
    """

    def __init__(self, anatomy: Anatomy, kind: MaskKind) -> None:
        if kind == "validity":
            raise ValueError(
                "layers that leave vision tokens as they are cannot run under FlashAttention, which takes no mask of "
                "text tokens among others: load the model with attn_implementation='sdpa'."
            )
        for layer in anatomy.layers:
            attention = getattr(layer, "self_attn", None)
            if missing := [name for name in _PROJECTIONS if not hasattr(attention, name)]:
                raise ValueError(
                    "layers that leave vision tokens as they are need keys and values without queries, but this "
                    f"model's layers have no projection of their own for them (self_attn.{missing[0]})."
                )
            if any(map(is_compiled, layer.modules())):
                raise ValueError(
                    "layers that were compiled one by one cannot leave vision tokens as they are: load the model anew "
                    "and compile it as a whole, or not."
                )
        self.anatomy = anatomy
        self.kind = kind

    def run(
        self, i: int, forward: Callable[..., Any], step: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Return what layer ``i`` gives in a prefill, vision tokens and padding as they came.

        Parameters
        ----------
        i
            The layer.
        forward
            Its own forward.
        step
            The pass.
        args, kwargs
            What the layer gets, cut to its tokens.

        Raises
        ------
        UpstreamChangedError
            If the layer does not hand its keys and values to a KV cache.
        """
        layer = self.anatomy.layers[i]
        hidden, given = entering(layer, args, kwargs)
        split = step.once(step.layout, step.reduction, lambda: _split(step), "split")
        cache = cache_of(given)
        joining = _Joining(cache, split)
        if split.rests.shape[1]:
            rest = {**self._cut(i, step, split.rests, hidden, given, masked=False), MASK: None}
            states = pick(hidden, split.rests, -2)
            joining.frozen = keys_and_values(layer, states, rest, self.anatomy.text_config, queries=False)
        own = self._cut(i, step, split.runs, hidden, given)
        output = forward(pick(hidden, split.runs, -2), **with_cache(layer, own, joining))
        if not joining.joined:
            raise changed(f"decoder layer {i} does not hand its keys and values to a KV cache")
        rest_and_own = torch.cat([pick(hidden, split.rests, -2), layer_output(output)], dim=1)
        updated = split.updated.to(hidden.device)[:, :, None]
        full = torch.where(updated, pick(rest_and_own, split.back, -2), hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _cut(
        self, i: int, step: Step, places: Tensor, hidden: Tensor, kwargs: Mapping[str, Any], *, masked: bool = True
    ) -> dict[str, Any]:
        """Return a layer's arguments for some of its tokens as queries; all of them stay keys, if there is a mask."""
        (rows, slots), layout = hidden.shape[:2], step.layout

        def once(source: Any, make: Callable[[], Any], *more: Any) -> Any:
            return step.once(layout, source, make, id(places), *more)

        def embeddings(parts: Any) -> Any:
            return once(parts, lambda: tuple(pick(part, places, -2) for part in parts))

        def mask(given: Tensor | None) -> Tensor:
            keys = key_slots(cache_of(kwargs), i, 0, slots, step.total)
            return once(given, lambda: self._mask(given, places, slots, keys, step).to(hidden.device), keys)

        per_layer = cut_per_layer(
            kwargs,
            self.kind,
            mask=mask if masked else lambda given: given,
            embeddings=embeddings,
            positions=lambda at: once(at, lambda: pick(at, places, -1)),
        )
        return {**kwargs, **per_layer, **cut_others(i, kwargs, rows, slots, lambda value: pick_tokens(value, places))}

    def _mask(self, mask: Tensor | None, places: Tensor, slots: int, keys: int, step: Step) -> Tensor:
        """Return the rows of a layer's mask that belong to some tokens."""
        if mask is not None:
            return pick(mask.movedim(1, 0), places, -2).movedim(0, 1)
        at = torch.arange(keys, device=places.device).expand(len(places), -1)
        return built_mask(self.kind, places, at, at < slots, dtype=step.dtype)


def _split(step: Step) -> Split:
    """Return which of the current tokens are updated: text, and what of an answer is in the pass."""
    prompt, layout = step.reduction.prompt, step.layout
    updated = prompt.valid & ~prompt.vision
    if layout is not None:
        updated = updated.gather(1, layout.index) & layout.valid
    slots = updated.shape[1]
    order, _ = right_aligned(updated, slots)
    rests = slots - int(updated.sum(dim=1).max())
    return Split(updated, order[:, rests:], order[:, :rests], order.argsort(dim=1))


class _Joining(Cache):
    """Takes the keys and values of some tokens for the KV cache of a layer, and adds those of the others.

    Parameters
    ----------
    cache
        The cache, None without one.
    split
        Which tokens are which.
    """

    def __init__(self, cache: Cache | None, split: Split) -> None:  # no layers of its own
        self.cache = cache
        self.split = split
        self.frozen: tuple[Tensor, Tensor] | None = None
        self.joined = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens, those before this pass included, as the cache does."""
        self.joined = True
        keys, values = self._all(0, key_states), self._all(1, value_states)
        return (keys, values) if self.cache is None else self.cache.update(keys, values, layer_idx, *args, **kwargs)

    def _all(self, which: int, own: Tensor) -> Tensor:
        """Return the keys (0) or values (1) of all slots, ``[rows, heads, slots, width]``."""
        states = own if self.frozen is None else torch.cat([self.frozen[which], own], dim=2)
        return pick(states.transpose(1, 2), self.split.back, -3).transpose(1, 2)
