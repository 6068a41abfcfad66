"""Metrics that follow from the samples of a cell, as lmms-eval's tasks compute them, and the scale of what is reported.

Formulas that reports also need for arrays take whatever has arithmetic: numbers here, numpy's arrays there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from vtw_eval.record.cell import Aggregate, Sample

Number = TypeVar("Number", float, Any)

_ROUNDED = 1.1e-5
"""How far a reported share may be from ours: MMMU's code rounds to five digits."""

_SHARES = ("acc", "match", "precision", "recall", "ratio", "f1")
"""Parts of names of metrics that are shares of 1."""


def aggregate(kind: Aggregate, metric: str, samples: Iterable[Sample]) -> float:
    """Return what the samples of a cell give for a metric, as its kind says.

    Parameters
    ----------
    kind
        How; "other" cannot be computed.
    metric
        Its name. Samples without a score of this name do not count.
    samples
        All samples of the cell.

    Raises
    ------
    ValueError
        For the kind "other" and where no sample has a score.
    """
    own = [sample for sample in samples if metric in sample.scores]
    if kind == "other" or not own:
        raise ValueError(f"{metric} cannot be computed from samples.")
    if kind == "mean":
        return mean([sample.scores[metric] for sample in own])
    if kind == "f1":
        return f1([(sample.prediction, sample.target) for sample in own])
    return mme_points([(sample.category, sample.group, sample.scores[metric]) for sample in own])


def mean(scores: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(scores) / len(scores)


def f1(pairs: Iterable[tuple[str, str]]) -> float:
    """Return F1 of the class "yes" from pairs of a prediction and a target; 0 where it is not defined."""
    counts = [yes_counts(prediction, target) for prediction, target in pairs]
    numerator, denominator = f1_parts(*(sum(column) for column in zip(*counts, strict=True)))
    return numerator / denominator if denominator else 0.0


def yes_counts(prediction: str, target: str) -> tuple[int, int, int]:
    """Return 1 or 0 for a true positive, a false positive and a false negative of the class "yes", as for POPE.

    A "yes" is missed only where the answer is "no": one that is neither is wrong, but no false negative.
    """
    told, there = is_yes(prediction), is_yes(target)
    return int(told and there), int(told and not there), int(_word(prediction) == "no" and there)


def is_yes(text: str) -> bool:
    """Tell whether a prediction or a target is "yes"."""
    return _word(text) == "yes"


def _word(text: str) -> str:
    return text.strip().lower()


def f1_parts(right: Number, false: Number, missed: Number) -> tuple[Number, Number]:
    """Return numerator and denominator of F1 from true positives, false positives and false negatives."""
    return 2 * right, 2 * right + false + missed


def mme_points(rows: Iterable[tuple[str, str, float]]) -> float:
    """Return MME's score: over categories, the sum of the mean points of their pairs.

    Parameters
    ----------
    rows
        Of each question: its category, its pair, 1 or 0.
    """
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for category, pair, score in rows:
        pairs[category][pair].append(score)
    return math.fsum(mean([pair_points(math.fsum(p), len(p)) for p in own.values()]) for own in pairs.values())


def pair_points(right: Number, questions: int = 2) -> Number:
    """Return MME's points of a pair: 100 for the share of right answers, and 100 more for two of them."""
    return 100 * right / questions + 100 * (right == 2)


def scale_of(kind: Aggregate, computed: float, reported: float) -> int | None:
    """Return how many times as large as the samples' metric a reported one is.

    Parameters
    ----------
    kind
        How the metric follows from the samples; MME's points have one scale.
    computed
        By :func:`aggregate`: a share of 1 for the mean of such scores.
    reported
        By the harness.

    Returns
    -------
    int or None
        1, or 100 for a reported percentage; None where it is neither, so that the metric is another one.
    """
    scales = (1,) if kind == "mme" else (1, 100)
    unit = 100 if kind == "mme" else 1
    return next((s for s in scales if abs(s * computed - reported) <= _ROUNDED * unit * s), None)


def is_called_share(metric: str) -> bool:
    """Tell by the name of a metric whether it is a share of 1; only where nothing else tells."""
    return any(part in metric.lower() for part in _SHARES)
