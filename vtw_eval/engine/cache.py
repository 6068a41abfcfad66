"""A KV cache whose layers hold different numbers of tokens, told to the model as if none were missing."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from vtw_eval.engine.calls import changed
from vtw_eval.engine.layout import Reduction


class ReducedCache(Cache):
    """Mixin of a cache with removed tokens.

    Position ids and masks of a decode step are sized from the cache (from its first layer, or its first layer with
    full attention), so it answers with the length that the sequence would have with all tokens.
    """

    reduction: Reduction

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the sequence so far, removed tokens counted."""
        held = super().get_seq_length(layer_idx)
        return held + self.reduction.missing(self._with_keys(layer_idx)) if held else held

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Mask length and offset of the cache that would hold all tokens."""
        layer_idx = self._with_keys(layer_idx)
        missing = self.reduction.missing(layer_idx)
        if not missing or not super().get_seq_length(layer_idx):
            return super().get_mask_sizes(query_length, layer_idx)
        layer: Any = self.layers[layer_idx]
        if is_static(layer):  # the mask is as long as the buffer
            return super().get_mask_sizes(query_length, layer_idx)
        if hasattr(layer, "sliding_window"):
            full = copy.copy(layer)
            full.cumulative_length = layer.cumulative_length + missing
            return full.get_mask_sizes(query_length)
        length, offset = layer.get_mask_sizes(query_length)
        return length + missing, offset

    def _with_keys(self, layer_idx: int) -> int:
        """Return the layer that answers for a layer: the first one has no length where it holds a recurrent state."""
        if layer_idx or not self.layers or has_keys(self.layers[0]):
            return layer_idx
        return next(i for i, layer in enumerate(self.layers) if has_keys(layer))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens, generated ones only."""
        if self.get_seq_length() - abs(tokens_to_remove) < self.reduction.prompt.length:
            raise ValueError("a cache with removed tokens can forget generated tokens, not tokens of the prompt.")
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(self.reduction.prompt.valid.shape[0]).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        self.reduction = self.reduction.rows(torch.as_tensor(rows, device=self.reduction.prompt.valid.device))


@functools.cache
def _reduced_class(cls: type[Cache]) -> type[Cache]:
    return type(f"Reduced{cls.__name__}", (ReducedCache, cls), {})


def reduce_cache(cache: Cache, reduction: Reduction) -> None:
    """Make a cache object a :class:`ReducedCache`: its class changes, its tensors do not.

    Raises
    ------
    TypeError
        If it is not a transformers ``Cache``.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cannot remove tokens from a KV cache of type {type(cache).__name__}.")
    if not isinstance(cache, ReducedCache):
        cache.__class__ = _reduced_class(type(cache))  # type: ignore[arg-type]
    cache.reduction = reduction  # type: ignore[attr-defined]


def is_static(layer: object) -> bool:
    """Whether a cache layer is a buffer of fixed length."""
    return StaticLayer in type(layer).__mro__  # isinstance() is slow for abstract base classes


def has_keys(layer: object) -> bool:
    """Whether a cache layer holds keys and values, and no state of a recurrence nor those of another layer."""
    return CacheLayerMixin in type(layer).__mro__


def check_cache(cache: Cache, reduction: Reduction, total: int) -> None:
    """Check after a pass that each layer of a cache holds what its layout says.

    Buffers of fixed length are left out: they know their length on the accelerator only, and the host would wait.
    Layers without keys of their own have no length.

    Parameters
    ----------
    cache
        After the pass.
    reduction
        Which of the prompt's tokens a layer holds.
    total
        Length of the sequence after the pass, removed tokens counted.

    Raises
    ------
    UpstreamChangedError
        If a layer holds more, less or nothing.
    """
    layers: list[Any] = cache.layers
    if len(layers) != len(reduction.layouts):
        raise changed(f"the KV cache has {len(layers)} layers, the decoder {len(reduction.layouts)}")
    for i, (layer, gone) in enumerate(zip(layers, reduction.gone, strict=True)):
        if not has_keys(layer) or is_static(layer):
            continue
        if (held := layer.get_seq_length()) != total - gone:
            raise changed(f"the KV cache holds {held} tokens of decoder layer {i}, which got {total - gone}")


def key_slots(cache: Cache | None, layer: int, held: int, queries: int, total: int) -> int:
    """Return how many keys attention gets in a layer.

    Parameters
    ----------
    cache
        The KV cache before this pass's update, None without one.
    layer
        Layer index.
    held
        Slots of earlier passes, if nothing was cut off by a sliding window.
    queries
        Tokens of this pass.
    total
        Length of the sequence after this pass, removed tokens counted.

    Raises
    ------
    ValueError
        For a static sliding-window buffer that has to roll: its slots cannot be told apart.
    """
    if cache is None or layer >= len(cache.layers):
        return held + queries
    slots: Any = cache.layers[layer]
    if is_static(slots):
        window = getattr(slots, "sliding_window", None)
        if window is not None and total > window:
            raise ValueError("a static cache with sliding windows shorter than the sequence is not supported.")
        return int(slots.max_cache_len)
    if slots.is_initialized and slots.keys.numel():
        return int(slots.keys.shape[-2]) + queries  # a sliding layer holds its window only
    return queries
