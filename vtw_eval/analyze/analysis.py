"""The attention of a model on the documents of a task, and its answers by k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from vtw_eval.analyze.documents import OverDocuments, over_documents, share_interval
from vtw_eval.analyze.reading import Reading, read
from vtw_eval.methods import VTW, Baseline, Method
from vtw_eval.models.blank import as_asked
from vtw_eval.models.curve import CurveRunner
from vtw_eval.models.failures import document_errors
from vtw_eval.models.requests import Request
from vtw_eval.report.labels import labels_of

UNCHANGED = "baseline"


@dataclass(frozen=True)
class Attention:
    """What the attention of a model comes to under one method."""

    method: str
    """As reports call it."""
    shares: OverDocuments
    """By token of the answer, layer and role: ``[tokens, layers, roles + 1]``, see
    :attr:`vtw_eval.analyze.sums.LayerNumbers.shares`."""
    by_layer: OverDocuments
    """The same, mean over the tokens of each document: ``[layers, roles + 1]``."""
    by_token: OverDocuments
    """The same, mean over layers: ``[tokens, roles + 1]``."""
    overall: OverDocuments
    """The same, mean over both: ``[roles + 1]``."""
    kinds: dict[str, OverDocuments]
    """``mean``, ``variance``, ``mass``, ``entropy`` and ``partial_entropy`` of
    :class:`~vtw_eval.analyze.sums.LayerNumbers`, ``[layers, kinds]`` each."""
    tokens: int
    """Of all answers."""
    predicted: int
    """How many of them the pass over prompt and answer predicts."""
    counts: tuple[float, ...]
    """Mean number of tokens of each role."""


@dataclass(frozen=True)
class Agreement:
    """Answers of VTW at one k beside those of the unchanged model."""

    k: int
    share: float
    """Of the answers that are the same."""
    low: float
    high: float
    """Ends of its 95 % interval."""
    divergence: float | None
    """Mean KL(withdrawn || unchanged) of the first word, nats; None where it is not known."""


@dataclass(frozen=True)
class TaskAnalysis:
    """Everything about one task."""

    task: str
    documents: int
    layers: int
    attention: tuple[Attention, ...]
    """The unchanged model first."""
    agreement: tuple[Agreement, ...]
    """By k, ascending."""

    @property
    def unchanged(self) -> Attention:
        """The attention of the unchanged model."""
        return self.attention[0]


def analyse(
    runner: CurveRunner,
    task: str,
    requests: Sequence[Request],
    methods: Sequence[Method],
    ks: Sequence[int] | None,
    *,
    progress: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> TaskAnalysis:
    """Read the attention of a model on documents under each method, and answer them at each k of VTW.

    Parameters
    ----------
    runner
        The model; it is left with the unchanged model.
    task
        What to call the documents.
    requests
        The documents.
    methods
        Under which attention is read, beside the unchanged model.
    ks
        At which the answers are compared with those of the unchanged model; None for all.
    progress
        Whether to show progress bars.
    log
        Told what is worth knowing.

    Raises
    ------
    ValueError
        If a method or a k is impossible for this model, or its attention cannot be read.
    DocumentError
        If a document cannot be answered or read; the message names it.
    VerificationError
        If a method does not compute what it should with the installed packages.
    """
    layers = runner.anatomy.num_layers
    bound = []
    for method in (Baseline(), *(each for each in methods if not isinstance(each, Baseline))):
        runner.exchange(method)
        runner.refuse_search("vtw-eval analyze")
        bound.append(runner.method)
    agreement = _agreement(runner, requests, range(layers) if ks is None else ks, progress, log)
    found = []
    for method in bound:
        readings = []
        for request in tqdm(requests, disable=not progress, desc=f"{task or 'Documents'}, {method}"):
            with document_errors(request.name):
                prompt = as_asked(request.build(runner.family), runner.options)
                readings.append(read(runner.family, method, runner.family.encode([prompt]), request.generation))
        found.append(_attention(method, readings))
    runner.exchange(Baseline())
    return TaskAnalysis(task, len(requests), layers, tuple(found), tuple(agreement))


def _attention(method: Method, readings: Sequence[Reading]) -> Attention:
    # [tokens, layers, roles + 1] of each document
    shares = [np.stack([layer.shares.numpy() for layer in each.layers], axis=1) for each in readings]
    names = ("mean", "variance", "mass", "entropy", "partial_entropy")
    kinds = {
        name: over_documents([np.stack([getattr(layer, name).numpy() for layer in each.layers]) for each in readings])
        for name in names
    }
    return Attention(
        UNCHANGED if isinstance(method, Baseline) else labels_of([str(method)])[str(method)],
        over_documents(shares),
        over_documents([each.mean(axis=0) for each in shares]),
        over_documents([each.mean(axis=1) for each in shares]),
        over_documents([each.mean(axis=(0, 1)) for each in shares]),
        kinds,
        sum(each.tokens for each in readings),
        sum(each.predicted for each in readings),
        tuple(np.mean([each.counts for each in readings], axis=0).tolist()),
    )


def _agreement(
    runner: CurveRunner, requests: Sequence[Request], ks: Sequence[int], progress: bool, log: Callable[[str], None]
) -> list[Agreement]:
    """Compare answers at each k with those of the unchanged model."""
    chosen = sorted(set(ks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= runner.anatomy.num_layers:
        raise ValueError(
            f"k is a number of layers from 0 to {runner.anatomy.num_layers - 1}, not {', '.join(map(str, chosen))}; "
            f"k={runner.anatomy.num_layers} is the unchanged model."
        )
    runner.ks = tuple(chosen)
    runner.exchange(Baseline())
    before = [answer.text.strip() for answer in runner.answer(requests, progress=progress)]
    for reason in sorted(runner.apart):
        log(f"answers at each k for themselves: {reason}")
    groups = [request.media or request.name for request in requests]
    (task,) = {request.task for request in requests}
    found = []
    for k in chosen:
        runner.exchange(VTW(k=k))
        same = [
            answer.text.strip() == other
            for answer, other in zip(runner.answer(requests, progress=progress), before, strict=True)
        ]
        limits: Any = share_interval(same, groups)
        divergence = runner.mean_divergence(task).get(k)
        found.append(Agreement(k, sum(same) / len(same), limits.low, limits.high, divergence))
    return found
