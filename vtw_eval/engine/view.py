"""What the engine asks a method, what the method may look at, and what it answers."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.layout import Prompt
from vtw_eval.engine.probes import Heads
from vtw_eval.engine.reads import Look, Reads
from vtw_eval.engine.tower import TowerView


@dataclass(frozen=True)
class Merge:
    """What a method answers that merges tokens instead of only dropping them."""

    keep: Tensor
    """Boolean ``[rows, tokens]``: which of the current tokens go on."""
    hidden: Tensor
    """Hidden states with which they go on, ``[rows, tokens, width]``."""
    size: Tensor | None = None
    """How many tokens each stands for, ``[rows, tokens]``. Later layers add its logarithm to the attention logits of
    the token, as if it stood there that many times. None for no such weight."""
    into: Tensor | None = None
    """With which of the current tokens each goes on, long ``[rows, tokens]``: itself, or the one that it is merged
    into; tokens that are dropped may name any that is not kept. Changes nothing but the trace; None for not told."""


@dataclass
class LayerView:
    """What a method may look at when it is asked which tokens enter a layer: the roles of tokens, and what it reads."""

    method: Reducer
    """The one that is asked."""
    layer: int
    """Index of the layer about to run."""
    num_layers: int
    states: Tensor = field(repr=False)
    """Hidden states, see :attr:`hidden`; of width 0 before the first layer runs."""
    valid: Tensor
    """Boolean ``[rows, tokens]``, False for padding."""
    vision: Tensor
    """Boolean ``[rows, tokens]``, True for vision tokens."""
    index: Tensor
    """Place of each token in the prompt, long ``[rows, tokens]``."""
    prompt: Prompt = field(repr=False)
    last: Tensor
    """Which of the current tokens is the last one of the row's prompt, long ``[rows]``."""
    size: Tensor
    """How many tokens of the prompt each stands for, ``[rows, tokens]``; ones unless a method merges."""
    probe: Callable[[int], Tensor] = field(repr=False)
    """Attention row of a layer for each head, see :meth:`attention`."""
    mean_probe: Callable[[int, Tensor, Heads], Tensor] = field(repr=False)
    """Mean of attention rows of a layer, see :meth:`attention`."""
    key_probe: Callable[[], Tensor] = field(repr=False)
    """Keys of the layer about to run, see :meth:`keys`."""
    rotated_key_probe: Callable[[int], Tensor] = field(repr=False)
    """Keys of a layer, see :meth:`rotated_keys` and :meth:`keys_before`."""
    value_before_probe: Callable[[], Tensor] = field(repr=False)
    """Values of the layer before, see :meth:`values_before`."""
    mean_query_probe: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    """Attention row of the layer about to run for each head, see :meth:`mean_query_attention`."""
    rotation_probe: Callable[[], tuple[Tensor, Tensor]] = field(repr=False)
    """Cosines and sines, see :attr:`rotation`."""
    unrotated_probe: Callable[[Tensor], Tensor] = field(repr=False)
    """Attention row of the layer before for each head, see :meth:`unrotated_attention`."""
    last_norm: Callable[[Tensor], Tensor] = field(repr=False)
    """The norm behind the last layer, see :attr:`normed`."""
    history: Callable[[int], Tensor] = field(repr=False)
    """Which tokens of the prompt an earlier layer got, see :meth:`seen_by`."""
    entered: Tensor = field(repr=False)
    """What entered the first layer, see :attr:`embeddings`; empty if no method reads it."""
    looks: list[Look] = field(repr=False)
    """What was read so far in this pass."""
    tower_view: TowerView | None = field(default=None, repr=False)
    """The vision tower, see :attr:`tower`; None if no method reads it."""

    def shown_to(self, method: Reducer) -> LayerView:
        """Return the view for another method, which may look at what that one reads."""
        return replace(self, method=method)

    def _read(self, what: Reads, where: str) -> None:
        """Refuse what is not declared.

        Raises
        ------
        ValueError
            If the method does not declare that it reads this.
        """
        if what not in self.method.reads:
            raise ValueError(
                f"{self.method} uses {where} and does not declare it: write reads = Reads.{what.name} in its class, "
                "joined by | with what else it reads."
            )

    @property
    def hidden(self) -> Tensor:
        """Hidden states entering the layer, ``[rows, tokens, width]``."""
        self._read(Reads.HIDDEN, "view.hidden")
        return self.states

    def seen_by(self, layer: int) -> Tensor:
        """Return which tokens of the prompt an earlier layer got, boolean ``[rows, prompt tokens]``.

        Raises
        ------
        ValueError
            For the layer about to run, or a later one.
        """
        self._read(Reads.HIDDEN, "view.seen_by()")  # others choose for all layers before the first one runs
        if not 0 <= layer < self.layer:
            raise ValueError(f"{self.method} uses view.seen_by({layer}) before layer {self.layer}.")
        return self.history(layer)

    @property
    def normed(self) -> Tensor:
        """Hidden states entering the layer, through the norm behind the last layer; ``[rows, tokens, width]``."""
        self._read(Reads.NORMED, "view.normed")
        return self.last_norm(self.states)

    @property
    def embeddings(self) -> Tensor:
        """Hidden states entering the first layer, of all tokens of the prompt, ``[rows, prompt tokens, width]``.

        Their places are those of ``view.prompt``, not of the current tokens.
        """
        self._read(Reads.EMBEDDINGS, "view.embeddings")
        return self.entered

    @property
    def tower(self) -> TowerView:
        """The vision tower's side of the prompt's vision tokens: features, attention, keys, places.

        At the places of ``view.prompt``, not of the current tokens.
        """
        self._read(Reads.TOWER, "view.tower")
        assert self.tower_view is not None
        return self.tower_view

    @property
    def generated(self) -> Tensor:
        """Boolean ``[rows, tokens]``: tokens of an answer that stand behind the prompt; they always go on."""
        return self.prompt.answer(self.index)

    @property
    def instruction(self) -> Tensor:
        """Boolean ``[rows, tokens]``: the prompt's text behind its last vision token, all of it where it has none."""
        return self.prompt.instruction.gather(1, self.index) & self.valid

    @property
    def vision_total(self) -> Tensor:
        """Number of vision tokens of each prompt, long ``[rows]``."""
        return self.prompt.vision.sum(dim=1)

    def attention(self, layer: int, queries: Tensor | None = None, heads: Heads = "mean") -> Tensor:
        """Attention weights of some tokens over the current tokens, mean over heads and these queries.

        Computed from these queries and all keys, so that SDPA and FlashAttention stay on.

        Parameters
        ----------
        layer
            Either :attr:`layer`, the layer about to run, on the tokens as they enter it (``Reads.ATTENTION``); or the
            one before, on the tokens as they entered that (``Reads.ATTENTION_BEFORE``).
        queries
            Boolean ``[rows, tokens]``: which of the current tokens; padding does not count. None: each prompt's last
            token.
        heads
            "max" for the maximum over heads, of each query.

        Returns
        -------
        Tensor
            ``[rows, tokens]``; with the mean of heads a row sums to 1, or to 0 where it has no query.

        Raises
        ------
        ValueError
            For any other layer.
        """
        if layer not in (self.layer, self.layer - 1) or layer < 0:
            raise ValueError(
                f"{self.method} uses view.attention({layer}) before layer {self.layer}: only that of layers "
                f"{self.layer} and {self.layer - 1} can be read there."
            )
        before = layer < self.layer
        what = Reads.ATTENTION_BEFORE if before else Reads.ATTENTION
        self._read(what, f"view.attention(view.layer{' - 1' if before else ''})")
        slots = self.index.shape[1]
        if queries is None:
            self.looks.append(Look(what, layer, slots))
            weights = self.probe(layer)
            return weights.mean(dim=1) if heads == "mean" else weights.amax(dim=1)
        queries = queries & self.valid
        self.looks.append(Look(what, layer, slots, max(int(queries.sum(dim=1).max()), 1)))
        return self.mean_probe(layer, queries, heads)

    def keys(self) -> Tensor:
        """Keys of the layer about to run, before the rotary embedding, mean over heads; ``[rows, tokens, head]``."""
        self._look(Reads.KEYS, "view.keys()")
        return self.key_probe()

    def keys_before(self) -> Tensor:
        """Keys of the layer before, after its norms and the rotary embedding; ``[rows, tokens, key heads, head]``.

        Heads that share a key are not repeated.

        Raises
        ------
        ValueError
            Before the first layer.
        """
        self._look_before(Reads.KEYS_BEFORE, "view.keys_before()")
        return self.rotated_key_probe(self.layer - 1)

    def rotated_keys(self) -> Tensor:
        """Keys of the layer about to run, after norms and the rotary embedding; ``[rows, tokens, key heads, head]``."""
        self._look(Reads.ROTATED_KEYS, "view.rotated_keys()")
        return self.rotated_key_probe(self.layer)

    def values_before(self) -> Tensor:
        """Values of the layer before, ``[rows, tokens, key heads, head]``; heads that share them are not repeated.

        Raises
        ------
        ValueError
            Before the first layer.
        """
        self._look_before(Reads.VALUES_BEFORE, "view.values_before()")
        return self.value_before_probe()

    @property
    def rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines by which the layer about to run rotates, ``[rows, tokens, channels]`` each."""
        self._read(Reads.ROTATION, "view.rotation")
        cos, sin = self.rotation_probe()
        return cos.expand(self.rows, -1, -1), sin.expand(self.rows, -1, -1)

    def mean_query_attention(self, queries: Tensor, among: Tensor) -> Tensor:
        """Attention weights of the mean query of some tokens, in the layer about to run, as if none had a position.

        Queries and keys are those after the layer's norms, without the rotary embedding, and nothing is hidden.

        Parameters
        ----------
        queries
            Boolean ``[rows, tokens]``: whose queries the mean is of, for each head; padding does not count.
        among
            Boolean ``[rows, tokens]``: over which of the current tokens the softmax goes.

        Returns
        -------
        Tensor
            Mean over heads, ``[rows, tokens]``; a row sums to 1, or to 0 where ``among`` has none.
        """
        self._look(Reads.MEAN_QUERY, "view.mean_query_attention()", queries=1)
        return self.mean_query_probe(queries & self.valid, among & self.valid).mean(dim=1)

    def unrotated_attention(self, among: Tensor) -> Tensor:
        """Attention weights of the prompt's last token in the layer before as if no token had a position.

        Queries and keys are those after the layer's norms, without the rotary embedding; neither the future nor a
        sliding window is hidden.

        Parameters
        ----------
        among
            Boolean ``[rows, tokens]``: over which of the current tokens the softmax goes.

        Returns
        -------
        Tensor
            Mean over heads, ``[rows, tokens]``; a row sums to 1, or to 0 where ``among`` has none.

        Raises
        ------
        ValueError
            Before the first layer.
        """
        self._look_before(Reads.UNROTATED_BEFORE, "view.unrotated_attention()")
        return self.unrotated_probe(among & self.valid).mean(dim=1)

    def _look(self, what: Reads, where: str, queries: int | None = None) -> None:
        """Note a look at the layer about to run, if it is declared."""
        self._read(what, where)
        self.looks.append(Look(what, self.layer, self.index.shape[1], queries))

    def _look_before(self, what: Reads, where: str) -> None:
        """Note a look at the layer before.

        Raises
        ------
        ValueError
            If there is none, or it is not declared.
        """
        self._read(what, where)
        if not self.layer:
            raise ValueError(f"{self.method} uses {where} before layer 0: there is no layer before.")
        self.looks.append(Look(what, self.layer - 1, self.index.shape[1]))

    @property
    def rows(self) -> int:
        """Number of rows of the batch."""
        return self.index.shape[0]

    def generator(self, row: int, seed: int) -> torch.Generator:
        """Return a fresh random generator that depends on the seed and on the row's own prompt only.

        Raises
        ------
        ValueError
            If the prompt reached the model as ``inputs_embeds``, so that its ids are not known.
        """
        self._read(Reads.IDS, "view.generator()")
        ids = self.prompt.ids
        if ids is None:
            raise ValueError(
                "a random method draws from the prompt's token ids: pass input_ids, or prompt_ids=... to the method "
                "for a prompt of inputs_embeds."
            )
        own = ids[row][self.prompt.given[row].to(ids.device)].tolist()
        digest = hashlib.blake2b(f"{seed}:{own}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Reducer(Protocol):
    """What the engine needs of a method; :class:`vtw_eval.methods.Method` is the base class to inherit."""

    @property
    def positions(self) -> str:
        """Either "keep" or "rearrange"."""

    @property
    def reads(self) -> Reads:
        """What :meth:`keep` looks at. If no layer computes it, all is asked before the first one runs."""

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Layers of the vision tower that :meth:`keep` looks at, if it reads that."""

    def bind(self, anatomy: Anatomy) -> Reducer:
        """Fill in defaults that depend on the model, and check against it."""

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layers before which :meth:`keep` is asked."""

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        """Layers that leave vision tokens as they are."""

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Boolean ``[rows, tokens]``: which of the current tokens go on; or how they are merged."""


def asked_layers(method: Reducer, num_layers: int) -> frozenset[int]:
    """Return the layers before which a method is asked.

    Raises
    ------
    ValueError
        If they are not layers of the model.
    """
    return _checked(method, "layers()", method.layers(num_layers), num_layers)


def frozen_layers(method: Reducer, num_layers: int) -> frozenset[int]:
    """Return the layers that leave vision tokens as they are; raises as :func:`asked_layers` does."""
    return _checked(method, "frozen_layers()", method.frozen_layers(num_layers), num_layers)


def _checked(method: Reducer, what: str, layers: Sequence[int], num_layers: int) -> frozenset[int]:
    try:
        found = frozenset(operator.index(layer) for layer in layers)
    except TypeError:
        raise ValueError(f"{method}: {what} must give layer indices, not {layers!r}.") from None
    if outside := sorted(layer for layer in found if not 0 <= layer < num_layers):
        raise ValueError(
            f"{method}: {what} names {', '.join(map(str, outside))}, but this model has {num_layers} decoder layers, "
            f"0..{num_layers - 1}; nothing would be removed there."
        )
    return found


def check_answer(method: Reducer, answer: Merge, hidden: Tensor, layer: int) -> None:
    """Check what a method's ``keep()`` gave before a layer, where the hidden states ``[rows, tokens, width]`` enter.

    Raises
    ------
    ValueError
        If a part of it is no tensor, or of another shape or type than it must be.
    """
    shape = tuple(hidden.shape)
    wanted: dict[str, tuple[Any, tuple[int, ...], str]] = {
        "keep": (answer.keep, shape[:2], "boolean [rows, tokens]"),
        "hidden": (answer.hidden, shape, "[rows, tokens, width]"),
        "size": (answer.size, shape[:2], "[rows, tokens]"),
        "into": (answer.into, shape[:2], "long [rows, tokens]"),
    }
    for name, (value, expected, what) in wanted.items():
        if name in ("size", "into") and value is None:
            continue
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.shape != expected or (name == "keep" and value.dtype != torch.bool):
            raise ValueError(
                f"{method}: keep() gave {found} as {name} before layer {layer}; it must be {what}, here {expected}."
            )
