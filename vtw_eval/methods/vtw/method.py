"""Visual Tokens Withdrawal: no vision token enters layer k or any later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.checkpoints import known
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import LayerSearch, Method, MetricSearch, Position, check_layer

DEFAULT_ETA = 0.003
"""Threshold of the paper, in nats."""

DEFAULT_SAMPLES = 20
DEFAULT_START = 5
"""First candidate of the paper's Algorithm 1."""

DEFAULT_LOSS = 1.0
"""How far a search by the task's metric lets a score fall, in percent of the metric's range."""


def default_eta(name: str) -> float:
    """Return the threshold that the paper's code takes for a checkpoint, by its name."""
    entry = known(name)
    return DEFAULT_ETA if entry is None else entry.eta


def default_k(anatomy: Anatomy) -> int:
    """Return the paper's k for a checkpoint that the paper reports, half of the decoder layers otherwise."""
    entry = known(anatomy.name)
    if entry is None or entry.k is None:
        return anatomy.num_layers // 2
    return min(entry.k, anatomy.num_layers)


@dataclass(frozen=True, kw_only=True)
class VTW(Method):
    """Withdraw all vision tokens at layer ``k`` (Lin et al., AAAI 2025).

    Parameters
    ----------
    k
        Number of decoder layers that still see the vision tokens: layers 0..k-1 run on everything, layers k..N-1 on
        the text. ``k=0`` withdraws before the first layer, ``k=N`` is the unchanged model. The paper's Eq. 5 counts
        from 1, its code and its FLOPs column from 0; this is the latter. ``None``: :func:`default_k`. "search": found
        on documents of each task, by the adapters only.
    position
        "keep": text tokens keep their positions (the paper's choice, Table 6). "rearrange": from layer k on they are
        numbered without gaps, starting at the position of the first one.
    by
        What the search looks at. "kl", as ``None``: the KL of the first word on the first documents (the paper's
        Algorithm 1). "metric": the scores of the task, each half of the documents with the k that the other half
        gives (:mod:`vtw_eval.sweep.halves`); in sweeps of lmms-eval's tasks only, because adapters know no scores.
    eta
        Threshold of the search by KL. ``None``: :func:`default_eta`.
    samples
        Documents to search on by KL. ``None``: 20, as in the paper.
    loss
        How far a score may fall below the unchanged model's in the search by metric, in percent of the metric's
        range. ``None``: 1.
    start
        First candidate of the search. ``None``: 5 by KL, as in the paper; 0 by metric.
    """

    key: ClassVar[str] = "vtw"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.05803"
    needs_vision: ClassVar[bool] = True
    leaves_whole = True

    k: int | Literal["search"] | None = None
    position: Position = "keep"
    by: Literal["kl", "metric"] | None = None
    eta: float | None = None
    samples: int | None = None
    loss: float | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        if self.k != "search" and any(value is not None for value in self._searching):
            raise ValueError("eta, samples and start belong to k=search, and so do by and loss.")
        self._check_by()
        if self.eta is not None and not self.eta > 0:
            raise ValueError(f"eta={self.eta} is out of range: the threshold on the divergence is positive.")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples={self.samples} is out of range: the search needs 1 or more.")
        if isinstance(self.k, str) and self.k != "search":
            raise ValueError(f"k={self.k!r} is unknown: k is a number of layers or 'search'.")
        if isinstance(self.k, int) and self.k < 0:
            raise ValueError(f"k={self.k} is out of range: k is a number of layers, 0 or more.")
        if self.position not in ("keep", "rearrange"):
            raise ValueError(f"position={self.position!r} is unknown: choose 'keep' or 'rearrange'.")

    @property
    def _searching(self) -> tuple[object, ...]:
        return (self.by, self.eta, self.samples, self.loss, self.start)

    def _check_by(self) -> None:
        if self.by not in (None, "kl", "metric"):
            raise ValueError(f"by={self.by!r} is unknown: choose 'kl' or 'metric'.")
        if self.by != "metric":
            if self.loss is not None:
                raise ValueError("loss belongs to k=search,by=metric; the search by KL takes eta.")
            return
        if self.eta is not None or self.samples is not None:
            raise ValueError("eta and samples belong to the search by KL; by=metric takes loss, and all documents.")
        if self.position != "keep":
            raise ValueError("by=metric answers at all k at once, where text tokens keep their positions.")
        if self.loss is not None and not self.loss >= 0:
            raise ValueError(f"loss={self.loss} is out of range: it is a percentage, 0 or more.")

    @property
    def positions(self) -> Position:
        """The ``position`` parameter."""
        return self.position

    def bind(self, anatomy: Anatomy) -> VTW:
        """Fill in the default k and check k against the number of layers."""
        if self.k == "search" and self.by == "metric":
            start = self.start or 0
            check_layer("start", start, anatomy.num_layers)
            return replace(self, loss=DEFAULT_LOSS if self.loss is None else self.loss, start=start)
        if self.k == "search":
            eta = default_eta(anatomy.name) if self.eta is None else self.eta
            start = min(DEFAULT_START, anatomy.num_layers) if self.start is None else self.start
            check_layer("start", start, anatomy.num_layers)
            return replace(self, eta=eta, samples=self.samples or DEFAULT_SAMPLES, start=start)
        k = default_k(anatomy) if self.k is None else self.k
        check_layer("k", k, anatomy.num_layers)
        return replace(self, k=k)

    @property
    def search(self) -> LayerSearch | MetricSearch | None:
        """What is to be searched when k is "search"; known after :meth:`bind`."""
        if self.k != "search":
            return None
        if self.by == "metric":
            return MetricSearch(DEFAULT_LOSS if self.loss is None else self.loss, self.start or 0)
        start = DEFAULT_START if self.start is None else self.start
        return LayerSearch(self.eta or DEFAULT_ETA, self.samples or DEFAULT_SAMPLES, start)

    def scaled(self, strength: float, num_layers: int) -> VTW:
        """Withdraw at another layer, the earlier the stronger."""
        return self.found(num_layers - round(strength * num_layers))

    def found(self, k: int) -> VTW:
        """Return VTW at the k that the search has found."""
        return replace(self, k=k, by=None, eta=None, samples=None, loss=None, start=None)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers.

        Raises
        ------
        ValueError
            If k is still to be searched.
        """
        if self.k is None or isinstance(self.k, str):
            raise ValueError("k=search works in the adapters; for a model, find k with search_layer(model, samples).")
        return () if self.k == num_layers else (self.k,)

    def empty_from(self, num_layers: int) -> int:
        """Layer k."""
        return self.k if isinstance(self.k, int) else num_layers

    def keep(self, view: LayerView) -> Tensor:
        """Everything but vision tokens."""
        return ~view.vision
