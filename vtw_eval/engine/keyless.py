"""Masks of layers that keep no keys of their own: recurrences and convolutions, and layers that share another's keys.

A recurrence or a convolution (Gated DeltaNet in Qwen3.5, short convolutions in LFM2) runs over what is left as if the
prompt had been written without the rest: its neighbours are the tokens that are left, its state never saw the others.
It gets a 2-D mask of padding, and none while decoding.

A layer that shares keys (the last ones of small Gemma 4 models) attends to those of an earlier layer, which may hold
tokens that are gone by now: their columns are hidden, in the prefill and in each decode step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtw_eval.engine.cache import is_static
from vtw_eval.engine.calls import MASK, SHARED, cache_of, changed
from vtw_eval.engine.layout import Layout
from vtw_eval.engine.masks import MaskKind, built_mask, check_mask, gathered_mask, key_places
from vtw_eval.engine.step import Step


def recurrent_mask(layer: int, step: Step, layout: Layout, mask: Tensor | None) -> Tensor | None:
    """Return the mask of a recurrence or a convolution: boolean ``[rows, slots]`` in a prefill with padding, else None.

    Parameters
    ----------
    layer
        Its index, for messages.
    step
        The pass.
    layout
        The tokens that the layer gets.
    mask
        The model's: 2-D, of the tokens of this pass, or None; a decode step keeps it.

    Raises
    ------
    ValueError
        If tokens were merged: their size has no meaning here.
    UpstreamChangedError
        If the model's mask is of another kind.
    """
    if mask is not None and (mask.ndim != 2 or mask.shape[1] != step.queries):
        raise changed(f"layer {layer}, which is recurrent, gets a mask of shape {tuple(mask.shape)}")
    if layout.size is not None:
        raise ValueError(f"layer {layer} is recurrent: it cannot weigh merged tokens by their size.")
    if step.decoding:
        return mask
    return layout.valid if layout.padded else None


def sharing_mask(
    layer: int, source: int, kind_of_layer: str, step: Step, layout: Layout, kwargs: Mapping[str, Any], kind: MaskKind
) -> Tensor | None:
    """Return the mask of a layer that attends to the keys of an earlier one.

    Parameters
    ----------
    layer, source
        Indices of the layer and of the one whose keys it shares.
    kind_of_layer
        Under which the keys are found among those that are shared.
    step
        The pass.
    layout
        The tokens that the layer gets, all of them among those that the earlier layer got.
    kwargs
        The layer's arguments.
    kind
        Of its attention's masks.

    Returns
    -------
    Tensor or None
        ``[rows, heads, queries, keys]``; None where a causal mask is meant and right.

    Raises
    ------
    ValueError
        For FlashAttention, static caches, merged tokens and rearranged positions, where the keys do not fit.
    UpstreamChangedError
        If the keys are not where they were.
    """
    if kind == "validity":
        raise ValueError(f"FlashAttention cannot hide what layer {layer} shares with layer {source}: take 'sdpa'.")
    cache = cache_of(kwargs)
    if cache is not None and is_static(cache.layers[source]):
        raise ValueError(f"layer {layer} shares the keys of layer {source}: a static cache is not supported.")
    held = step.reduction.layouts[source]
    if layout.size is not None or (layout.shift is not None and layout is not held):
        raise ValueError(
            f"layer {layer} shares the keys of layer {source}: tokens cannot be merged, nor rearranged behind it."
        )
    mask = kwargs[MASK]
    rows, total, length = len(layout.index), step.total, step.reduction.prompt.length
    check_mask(mask, kind, rows, step.queries)
    keys = _shared_keys(layer, kind_of_layer, kwargs)
    if mask is None and layout is held and not layout.padded:
        return None
    held = held or _whole(step)
    index, valid = key_places(held, length, total, keys)
    device = layout.index.device
    still = torch.nn.functional.pad(step.reduction.kept(layer), (0, total - length), value=True)
    valid = valid & still.gather(1, index)
    queries = None if step.decoding else layout.index
    pads = ~layout.valid if not step.decoding and layout.padded else None
    first = keys - layout.slots
    if mask is not None:
        return gathered_mask(mask, queries, index, valid, total=total, pads=pads, first=first)
    at = torch.arange(total - step.queries, total, device=device)[None] if queries is None else queries
    return built_mask(kind, at, index, valid, dtype=step.dtype, pads=pads, first=first)


def _shared_keys(layer: int, kind_of_layer: str, kwargs: Mapping[str, Any]) -> int:
    """Return how many keys a layer shares."""
    try:
        keys, _ = kwargs[SHARED][kind_of_layer]
    except (KeyError, TypeError, ValueError):
        raise changed(f"layer {layer} finds no keys of a layer of type {kind_of_layer} in {SHARED}") from None
    return int(keys.shape[-2])


def _whole(step: Step) -> Layout:
    """Return the layout of a layer that gets the whole prompt."""
    valid = step.reduction.prompt.valid
    index = torch.arange(valid.shape[1], device=valid.device).expand(len(valid), -1)
    return Layout(index, valid, padded=not bool(valid.all()))
