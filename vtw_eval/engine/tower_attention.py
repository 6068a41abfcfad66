"""Attention and keys of a layer of a vision tower that has run, computed again from what entered it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtw_eval.engine.probes import attention_inputs

_CHUNK = 256
"""Queries whose rows of weights are in memory at a time."""
_LENGTHS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(frozen=True)
class Computed:
    """What was computed, and what it cost."""

    values: Tensor
    flops: int
    """Of matrix products."""


def tower_keys(layer: nn.Module, hidden: Tensor, options: Mapping[str, Any]) -> Computed:
    """Return the keys of a tower's layer, ``[..., tokens, heads, width]``, as its attention gets them.

    Parameters
    ----------
    layer
        Of the tower.
    hidden
        What entered it, ``[images, tokens, width]`` or ``[tokens, width]``.
    options
        Its other arguments.
    """
    found = attention_inputs(layer, hidden, _in_one(hidden, options), one_query=True)
    keys = found.key.transpose(1, 2).view(*hidden.shape[:-1], found.key.shape[1], -1)
    return Computed(keys, _projected(layer, hidden, one_query=True))


def received_attention(
    layer: nn.Module, hidden: Tensor, options: Mapping[str, Any], *, by: Literal["cls", "column"], joined: bool
) -> Computed:
    """Return the attention that tokens receive in a tower's layer.

    Parameters
    ----------
    layer, hidden, options
        As in :func:`tower_keys`.
    by
        Of the first token, or the mean over all queries that see a token.
    joined
        Take all heads as one.

    Returns
    -------
    Computed
        ``[..., heads, tokens]``, float32 or finer.
    """
    cls = by == "cls"
    found = attention_inputs(layer, hidden, _in_one(hidden, options), one_query=cls)
    query, key = found.query, found.key  # [images, heads, tokens, width]
    scaling = found.options.get("scaling") or query.shape[-1] ** -0.5
    if joined:
        query, key = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, key))
        scaling = query.shape[-1] ** -0.5
    images, heads, tokens, width = key.shape
    total = torch.zeros(images, heads, tokens, dtype=torch.promote_types(key.dtype, torch.float32), device=key.device)
    seen = torch.zeros(images, 1, tokens, dtype=total.dtype, device=key.device)
    flops = _projected(layer, hidden, one_query=cls)
    for begin, end in _sequences(tokens, options):
        for start in range(begin, 1 if cls else end, _CHUNK):
            stop = 1 if cls else min(start + _CHUNK, end)
            scores = query[:, :, start:stop] @ key[:, :, begin:end].mT * scaling
            visible = _visible(found.mask, start, stop, begin, end, scores)
            weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=total.dtype)
            real = visible.diagonal(start - begin, -2, -1)[..., None]  # a padded query does not see itself
            total[:, :, begin:end] += (weights * real).sum(dim=2)
            seen[:, :, begin:end] += (visible & real).sum(dim=2)
            flops += 2 * images * heads * (stop - start) * (end - begin) * width
    return Computed((total / seen.clamp(min=1)).view(*hidden.shape[:-2], heads, tokens), flops)


def _visible(mask: Tensor | None, start: int, stop: int, begin: int, end: int, scores: Tensor) -> Tensor:
    """Return which keys some queries see, boolean ``[images or 1, 1, queries, keys]``."""
    if mask is None:
        return torch.ones(1, 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
    if mask.ndim == 2:  # which tokens are there
        return mask.bool()[:, None, None, begin:end].expand(-1, -1, stop - start, -1)
    part = mask[:, :, start:stop, begin:end] if mask.shape[-2] > 1 else mask[..., begin:end]
    part = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    return part.expand(-1, -1, stop - start, -1)


def _sequences(tokens: int, options: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return begin and end of the parts that do not see each other: images, frames or windows."""
    ends = next((options[name] for name in _LENGTHS if options.get(name) is not None), None)
    if ends is None:
        return [(0, tokens)]
    places = [int(end) for end in ends.tolist()]
    return [(begin, end) for begin, end in itertools.pairwise(places) if end > begin]


def _in_one(hidden: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's arguments with which its attention is called once, for all parts."""
    tokens = hidden.shape[-2]
    ends = {name: options[name].new_tensor([0, tokens]) for name in _LENGTHS if options.get(name) is not None}
    return {**options, **ends}


def _projected(layer: nn.Module, hidden: Tensor, *, one_query: bool) -> int:
    """FLOPs of the projections that run again."""
    images, tokens = (1, len(hidden)) if hidden.ndim == 2 else hidden.shape[:2]
    found = 0
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        inside = name.rpartition(".")[2]
        where = {"qkv": tokens, "k_proj": tokens, "q_proj": 1 if one_query else tokens, "v_proj": 1}.get(inside)
        if where is not None:
            found += 2 * images * where * module.in_features * module.out_features
    return found
