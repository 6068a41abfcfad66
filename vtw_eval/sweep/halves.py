"""The choice of a parameter by scores: each half of the documents gets the value that the other half gives.

So no document is scored at a value that was chosen on it, all are scored, and scores compare with those of other
methods on the same documents (cross-fitting). Documents that show the same are in one half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vtw_eval.record.cell import Metric, Sample
from vtw_eval.record.metrics import aggregate

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Choice:
    """What a half of the documents gives for the other one."""

    k: int
    chosen_on: tuple[str, ...]
    """Documents that were looked at, by their id."""
    used_for: tuple[str, ...]
    """Documents that are scored at it; none of the above."""
    scores: Mapping[str, Mapping[int, float]]
    """By metric and value: the score of the documents that were looked at, as tables show it."""


def halves(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Return the ids of two halves of documents; those of one group are in the same one.

    Which half a group is in depends on its name alone and on the names of the others, not on answers or the order.

    Parameters
    ----------
    samples
        The documents.

    Raises
    ------
    ValueError
        If there are fewer than two groups.
    """
    groups = sorted({sample.group for sample in samples}, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(groups) < 2:
        raise ValueError(f"by=metric needs documents about two images or more, not {len(groups)}: raise the limit.")
    first = set(groups[::2])
    found: tuple[list[str], list[str]] = ([], [])
    for sample in samples:
        found[sample.group not in first].append(sample.doc_id)
    return found


def choose_by_halves(
    answered: Mapping[int, Sequence[Sample]], metrics: Mapping[str, Metric], loss: float
) -> tuple[Choice, Choice]:
    """Return for each half of the documents the smallest value whose scores on the other half are good enough.

    That is the smallest one at which no metric is worse than at the largest one by more than ``loss`` percent of its
    range: 100 points for a share, 200 for each category of MME. The largest one, which stands for the unchanged model,
    always is.

    Parameters
    ----------
    answered
        By value: the samples of all documents.
    metrics
        Which count, by name.
    loss
        Percent, 0 or more.

    Raises
    ------
    ValueError
        If no metric follows from samples, nobody knows the range of one, the values have other documents, or there are
        too few.
    """
    known = {name: metric for name, metric in metrics.items() if metric.aggregate != "other"}
    if not known:
        raise ValueError(
            f"by=metric: {', '.join(metrics) or 'the task has no metric that'} does not follow from single documents, "
            "so halves of them have no score: pass a number for k, or search by KL (by=kl)."
        )
    ks = sorted(answered)
    ids = [sample.doc_id for sample in answered[ks[-1]]]
    for k in ks:
        if [sample.doc_id for sample in answered[k]] != ids:
            raise ValueError(f"by=metric: other documents were answered at k={k} than at k={ks[-1]}.")
    one, other = halves(answered[ks[-1]])
    return _choice(answered, known, loss, one, other), _choice(answered, known, loss, other, one)


def _choice(
    answered: Mapping[int, Sequence[Sample]],
    metrics: Mapping[str, Metric],
    loss: float,
    looked_at: Sequence[str],
    used_for: Sequence[str],
) -> Choice:
    chosen = set(looked_at)
    own = {k: [sample for sample in answered[k] if sample.doc_id in chosen] for k in sorted(answered)}
    scores = {
        name: {k: metric.scale * aggregate(metric.aggregate, name, rows) for k, rows in own.items()}
        for name, metric in metrics.items()
        if any(name in sample.scores for sample in next(iter(own.values())))
    }
    if not scores:
        raise ValueError(f"by=metric: no document of a half has a score of {', '.join(metrics)}: raise the limit.")
    unchanged = max(own)
    margins = {name: loss / 100 * _range(metrics[name], name, own[unchanged]) if loss else 0.0 for name in scores}

    def good(k: int) -> bool:
        return all(
            _fall(metrics[name], found[unchanged], found[k]) <= margins[name] + _ROUNDING
            for name, found in scores.items()
        )

    return Choice(next(k for k in own if good(k)), tuple(looked_at), tuple(used_for), scores)


def _fall(metric: Metric, unchanged: float, score: float) -> float:
    return unchanged - score if metric.higher_is_better else score - unchanged


def _range(metric: Metric, name: str, samples: Sequence[Sample]) -> float:
    """Return how far a metric can vary, as tables show it."""
    if metric.aggregate == "mme":
        return 200.0 * len({sample.category for sample in samples if name in sample.scores})
    if not metric.percent:
        raise ValueError(f"by=metric: {name} is no share of 100, and what a loss of it means is not known: pass a k.")
    return 100.0
