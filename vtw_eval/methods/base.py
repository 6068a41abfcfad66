"""What a token-reduction method is: a frozen dataclass that answers one question of the engine."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads, Trace, install
from vtw_eval.engine.layout import Prompt

Self = TypeVar("Self", bound="Method")
Position = Literal["keep", "rearrange"]


@dataclass(frozen=True)
class LayerSearch:
    """What a search for the withdrawal layer is asked to do, see :func:`vtw_eval.methods.vtw.search.search_layer`."""

    eta: float
    """Threshold on the mean divergence."""
    samples: int
    """Number of prompts."""
    start: int
    """First candidate."""


@dataclass(frozen=True)
class MetricSearch:
    """What a search by the task's own metric is asked to do, see :mod:`vtw_eval.sweep.halves`."""

    loss: float
    """How far a score may fall below the unchanged model's, in percent of its metric's range."""
    start: int
    """First candidate."""


@dataclass(frozen=True)
class Asked:
    """One layer of a prefill before which a method was asked, for what it computes of its own."""

    layer: int
    prompt: Prompt
    before: Tensor
    """Vision tokens of each row before the choice, long ``[rows]`` on the CPU."""
    after: Tensor
    """The same after it."""
    hidden: int
    """Width of hidden states."""
    head_dim: int
    """Width of a head."""
    kv_heads: int
    """Heads of keys and values."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to reduce the tokens that the decoder layers of a vision-language model see.

    Subclasses are frozen dataclasses whose fields are the hyper-parameters, each with a default. They never touch
    hooks, masks or caches: the engine asks :meth:`keep` before each of the layers named by :meth:`layers`.

    Examples
    --------
    >>> with VTW(k=16)(model) as trace:       # doctest: +SKIP
    ...     model.generate(**inputs)
    >>> trace.tokens_per_layer                # doctest: +SKIP
    """

    key: ClassVar[str]
    """Name in the registry and on the command line."""

    place: ClassVar[str]
    """What a spec calls it instead, ``FILE.py:Class`` or ``module:Class``, if it was found so; set by the registry."""

    paper: ClassVar[str] = ""
    """URL of the source."""

    also_needs: ClassVar[str] = ""
    """What it needs beside what it reads, in words, for the listing."""

    needs_vision: ClassVar[bool] = False
    """Whether it does nothing where no vision token is left; of a method that does not say so, nobody knows."""

    @property
    def reads(self) -> Reads:
        """What :meth:`keep` looks at; a subclass declares it: ``reads = Reads.HIDDEN | Reads.KEYS``.

        The view hands out what is declared. A method that reads nothing which a layer computes is asked for all its
        layers before the first one runs, so that no GPU has to wait for a choice between two layers.
        """
        return Reads.ROLES

    @property
    def adaptive(self) -> str:
        """Why nobody can tell without the model how many tokens go, and what to do instead, as a sentence.

        Empty where the number follows from the prompt.
        """
        return ""

    @property
    def positions(self) -> Position:
        """Whether surviving tokens keep their rotary positions or are numbered anew without gaps."""
        return "keep"

    @property
    def question_independent(self) -> bool:
        """Whether prompts that show the same may share what was computed up to the question.

        Derived for methods that read roles or the vision tower only; attention and hidden states may be those of the
        question, and random numbers are drawn from its ids. A method that looks at those of vision tokens only says
        so: ``question_independent = True``.
        """
        return self.reads in (Reads.ROLES, Reads.TOWER) and type(self).frozen_layers is Method.frozen_layers

    @property
    def leaves_whole(self) -> bool:
        """Whether all vision tokens of a row leave at one layer, so that nothing is removed from it before that.

        Where the layer depends on the question, questions about one image share all layers before it.
        """
        return False

    @property
    def name(self) -> str:
        """What a spec calls the method: its key, or where it was found."""
        return str(vars(type(self)).get("place", "")) or self.key

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Return the method with defaults that depend on the model filled in, checked against that model.

        Raises
        ------
        ValueError
            If a hyper-parameter is impossible for this model.
        """
        return self

    @property
    def search(self) -> LayerSearch | MetricSearch | None:
        """The search that has to find a hyper-parameter on samples of a task first, if any."""
        return None

    def found(self: Self, k: int) -> Self:
        """Return the method with the layer that its search has found."""
        return self

    def stand_in(self: Self, anatomy: Anatomy) -> Self:
        """Return the method for a random model, with random stand-ins for what was trained for a checkpoint."""
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer indices before which :meth:`keep` is asked; empty for the unchanged model."""
        raise NotImplementedError

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        """Layer indices that leave vision tokens as they are: no query, no FFN; text attends to them all the same."""
        return ()

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Layers of the vision tower that :meth:`keep` names to ``view.tower``, if ``Reads.TOWER`` is declared.

        What entered and left them is kept in memory for the pass. Negative numbers count from the end, as in
        ``vision_feature_layer`` of transformers.

        Parameters
        ----------
        num_layers
            Layers of the tower.
        """
        return (-2,)

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Boolean tensor ``[rows, tokens]`` of the current tokens that enter this layer and all later ones.

        A method that merges tokens answers with a :class:`~vtw_eval.engine.Merge`.
        """
        raise NotImplementedError

    def draws(self: Self) -> Sequence[Self]:
        """Return the equally likely methods that the bound method can turn out to be; itself if there is one only."""
        return (self,)

    def scaled(self: Self, strength: float, num_layers: int) -> Self | None:
        """Return the method at another strength, by which it is set to a budget.

        Parameters
        ----------
        strength
            From 0, as little as it can remove, to 1, as much as it can; the more, the lower the cost.
        num_layers
            Decoder layers of the model.

        Returns
        -------
        Method or None
            None if no parameter says how much goes.
        """
        return None

    def nominal(self) -> Method:
        """Return a method that keeps, of any video, the number of tokens that this one is asked to keep; itself.

        Another one for methods that come near to that number only, see :attr:`adaptive`.
        """
        return self

    def empty_from(self, num_layers: int) -> int:
        """Return the first layer that no vision token enters, whatever the prompt of the bound method is.

        ``num_layers`` if there is none.
        """
        return num_layers

    def idle_from(self, empty: int) -> float:
        """Return the layer from which on it does nothing if another method leaves no vision token at layer ``empty``.

        Infinity if it always may do something.
        """
        return empty if self.needs_vision else math.inf

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """FLOPs of matrix products of its own at one of its layers, by kind, beside those of what it reads.

        Parameters
        ----------
        asked
            The layer, and how many tokens it was about.
        """
        return {}

    def params(self) -> Mapping[str, Any]:
        """Hyper-parameters by name, as they would stand in a method spec; None stands for "left out"."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def label(self) -> str:
        """Return the method for a reader: by its key, files by their names without folders."""
        return _spec(self.key, {name: _short(value) for name, value in self.params().items()})

    def __str__(self) -> str:
        """Return the spec, from which the registry makes an equal method."""
        return _spec(self.name, self.params())

    def __call__(
        self,
        model: nn.Module,
        *,
        vision_mask: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        answer_mask: Tensor | None = None,
        allow_untested: bool = False,
    ) -> AbstractContextManager[Trace]:
        """Install the method on a model for the length of a ``with`` block.

        Parameters
        ----------
        model
            A transformers vision-language model.
        vision_mask
            Boolean ``[rows, tokens]``, needed only for prompts that reach the model as ``inputs_embeds``.
        prompt_ids
            Long ``[rows, tokens]``, the ids behind such prompts; random methods draw from them.
        answer_mask
            Boolean ``[rows, tokens]``: tokens at the end of each row that are an answer to be scored. Methods choose
            by the prompt in front of it alone. Without it, the answer is what ``labels`` begin to score, if there are
            any, and what ``generate`` adds.
        allow_untested
            Go on with a model family that the test-suite does not cover.

        Returns
        -------
        AbstractContextManager[Trace]
            Yields the trace; all hooks are removed when the block ends, also by an exception.
        """
        check_types(self)
        return install(
            self,
            model,
            vision_mask=vision_mask,
            prompt_ids=prompt_ids,
            answer_mask=answer_mask,
            allow_untested=allow_untested,
        )


def _spec(name: str, params: Mapping[str, Any]) -> str:
    return ",".join([name, *(f"{param}={value}" for param, value in params.items() if value is not None)])


def _short(value: Any) -> Any:
    return value.replace("\\", "/").rpartition("/")[2] if isinstance(value, str) else value


def check_types(method: Method) -> None:
    """Raise ``TypeError`` unless each parameter of a method has the type that its class declares."""
    cls: Any = type(method)
    for name, adapter in _adapters(cls).items():
        value = getattr(method, name)
        try:
            adapter.validate_python(value.item() if isinstance(value, np.generic) else value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise TypeError(f"method {method.key!r}: {name}={value!r} is of a wrong type: {problem}.") from None


@functools.cache
def _adapters(cls: Any) -> Mapping[str, TypeAdapter[Any]]:
    """Return what checks each parameter that is a number, a word or one of several words."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class that names types of the function that it stands in
        return {}
    return {f.name: TypeAdapter(hints[f.name]) for f in fields(cls) if f.init and is_plain(hints[f.name])}


def is_plain(hint: Any) -> bool:
    """Whether a type is that of a number, a word, a truth value, None, or one of several of these."""
    return hint in (int, float, str, bool, NoneType) or (
        get_origin(hint) is Literal or (get_origin(hint) in (Union, UnionType) and all(map(is_plain, get_args(hint))))
    )


def check_layer(name: str, value: int, num_layers: int) -> None:
    """Raise ``ValueError`` unless ``value`` is a possible number of layers, 0..num_layers."""
    if not 0 <= value <= num_layers:
        raise ValueError(
            f"{name}={value} is out of range: this model has {num_layers} decoder layers, so {name} must be "
            f"0..{num_layers} ({name}={num_layers} is the unchanged model)."
        )


def check_share(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a share that can be removed, 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is out of range: {name} is the share of vision tokens removed, 0..1.")


def kept_count(total: Tensor, removed: float) -> Tensor:
    """Return how many of ``total`` vision tokens are left when the share ``removed`` goes, halves rounded up."""
    return torch.floor(total * (1 - removed) + 0.5).long()


def keep_best(view: LayerView, score: Tensor, count: Tensor) -> Tensor:
    """Keep the ``count`` vision tokens of each row with the highest score, and all other tokens.

    Parameters
    ----------
    view
        The current tokens.
    score
        ``[rows, tokens]``; ties go to the earlier token.
    count
        Long ``[rows]``.

    Returns
    -------
    Tensor
        Boolean ``[rows, tokens]``.
    """
    rank = ranks(score.masked_fill(~view.vision, -torch.inf))
    return ~view.vision | (rank < count.to(rank.device)[:, None])


def precise(values: Tensor) -> Tensor:
    """Return numbers as float32, or as what they are if that is finer: half precision cannot tell scores apart."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def ranks(score: Tensor) -> Tensor:
    """Return the rank of each entry in its row, the largest first; ties go to the earlier one; long ``[rows, n]``."""
    order = score.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def largest(values: Tensor, count: int) -> Tensor:
    """Return the numbers of the largest of ``values``, ``[n]``, in ascending order; of equal ones the earlier."""
    return (ranks(values[None])[0] < count).nonzero().flatten()


def random_scores(view: LayerView, seed: int) -> Tensor:
    """Return uniform random numbers for each prompt token, drawn per row, for the current tokens; ``[rows, tokens]``.

    A token gets the same number at whatever layer, batch or padding, whatever answer follows; those of an answer get 0.
    """
    scores = torch.zeros(view.rows, view.prompt.length, dtype=torch.float64)
    for row, given in enumerate(view.prompt.given.cpu()):
        scores[row, given] = torch.rand(int(given.sum()), generator=view.generator(row, seed), dtype=torch.float64)
    return scores.to(view.index.device).gather(1, view.index)
