"""Greedy answers of VTW for every k at once, for little more than what the unchanged model costs.

Below layer k a withdrawn model *is* the unchanged one. So what prompts begin with, their images above all, runs once
and unchanged; its text tokens behind the first vision token are remembered as they enter each layer k, since from there
on they see no image. The questions follow, packed into a row as in :mod:`vtw_eval.engine.packed`: a layer runs that
row, and beside it a batch of candidates, one for each k up to this layer, which see text only. New words go the same
way: each k has words of its own, in the unchanged row below its layer k and among the candidates from there on.

:mod:`vtw_eval.methods.vtw.search` does the first half of this for one word.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
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
from vtw_eval.engine.layout import pick, right_aligned
from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.packed import Pack, additive, position_ids
from vtw_eval.engine.prefix import Prefix, numbered_from, run_prefix, select
from vtw_eval.engine.probes import keys_and_values
from vtw_eval.engine.wrappers import uncompiled

States = tuple[Tensor, Tensor]
"""Keys and values of a layer, ``[rows, key heads, tokens, width]`` each."""


@dataclass(frozen=True)
class CurveAnswers:
    """What the questions about an image were answered at each k."""

    tokens: Tensor
    """New tokens, long ``[ks + 1, questions, new]``, padded behind the end; the unchanged model's come last."""
    divergence: Tensor
    """KL(withdrawn || unchanged) of the first word in nats, float64 ``[ks, questions]``."""


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
    entered: Mapping[int, _Entered]
    """By layer, from the first k on: the tokens of ``behind`` as they enter it."""


@dataclass(frozen=True)
class _Entered:
    """Some tokens as they enter a layer."""

    hidden: Tensor
    embeddings: tuple[Tensor, ...] | None
    positions: Tensor | None

    def rows(self, index: Tensor) -> _Entered:
        """Return those of some rows."""

        def chosen(tensor: Tensor, dim: int) -> Tensor:
            return tensor if tensor.shape[dim] == 1 and len(self.hidden) > 1 else tensor.index_select(dim, index)

        embeddings = None if self.embeddings is None else tuple(chosen(part, -3) for part in self.embeddings)
        return _Entered(self.hidden[index], embeddings, None if self.positions is None else chosen(self.positions, -2))


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
    entered: dict[int, _Entered] = {}
    handles = []

    def note(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, named = entering(layer, args, kwargs)
        check_layer_call(i, named)
        parts, places = named.get(EMBEDDINGS), named.get(POSITIONS)
        if parts is not None:
            check_embeddings(parts, *hidden.shape[:2])
            parts = tuple(pick(part, behind, -2) for part in parts)
        places = None if places is None else pick(places, behind, -1)
        entered[i] = _Entered(pick(hidden, behind, -2), parts, places)

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


@torch.no_grad()
def answer_curve(
    anatomy: Anatomy,
    beginnings: Beginnings,
    own: Sequence[Sequence[Sequence[int]]],
    ks: Sequence[int],
    *,
    kind: MaskKind,
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
) -> list[CurveAnswers]:
    """Answer continuations of prompts greedily, as VTW does at each k and as the unchanged model does.

    Parameters
    ----------
    anatomy
        The model; no method is installed on it, and no sliding window is shorter than a prompt and its answer.
    beginnings
        From :func:`begin`, with these k; can be used again.
    own
        Of each prefix: token ids of its continuations, one or more each, none a vision token. A prefix may have none.
    ks
        In ascending order, each below the number of layers.
    kind
        Which masks the model's attention takes: "boolean" or "additive".
    max_new_tokens
        Most tokens of an answer.
    eos
        Ids that end an answer.
    pad
        Id that stands behind the end.

    Returns
    -------
    list of CurveAnswers
        Of each prefix.
    """
    rows = [row for row, continuations in enumerate(own) if continuations]
    index = torch.tensor(rows, device=beginnings.prefix.ids.device)
    device = index.device
    pack = Pack([own[row] for row in rows], beginnings.prefix.valid[index], device)
    curve = _Curve(anatomy, beginnings, index, pack, list(ks), kind)
    shape = (len(rows), len(ks) + 1, pack.most)
    ends = torch.tensor(eos, device=device)
    done = (pack.asked[:, None, None] <= torch.arange(pack.most, device=device)).expand(shape)
    places, versions = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    made: list[Tensor] = []
    current: _Pass = _Questions(curve)
    ids = pack.ids
    with curve.installed(), numbered_from(anatomy.model, beginnings.prefix, index):
        while True:
            logits = curve.run(current, ids).unflatten(1, (len(versions), -1))
            if not made:
                divergence = _divergence(logits)
            new = logits.float().argmax(dim=-1).masked_fill(done, pad)
            made.append(torch.full(shape, pad, device=device).index_put((places[:, None], versions), new))
            done = done | torch.isin(new, ends)
            if len(made) == max_new_tokens or bool(done.all()):
                break
            going = ~done.all(dim=2)
            kept_rows, kept = going.any(dim=1), going.any(dim=0)
            kept[-1] = True  # layers need a row to run on
            if not bool(kept_rows.all() & kept.all()):
                curve.drop(kept_rows, kept, len(made) - 1)
                new, done = (each[kept_rows][:, kept] for each in (new, done))
                places, versions = places[kept_rows], versions[kept]
            ids, current = new.flatten(1), _Words(curve, len(made))
    tokens = torch.stack(made, dim=3)
    empty = CurveAnswers(tokens[0, :, :0], divergence[0, :, :0])
    found = {
        row: CurveAnswers(tokens[place, :, : len(own[row])], divergence[place, :, : len(own[row])])
        for place, row in enumerate(rows)
    }
    return [found.get(row, empty) for row in range(len(own))]


def _divergence(logits: Tensor) -> Tensor:
    """KL of each k, from logits ``[rows, ks + 1, questions, words]``; float64 ``[rows, ks, questions]``."""
    full = logits[:, -1].double().log_softmax(dim=-1)
    found = []
    for each in logits[:, :-1].unbind(dim=1):  # one after another: vocabularies are large
        log_p = each.double().log_softmax(dim=-1)
        found.append((log_p.exp() * (log_p - full)).sum(dim=-1))
    return torch.stack(found, dim=1) if found else full.new_zeros(len(logits), 0, logits.shape[2])


class _Joined(DynamicCache):
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


class _Pass(Protocol):
    """A pass: the questions, or the next words. Rows are the prefixes; candidates are the k that have been reached."""

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
class _Curve:
    """All answers under way: what each layer has kept, and the hooks that run the candidates."""

    anatomy: Anatomy
    beginnings: Beginnings
    index: Tensor
    """Which of the prefixes the rows are."""
    pack: Pack
    ks: list[int]
    """Those that still have something to say."""
    kind: MaskKind
    current: _Pass | None = None
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

    def run(self, current: _Pass, ids: Tensor) -> Tensor:
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
    ) -> tuple[Tensor, dict[str, Any], _Joined]:
        """Return hidden states and arguments of a layer that goes on from what it has kept, and its cache.

        In the last layer only the last token of each question is read, so only that goes through it: of the others
        keys and values are enough.
        """
        most = self.pack.most
        if i == self.anatomy.num_layers - 1 and isinstance(self.current, _Questions):
            own = keys_and_values(layer, hidden, arguments, self.anatomy.text_config)
            keys, values = (torch.cat([a, b[:, :, :-most]], dim=2) for a, b in zip(kept, own, strict=True))
            kept, hidden = (keys, values), hidden[:, -most:]
            arguments = {**arguments, MASK: arguments[MASK][:, :, -most:]}
            if arguments.get(EMBEDDINGS) is not None:
                arguments[EMBEDDINGS] = tuple(part[..., -most:, :] for part in arguments[EMBEDDINGS])
            if arguments.get(POSITIONS) is not None:
                arguments[POSITIONS] = arguments[POSITIONS][..., -most:]
        cache = _Joined(kept)
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


@dataclass
class _Questions:
    """The questions of each prefix, packed into one row; a candidate has the text behind the image in front of them."""

    curve: _Curve

    @property
    def order(self) -> Tensor:
        """Places in the questions."""
        return self.curve.pack.order

    def slots(self, gone: int) -> int:
        """Return how many there are; all of them stay."""
        return self.curve.pack.ids.shape[1]

    def leave(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Let a candidate begin as a copy of the row."""
        return torch.cat([self.curve.entered[k].hidden.to(hidden), hidden], dim=1), hidden

    def row_mask(self, gone: int) -> Tensor:
        """Let each question see its prefix and itself."""
        pack = self.curve.pack
        return pack.mask(pack.owner[:, :0], pack.owner, pack.order)

    def candidate_mask(self) -> Tensor:
        """Let text behind the image see that in front of it, and questions both and themselves."""
        curve, text = self.curve, self.curve.text
        questions = text.mask(text.owner[:, :0], text.owner, text.order)
        before, valid = self.curve.before.shape[1], curve.behind_valid
        count = valid.shape[1]
        itself = torch.eye(count, dtype=torch.bool, device=valid.device)
        causal = itself.cumsum(dim=1).bool().T
        sees = torch.zeros(len(valid), 1, count, questions.shape[-1], dtype=torch.bool, device=valid.device)
        sees[..., :before] = (valid[:, :, None] & text.valid[:, None, :before])[:, None]
        sees[..., before : before + count] = ((valid[:, :, None] & valid[:, None, :] & causal) | itself)[:, None]
        return torch.cat([sees, questions], dim=2)

    def candidate_part(self, i: int, name: str, part: Tensor, number: int) -> Tensor:
        """Return those of the text behind the image as they were, then the row's."""
        entered = self.curve.entered[i]
        source = entered.positions if name == POSITIONS else (entered.embeddings or (None, None))[number]
        if source is None:
            raise changed(f"decoder layers got no {name} before")
        axis = -2 if name == POSITIONS else -3
        rows = max(source.shape[axis], part.shape[axis])
        dim = -1 if name == POSITIONS else -2
        return torch.cat([_rows(source, axis, rows), _rows(part, axis, rows)], dim=dim)

    def ends(self, states: Tensor) -> Tensor:
        """Return the last slots."""
        return states[:, -self.curve.pack.most :]


@dataclass
class _Words:
    """The next word of each question at each k: in the row by ascending k, the unchanged model's last."""

    curve: _Curve
    made: int
    """How many words there are so far, those of this pass among them."""

    @property
    def order(self) -> Tensor:
        """Place of the words behind their prefixes, by slot of the row."""
        pack = self.curve.pack
        return (pack.order[:, -pack.most :] + self.made).repeat(1, len(self.curve.ks) + 1)

    def slots(self, gone: int) -> int:
        """Return those of the k that are still there."""
        return (len(self.curve.ks) + 1 - gone) * self.curve.pack.most

    def leave(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Let the first ones leave."""
        most = self.curve.pack.most
        return hidden[:, :most], hidden[:, most:]

    def row_mask(self, gone: int) -> Tensor:
        """Let each see the prefix, its question, and the words before it of its k and question."""
        pack, slots = self.curve.pack, self.slots(gone)
        before = pack.mask(pack.owner, pack.last, pack.order[:, -pack.most :])[..., : -pack.most]
        own = torch.eye(slots, dtype=torch.bool, device=before.device).repeat(1, self.made)
        before = before.repeat(1, 1, slots // pack.most, 1)
        return torch.cat([before, own.expand(len(before), 1, -1, -1)], dim=3)

    def candidate_mask(self) -> Tensor:
        """Let each see the same without vision tokens."""
        text = self.curve.text
        seen = torch.cat([text.owner, text.last.repeat(1, self.made - 1)], dim=1)
        return text.mask(seen, text.last, text.order[:, -text.most :])

    def candidate_part(self, i: int, name: str, part: Tensor, number: int) -> Tensor:
        """Return those of one k, the same for all."""
        most = self.curve.pack.most
        return part[..., -most:] if name == POSITIONS else part[..., -most:, :]

    def ends(self, states: Tensor) -> Tensor:
        """Return all of them."""
        return states


def _rows(tensor: Tensor, dim: int, rows: int) -> Tensor:
    """Return a tensor with so many entries along its batch axis, which are one or these."""
    return tensor if tensor.shape[dim] == rows else tensor.repeat_interleave(rows, dim=dim)


def _repeated(tensor: Tensor, copies: int, dim: int) -> Tensor:
    """Repeat a tensor for each candidate along its batch axis, where that tells rows apart."""
    return tensor if tensor.shape[dim] == 1 else torch.cat([tensor] * copies, dim=dim)
