"""What is under way while VTW answers at every k: what each layer has kept, and the hooks that run the candidates."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.arguments import cut_others
from vtw_eval.engine.calls import (
    EMBEDDINGS,
    MASK,
    POSITIONS,
    changed,
    check_embeddings,
    check_layer_call,
    entering,
    layer_output,
    with_cache,
)
from vtw_eval.engine.layout import pick
from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.packed import Pack, additive, position_ids
from vtw_eval.engine.prefix import select
from vtw_eval.engine.probes import keys_and_values
from vtw_eval.engine.wrappers import uncompiled
from vtw_eval.methods.vtw.curve_beginnings import Beginnings

States = tuple[Tensor, Tensor]
"""Keys and values of a layer, ``[rows, key heads, tokens, width]`` each."""


class Joined(DynamicCache):
    """A cache that puts what a layer has kept in front of what it adds, and remembers both."""

    def __init__(self, states: States) -> None:
        super().__init__()
        self.states = states
        self.used = False
        """Whether a layer has added something."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Return all keys and values."""
        keys, values = self.states
        self.used = True
        self.states = (torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2))
        return self.states


class Pass(Protocol):
    """A pass: the questions, or the next words. Rows are the prefixes; candidates are the k that have been reached."""

    @property
    def last_only(self) -> bool:
        """Whether only the last token of each question is read, so that no other goes through the last layer."""

    @property
    def order(self) -> Tensor:
        """Place of each slot of the row behind its prefix, long ``[rows, slots]``."""

    def slots(self, gone: int) -> int:
        """Return how many slots the unchanged row has after some k have left it."""

    def leave(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return what enters layer k as a candidate, and what goes on in the unchanged row."""

    def row_mask(self, gone: int) -> Tensor:
        """Return what the unchanged row sees, boolean ``[rows, 1, slots, keys]``."""

    def candidate_mask(self) -> Tensor:
        """Return what a candidate sees, boolean ``[rows, 1, slots, keys]``."""

    def candidate_part(self, i: int, name: str, part: Tensor, number: int) -> Tensor:
        """Return position embeddings (cos or sin by ``number``) or positions of candidates, given the row's."""

    def ends(self, states: Tensor) -> Tensor:
        """Return the last token of each question among states of the row or of candidates."""


@dataclass
class Curve:
    """All answers under way: what each layer has kept, and the hooks that run the candidates."""

    anatomy: Anatomy
    beginnings: Beginnings
    index: Tensor
    """Which of the prefixes the rows are."""
    pack: Pack
    ks: list[int]
    """Those that still have something to say."""
    kind: MaskKind
    current: Pass | None = None
    states: Tensor | None = None
    """Hidden states of the candidates so far, ``[candidates * rows, slots, width]``."""
    ran: int = 0
    rows_kept: dict[int, States] = field(default_factory=dict)
    """By layer: keys and values of the unchanged row, those of the prefix first."""
    candidates_kept: dict[int, States] = field(default_factory=dict)
    """By layer: those of the candidates, those of the text in front of the image first."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Of the pass: by number of k that have left the row, and None for candidates."""

    def __post_init__(self) -> None:
        prefix, index = self.beginnings.prefix, self.index
        cache = select(prefix.cache, index)
        before = self.before = self.beginnings.before[index]
        self.behind_valid = self.beginnings.behind_valid[index]
        self.entered = {i: each.rows(index) for i, each in self.beginnings.entered.items()}
        self.text = copy.copy(self.pack)
        """The same for candidates: what they have in front of the questions is text."""
        self.text.valid = torch.cat([self.beginnings.before_valid[index], self.behind_valid], dim=1)
        for i, layer in enumerate(cache.layers):
            whole: Any = layer
            self.rows_kept[i] = (whole.keys, whole.values)
            if count := self.gone(i):
                parts = (pick(part.movedim(1, -2), before, -3).movedim(-2, 1) for part in self.rows_kept[i])
                keys, values = (part.repeat(count, 1, 1, 1) for part in parts)
                self.candidates_kept[i] = (keys, values)

    def gone(self, layer: int) -> int:
        """Return how many k have left the row when a layer runs."""
        return sum(k <= layer for k in self.ks)

    def drop(self, rows: Tensor, versions: Tensor, words: int) -> None:
        """Go on without prefixes and k all of whose answers have ended.

        Parameters
        ----------
        rows
            Boolean: which prefixes stay.
        versions
            Boolean: which k stay; the unchanged model, which is the last one, does.
        words
            How many words of each question the layers have kept.
        """
        (places,), most = rows.nonzero(as_tuple=True), self.pack.most
        fixed = self.beginnings.prefix.length + self.pack.ids.shape[1]
        for i in self.rows_kept:
            gone = self.gone(i)
            stays = versions[gone:].repeat_interleave(most).repeat(words)
            columns = torch.cat([torch.ones(fixed, dtype=torch.bool, device=stays.device), stays]).nonzero()[:, 0]
            keys, values = (part[places].index_select(2, columns) for part in self.rows_kept[i])
            self.rows_kept[i] = (keys, values)
            if gone:
                chosen = versions[:gone].nonzero() * len(rows) + places
                keys, values = (part[chosen.flatten()] for part in self.candidates_kept[i])
                self.candidates_kept[i] = (keys, values)
        self.ks = [k for k, stays in zip(self.ks, versions.tolist(), strict=False) if stays]
        self.index = self.index[places]
        self.pack, self.text = self.pack.rows(places), self.text.rows(places)

    def run(self, current: Pass, ids: Tensor) -> Tensor:
        """Return logits of a pass, ``[rows, (ks + 1) * questions, words]``."""
        self.current, self.states, self.ran = current, None, 0
        self.masks.clear()
        slots = ids.shape[1]
        # The model is told nothing of what was before, and each layer all of it.
        nothing = torch.ones((), dtype=torch.bool, device=ids.device).expand(1, 1, slots, slots)
        model: Any = self.anatomy.model
        places = position_ids(model, self.pack.start + current.order, self.beginnings.prefix.deltas, self.index)
        output = model(**{"input_ids": ids, MASK: nothing, POSITIONS: places, "use_cache": False})
        if self.ran != self.anatomy.num_layers:
            raise changed(f"{self.ran} of the {self.anatomy.num_layers} hooks on decoder layers have run")
        return output.logits

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Register the hooks, and remove them at the end."""
        anatomy = self.anatomy
        handles = [anatomy.decoder.register_forward_hook(self._after_decoder)]
        for i, layer in enumerate(anatomy.layers):
            handles.append(layer.register_forward_pre_hook(functools.partial(self._before_layer, i), with_kwargs=True))
            handles.append(layer.register_forward_hook(functools.partial(self._after_layer, i)))
        try:
            with uncompiled(anatomy.decoder, anatomy.layers):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _before_layer(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the candidates through a layer, and leave the row what is not among them."""
        hidden, kwargs = entering(layer, args, kwargs)
        check_layer_call(i, kwargs)
        assert self.current is not None
        self.ran += 1
        if i in self.ks:
            state, hidden = self.current.leave(i, hidden)
            self.states = state if self.states is None else torch.cat([self.states, state])
        self._check(i, kwargs, len(hidden))
        if self.states is not None:
            arguments = self._candidates_arguments(i, kwargs)
            states, arguments, cache = self._enter(i, layer, self.states, arguments, self.candidates_kept[i])
            # Called below the hooks: a candidate's pass is not one of the model's.
            self.states = layer_output(layer.forward(states, **arguments))
            self.candidates_kept[i] = cache.states
        arguments = self._row_arguments(i, kwargs, hidden.shape[1])
        hidden, arguments, self.cache = self._enter(i, layer, hidden, arguments, self.rows_kept[i])
        return (hidden,), arguments

    def _enter(
        self, i: int, layer: nn.Module, hidden: Tensor, arguments: dict[str, Any], kept: States
    ) -> tuple[Tensor, dict[str, Any], Joined]:
        """Return hidden states and arguments of a layer that goes on from what it has kept, and its cache.

        In the last layer only the last token of each question is read, so only that goes through it: of the others
        keys and values are enough.
        """
        most = self.pack.most
        assert self.current is not None
        if i == self.anatomy.num_layers - 1 and self.current.last_only:
            own = keys_and_values(layer, hidden, arguments, self.anatomy.text_config)
            keys, values = (torch.cat([a, b[:, :, :-most]], dim=2) for a, b in zip(kept, own, strict=True))
            kept, hidden = (keys, values), hidden[:, -most:]
            arguments = {**arguments, MASK: arguments[MASK][:, :, -most:]}
            if arguments.get(EMBEDDINGS) is not None:
                arguments[EMBEDDINGS] = tuple(part[..., -most:, :] for part in arguments[EMBEDDINGS])
            if arguments.get(POSITIONS) is not None:
                arguments[POSITIONS] = arguments[POSITIONS][..., -most:]
        cache = Joined(kept)
        return hidden, with_cache(layer, arguments, cache), cache

    def _after_layer(self, i: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.cache.used:
            raise changed(f"decoder layer {i} does not keep its keys in the KV cache")
        self.rows_kept[i] = self.cache.states

    def _check(self, i: int, kwargs: Mapping[str, Any], rows: int) -> None:
        """Check that the layer gets nothing else per token than is known."""
        slots = self.current.slots(0)  # type: ignore[union-attr]
        if kwargs.get(EMBEDDINGS) is not None:
            check_embeddings(kwargs[EMBEDDINGS], rows, slots)

        def refuse(value: Tensor) -> Tensor:
            raise ValueError(f"layer {i} gets a tensor of shape {tuple(value.shape)}: unknown how to cut it.")

        cut_others(i, kwargs, rows, slots, refuse)

    def _row_arguments(self, i: int, kwargs: Mapping[str, Any], slots: int) -> dict[str, Any]:
        gone = self.gone(i)
        assert self.current is not None
        if gone not in self.masks:
            self.masks[gone] = self._of_kind(self.current.row_mask(gone))
        new = {**kwargs, MASK: self.masks[gone]}
        if kwargs.get(EMBEDDINGS) is not None:
            new[EMBEDDINGS] = tuple(part[..., -slots:, :] for part in kwargs[EMBEDDINGS])
        if kwargs.get(POSITIONS) is not None:
            new[POSITIONS] = kwargs[POSITIONS][..., -slots:]
        return new

    def _candidates_arguments(self, i: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        count, current = self.gone(i), self.current
        assert current is not None
        if None not in self.masks:
            self.masks[None] = self._of_kind(current.candidate_mask())
        new = {**kwargs, MASK: self.masks[None].repeat(count, 1, 1, 1)}
        if (parts := kwargs.get(EMBEDDINGS)) is not None:
            cut = [current.candidate_part(i, EMBEDDINGS, part, number) for number, part in enumerate(parts)]
            new[EMBEDDINGS] = tuple(_repeated(part, count, -3) for part in cut)
        if (places := kwargs.get(POSITIONS)) is not None:
            new[POSITIONS] = _repeated(current.candidate_part(i, POSITIONS, places, 0), count, -2)
        return new

    def _of_kind(self, mask: Tensor) -> Tensor:
        return mask if self.kind == "boolean" else additive(mask, self.anatomy.model)

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Let the model's own head see the last token of each question at each k, and of the unchanged model."""
        assert self.current is not None
        ends = self.current.ends(output.last_hidden_state)
        if self.states is not None:
            norm: Any = module.norm
            states = norm(self.current.ends(self.states)).unflatten(0, (len(self.ks), -1))
            ends = torch.cat([*states.to(ends.device), ends], dim=1)
        output.last_hidden_state = ends
        return output


def _repeated(tensor: Tensor, copies: int, dim: int) -> Tensor:
    """Repeat a tensor for each candidate along its batch axis, where that tells rows apart."""
    return tensor if tensor.shape[dim] == 1 else torch.cat([tensor] * copies, dim=dim)
