"""What a decoder layer gets of the whole prompt, cut to the tokens that enter it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.cache import key_slots
from vtw_eval.engine.calls import EMBEDDINGS, MASK, PER_LAYER, POSITIONS, cache_of, check_embeddings
from vtw_eval.engine.keyless import recurrent_mask, sharing_mask
from vtw_eval.engine.layout import Layout, pick
from vtw_eval.engine.masks import MaskKind, check_mask, reduced_mask
from vtw_eval.engine.step import Step


class Arguments:
    """Cuts the arguments of layers to their layouts.

    Parameters
    ----------
    anatomy
        The model.
    kind
        Which masks its attention takes; None where nothing will be cut.
    """

    def __init__(self, anatomy: Anatomy, kind: MaskKind | None) -> None:
        self.anatomy = anatomy
        self.kind = kind
        # Whether all layers get the same mask, so that one of them can tell what the others need.
        layers = range(anatomy.num_layers)
        self.uniform = (
            len({anatomy.kind(i) for i in layers}) < 2
            and anatomy.plain_cache
            and all(anatomy.sliding_window(i) is None for i in layers)
        )

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer whose mask does not carry it (FlashAttention), else None."""
        return self.anatomy.sliding_window(layer) if self.kind == "validity" else None

    def cut(self, layer: int, step: Step, layout: Layout, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a layer, cut to its layout.

        Raises
        ------
        ValueError
            If the layer gets something per token of which it is not known how to cut it.
        UpstreamChangedError
            If masks or position embeddings are not what they were.
        """
        sources = tuple(kwargs.get(name) for name in PER_LAYER)
        before = step.cut
        same = before is not None and before[0] is layout and all(map(operator.is_, before[1], sources))
        if not (same and self.uniform):
            before = step.cut = (layout, sources, self._per_layer(layer, step, layout, kwargs))
        assert before is not None
        new = {**kwargs, **before[2]}
        if step.decoding:
            return new
        rows, length = step.reduction.prompt.valid.shape

        def cut(value: Tensor) -> Tensor:
            return step.once(layout, value, functools.partial(pick_tokens, value, layout.index))

        return {**new, **cut_others(layer, kwargs, rows, length, cut)}

    def _per_layer(self, layer: int, step: Step, layout: Layout, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mask and positions of a layer."""
        assert self.kind is not None, "a layout was chosen"
        return cut_per_layer(
            kwargs,
            self.kind,
            mask=functools.partial(self._mask_of, layer, step, layout, kwargs),
            embeddings=lambda parts: step.once(layout, parts, lambda: _embeddings(step, layout, parts)),
            positions=lambda places: step.once(layout, places, lambda: _positions(step, layout, places)),
        )

    def _mask_of(
        self, layer: int, step: Step, layout: Layout, kwargs: Mapping[str, Any], mask: Tensor | None
    ) -> Tensor | None:
        """Return the mask of a layer, of whatever kind that is."""
        assert self.kind is not None
        anatomy, source = self.anatomy, self.anatomy.keys_of(layer)
        if anatomy.is_recurrent(layer):
            return recurrent_mask(layer, step, layout, mask)
        if source != layer:
            make = functools.partial(sharing_mask, layer, source, anatomy.kind(layer), step, layout, kwargs, self.kind)
            return step.once(layout, mask, make, source)
        held = layout.slots + step.total - step.queries - step.reduction.prompt.length if step.decoding else 0
        queries = step.queries if step.decoding else layout.slots
        keys = key_slots(cache_of(kwargs), layer, held, queries, step.total)
        window = self.window(layer)
        return step.once(layout, mask, lambda: self._mask(step, layout, mask, keys, window), keys, window)

    def _mask(self, step: Step, layout: Layout, mask: Tensor | None, keys: int, window: int | None) -> Tensor | None:
        assert self.kind is not None
        check_mask(mask, self.kind, len(layout.index), step.queries)
        return reduced_mask(
            mask,
            layout,
            self.kind,
            length=step.reduction.prompt.length,
            queries=step.queries if step.decoding else layout.slots,
            total=step.total,
            keys=keys,
            window=window,
            dtype=step.dtype,
        )


def _embeddings(step: Step, layout: Layout, embeddings: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    check_embeddings(embeddings, len(layout.index), step.queries)
    if layout.shift is None and step.decoding:
        return embeddings
    if layout.shift is None:
        return tuple(pick(part, layout.index, -2) for part in embeddings)
    for call in step.rotary:
        if call.output is embeddings or call.output[0] is embeddings[0]:
            return call.again(_positions(step, layout, call.positions))
    raise ValueError("position='rearrange' is not supported for this model: its position embeddings are unknown.")


def _positions(step: Step, layout: Layout, positions: Tensor) -> Tensor:
    if step.decoding:
        return positions if layout.shift is None else positions - layout.shift[..., None].to(positions.device)
    if layout.positions is not None:
        return layout.positions.to(positions.device)
    return pick(positions, layout.index, -1)


def cut_per_layer(
    kwargs: Mapping[str, Any],
    kind: MaskKind,
    *,
    mask: Callable[[Any], Any],
    embeddings: Callable[[Any], Any],
    positions: Callable[[Any], Any],
) -> dict[str, Any]:
    """Return mask, position embeddings and positions of a layer, each cut by a function of its own.

    Parameters
    ----------
    kwargs
        What the layer would get.
    kind
        Which masks the model's attention takes.
    mask, embeddings, positions
        From what the model made to what the layer gets.
    """
    given = {name: kwargs.get(name) for name in PER_LAYER}
    new: dict[str, Any] = {MASK: mask(given[MASK])}
    if given[EMBEDDINGS] is not None:
        new[EMBEDDINGS] = embeddings(given[EMBEDDINGS])
    if given[POSITIONS] is not None:
        # FlashAttention takes gaps for the borders of packed sequences.
        hidden = kind == "validity" and given[EMBEDDINGS] is not None
        new[POSITIONS] = None if hidden else positions(given[POSITIONS])
    return new


def cut_others(
    layer: int, kwargs: Mapping[str, Any], rows: int, length: int, cut: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return whatever else a model passes to a layer per token, cut by a function.

    Parameters
    ----------
    layer
        Index of the layer, for the message.
    kwargs
        What the layer would get.
    rows, length
        Rows of the batch, and tokens of the prompts with padding.
    cut
        From ``[1 or rows, length, ...]`` to what the layer gets.

    Raises
    ------
    ValueError
        If the rows of such a tensor are not those of the batch.
    """
    new = {}
    for name, value in kwargs.items():
        if name not in PER_LAYER and isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == length:
            if value.shape[0] not in (1, rows):
                raise ValueError(f"layer {layer} gets {name} of shape {tuple(value.shape)}: unknown how to cut it.")
            new[name] = cut(value)
    return new


def pick_tokens(value: Tensor, index: Tensor) -> Tensor:
    """Select tokens per row of ``[1 or rows, tokens, ...]`` by a long index ``[rows, slots]``."""
    return pick(value.movedim((0, 1), (-2, -1)), index, -1).movedim((-2, -1), (0, 1))
