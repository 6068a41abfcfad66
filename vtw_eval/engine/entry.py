"""Prompts that enter the decoder late: what they begin with has run before, unchanged, up to the layer of a choice.

Below the first layer at which a method removes anything, a prompt is that of the unchanged model, so prompts that begin
alike share its layers there, whatever they go on with and whatever a method will remove of it. A pass with an
:class:`Entry` is an ordinary prefill of whole prompts to the engine and to the method; only, until something is
removed, its layers run on what each prompt has of its own, against the keys of the common beginning, and from there on
on the hidden states with which that beginning entered the layer, followed by the prompt's own.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtw_eval.anatomy import Anatomy, find_tower
from vtw_eval.engine.arguments import cut_others, cut_per_layer
from vtw_eval.engine.calls import MASK, POSITIONS, by_name, cache_of, changed, check_embeddings, entering
from vtw_eval.engine.masks import MaskKind, built_mask, check_mask
from vtw_eval.engine.prefix import Prefix, behind, run_prefix
from vtw_eval.engine.reads import Reads
from vtw_eval.engine.tower_pass import TowerCall, TowerRecorder
from vtw_eval.engine.view import Reducer, asked_layers
from vtw_eval.engine.wrappers import replaced, uncompiled

Deepstack = tuple[Tensor, Sequence[Tensor]]
"""Which tokens get vision features after some layers, boolean ``[rows, tokens]``, and the features by layer."""


@dataclass(frozen=True)
class UnchangedPrefix:
    """What the unchanged model has computed of what prompts begin with, a row for each."""

    prefix: Prefix
    """Keys and values of layers below :attr:`depth`."""
    depth: int
    """Layers that have run."""
    complete: bool
    """Whether these are all layers of the model."""
    entered: Mapping[int, Tensor]
    """Hidden states that enter some layers, ``[prefixes, tokens, width]``, up to that of number :attr:`depth`."""
    types: Mapping[str, Tensor]
    """What else the model is told per token, ``[prefixes, tokens]``."""
    positions: Tensor | None
    """Of M-RoPE: positions of the tokens, long ``[axes, prefixes, tokens]``; None for other models."""
    deepstack: Deepstack | None
    """Vision features that the decoder adds after some of its layers, if it does."""
    tower: Mapping[str, TowerCall]
    """What was noted of the vision tower."""

    def without_last(self) -> UnchangedPrefix:
        """Return the same without the last token of each prefix, which is a text token."""
        old = self.prefix
        cache = copy.copy(old.cache)
        layers: list[Any] = [copy.copy(layer) for layer in old.cache.layers]
        for layer in layers[: self.depth]:
            layer.crop(-1)
        cache.layers = layers
        return replace(
            self,
            prefix=replace(old, ids=old.ids[:, :-1], valid=old.valid[:, :-1], cache=cache),
            entered={i: hidden[:, :-1] for i, hidden in self.entered.items()},
            types={name: value[:, :-1] for name, value in self.types.items()},
            positions=None if self.positions is None else self.positions[..., :-1],
            deepstack=None if self.deepstack is None else (self.deepstack[0][:, :-1], self.deepstack[1]),
        )


@torch.no_grad()
def run_unchanged(
    anatomy: Anatomy,
    inputs: Mapping[str, Any],
    layers: Collection[int],
    depth: int | None = None,
    tower_layers: Collection[int] = (),
) -> UnchangedPrefix:
    """Run what prompts begin with by the unchanged model, as far as it is needed.

    Parameters
    ----------
    anatomy
        The model; no method is installed on it.
    inputs
        Keyword arguments of ``generate``: ``input_ids`` and ``attention_mask``, padded on the left, and the media.
    layers
        Layers of which to keep what enters them.
    depth
        How many layers to run; None for all of them.
    tower_layers
        Layers of the vision tower to note, see :class:`~vtw_eval.engine.tower_pass.TowerRecorder`.

    Raises
    ------
    PrefixError
        See :func:`~vtw_eval.engine.prefix.run_prefix`.
    ValueError
        If a layer is to be entered that is not reached.
    """
    depth = anatomy.num_layers if depth is None else depth
    if any(not 0 <= i <= min(depth, anatomy.num_layers - 1) for i in layers):
        raise ValueError(f"layers {sorted(layers)} cannot be entered behind {depth} of {anatomy.num_layers} layers.")
    entered: dict[int, Tensor] = {}
    told: dict[str, Any] = {}

    def note(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[i] = entering(layer, args, kwargs)[0]

    def note_decoder(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        told.update(by_name(decoder, args, kwargs))

    handles = [anatomy.decoder.register_forward_pre_hook(note_decoder, with_kwargs=True)]
    for i in layers:
        hook = functools.partial(note, i)
        handles.append(anatomy.layers[i].register_forward_pre_hook(hook, with_kwargs=True))
    recorder = TowerRecorder(find_tower(anatomy), tower_layers) if tower_layers else None
    try:
        with ExitStack() as stack:
            if recorder is not None:
                handles += recorder.register()
                stack.enter_context(replaced(recorder.tower.owner, recorder.functions()))
            stack.enter_context(uncompiled(anatomy.decoder, anatomy.layers))
            prefix = run_prefix(anatomy.model, inputs, depth=depth)
    finally:
        for handle in handles:
            handle.remove()
    if set(entered) != set(layers):
        raise changed(f"hooks on decoder layers {sorted(set(layers) - set(entered))} have not run")
    positions = told.get(POSITIONS)
    if prefix.deltas is None:
        positions = None
    elif not isinstance(positions, Tensor) or positions.ndim != 3:
        raise changed("the decoder gets no position ids on several axes")
    features, where = told.get("deepstack_visual_embeds"), told.get("visual_pos_masks")
    shape = prefix.ids.shape
    names = (n for n, value in inputs.items() if isinstance(value, Tensor) and value.shape == shape)
    return UnchangedPrefix(
        prefix=prefix,
        depth=depth,
        complete=depth == anatomy.num_layers,
        entered=entered,
        types={name: inputs[name] for name in names if name not in ("input_ids", MASK)},
        positions=positions,
        deepstack=None if features is None or where is None else (where, features),
        tower={} if recorder is None else recorder.calls,
    )


def looked_layers(method: Reducer, num_layers: int) -> frozenset[int]:
    """Return the layers of which a bound method has to see what enters them, of whole prompts."""
    asked = asked_layers(method, num_layers)
    before = {i - 1 for i in asked if i and method.reads.layer_before}
    return asked | before | ({0} if asked and Reads.EMBEDDINGS in method.reads else set())


class Entry:
    """One pass over prompts that go on behind an unchanged prefix.

    Parameters
    ----------
    unchanged
        The prefixes; they can be used again.
    rows
        Which prefix each prompt begins with.
    own
        Token ids that follow in each, one or more, none a vision token.
    """

    def __init__(self, unchanged: UnchangedPrefix, rows: Sequence[int], own: Sequence[Sequence[int]]) -> None:
        self.unchanged = unchanged
        prefix = unchanged.prefix
        self.index = torch.tensor(rows, device=prefix.ids.device)
        self.width = max(map(len, own))
        """Slots of the longest own part, at the end of each row."""
        self.inputs = behind(prefix, self.index, own)
        """Keyword arguments of ``generate``, of the whole prompts."""
        for name, value in unchanged.types.items():
            self.inputs[name] = torch.nn.functional.pad(value[self.index], (0, self.width))
        if unchanged.positions is not None:
            self.inputs[POSITIONS] = self._positions(unchanged.positions)
        self.at: int | None = None
        """The layer that the whole prompts have entered; None before."""
        self._masks: dict[int, tuple[Any, Any]] = {}

    def _positions(self, before: Tensor) -> Tensor:
        """Continue the positions of the prefixes as those of text."""
        valid, length = self.inputs[MASK], self.unchanged.prefix.length
        counted = (valid.cumsum(dim=1) - 1).clamp(min=0)[:, length:]
        assert self.unchanged.prefix.deltas is not None
        moved = counted + self.unchanged.prefix.deltas[self.index]
        axes = [counted, moved, moved, moved][-len(before) :]  # the first of four is that of text
        return torch.cat([before[:, self.index], torch.stack(axes).to(before.device)], dim=-1)

    @property
    def length(self) -> int:
        """Tokens of the prompts, padding included."""
        return int(self.inputs["input_ids"].shape[1])

    def begin(self, rows: int, length: int, looked: Collection[int]) -> None:
        """Begin the pass.

        Parameters
        ----------
        rows, length
            Of the prompts that run.
        looked
            Layers of which the method has to see what enters them.

        Raises
        ------
        ValueError
            If these are other prompts, or the method looks at a layer that the prefixes have not reached.
        """
        if looked and min(looked) not in self.unchanged.entered:
            raise ValueError(
                f"layer {min(looked)} has to see whole prompts, but what they begin with was not kept there."
            )
        if (rows, length) != (len(self.index), self.length):
            raise ValueError(f"{rows} x {length} tokens run, but {len(self.index)} x {self.length} were to enter late.")
        self.at = None
        self._masks.clear()

    def deepstack(self) -> Deepstack | None:
        """Return the vision features that belong to the rows, and which of their tokens get them."""
        if self.unchanged.deepstack is None:
            return None
        where, features = self.unchanged.deepstack
        ends = where.sum(dim=1).cumsum(dim=0).tolist()
        parts = [torch.arange(0 if not row else ends[row - 1], ends[row]) for row in self.index.tolist()]
        chosen = torch.cat(parts)
        where = torch.nn.functional.pad(where[self.index.to(where.device)], (0, self.width))
        return where, [each[chosen.to(each.device)] for each in features]

    def tower(self) -> dict[str, TowerCall]:
        """Return what was noted of the vision tower, if the rows are those for which it has run."""
        rows = torch.arange(len(self.unchanged.prefix.ids), device=self.index.device)
        return dict(self.unchanged.tower) if torch.equal(rows, self.index) else {}

    def whole(self, i: int, hidden: Tensor) -> tuple[Tensor, float]:
        """Return what enters layer ``i`` of the whole prompts where that is known, and of their own parts elsewhere.

        And the first layer that enters without the vision features that belong after the one before it, as the layers
        of the prefixes have had them.
        """
        if self.at is not None:
            return hidden, self.at
        own, before = hidden[:, -self.width :], self.unchanged.entered.get(i)
        return own if before is None else torch.cat([before[self.index].to(own), own], dim=1), math.inf

    def own(
        self, i: int, removed: bool, asked: Iterable[int], hidden: Tensor, kwargs: Mapping[str, Any], kind: MaskKind
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return what layer ``i`` gets: of the own parts, unless the whole prompts have to enter now.

        Parameters
        ----------
        i
            The layer about to run.
        removed
            Whether tokens have been removed before it.
        asked
            Layers before which whole prompts will be looked at.
        hidden
            What :meth:`whole` has given, as the method has left it.
        kwargs
            Other arguments of the layer; of whole prompts, cut where tokens were removed.
        kind
            Which masks the model's attention takes.
        """
        if self.at is None and (removed or not self._can_wait(i, asked)):
            self.at = i
        if self.at is not None:
            return hidden, dict(kwargs)
        self._give_keys(i, kwargs)
        return hidden[:, -self.width :], self._cut(i, hidden.dtype, kwargs, kind)

    def _can_wait(self, i: int, asked: Iterable[int]) -> bool:
        """Whether whole prompts can enter a later layer than ``i``, the next one that has to see them."""
        following = min((layer for layer in asked if layer > i), default=None)
        return self.unchanged.complete if following is None else following in self.unchanged.entered

    def _give_keys(self, i: int, kwargs: Mapping[str, Any]) -> None:
        """Put what the prefixes left in layer ``i`` in front of what the layer will keep."""
        cache = cache_of(kwargs)
        if cache is None:
            raise changed("decoder layers get no KV cache")
        layers: list[Any] = cache.layers
        made: Any = copy.copy(self.unchanged.prefix.cache.layers[i])
        made.batch_select_indices(self.index)
        layers[i : i + 1] = [made]

    def _cut(self, i: int, dtype: torch.dtype, kwargs: Mapping[str, Any], kind: MaskKind) -> dict[str, Any]:
        """Cut the arguments of a layer to the own parts as queries; keys are those of whole prompts."""
        rows, width, length = len(self.index), self.width, self.length

        def embeddings(parts: Any) -> Any:
            check_embeddings(parts, rows, length)
            return tuple(part[..., -width:, :] for part in parts)

        new = cut_per_layer(
            kwargs,
            kind,
            mask=lambda mask: self._mask(mask, dtype, kind),
            embeddings=embeddings,
            positions=lambda places: places[..., -width:],
        )
        return {**kwargs, **new, **cut_others(i, kwargs, rows, length, lambda value: value[:, -width:])}

    def _mask(self, mask: Tensor | None, dtype: torch.dtype, kind: MaskKind) -> Tensor | None:
        check_mask(mask, kind, len(self.index), self.length)
        if kind == "validity":  # of keys, the last of which are the queries
            return mask
        if id(mask) not in self._masks:
            if mask is not None:
                cut = mask[..., -self.width :, :]
            else:
                places = torch.arange(self.length, device=self.index.device)[None]
                valid = self.inputs[MASK].bool()
                cut = built_mask(kind, places[:, -self.width :], places.expand(len(valid), -1), valid, dtype=dtype)
            self._masks[id(mask)] = (cut, mask)
        return self._masks[id(mask)][0]
