"""Intervals, paired differences and their tests.

Intervals are percentiles of the Bayesian bootstrap over groups of documents (Rubin 1981,
https://doi.org/10.1214/aos/1176345338): each group gets a random weight, Gamma(1), and the metric is computed from the
weighted sums. Two imagined documents of half a weight each, one right and one wrong, make the interval of a share
exactly Jeffreys' (Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286), so that a metric that is 100 %
on all documents gets an honest lower end instead of [100, 100]. A paired difference gets the four imagined pairs of
right and wrong, half a weight each, as in Agresti and Min 2005 (https://doi.org/10.1002/sim.1781). Where documents of a
group fail together, the imagined ones count as many documents as the design effect says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vtw_eval.report.stats.aggregate import Array, GroupSums, group_index, group_sums, sum_by, value_of
from vtw_eval.report.stats.evidence import Evidence, check_same_documents

DRAWS = 10_000
_BLOCK = 2_000_000
"""Weights held at a time."""

Test = Literal["McNemar", "permutation"]


@dataclass(frozen=True)
class Interval:
    """An interval that holds the value."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, or new against old, on the same documents."""

    difference: float
    """Of the metric: first minus second."""
    interval: Interval
    """95 %, paired."""
    narrow: Interval
    """90 %: two one-sided tests at 5 % find both equal within a margin if this lies inside it."""
    p: float
    """Two-sided, not adjusted for the number of comparisons."""
    test: Test
    """Exact McNemar where scores are right or wrong and no two documents share a group, else a permutation of whole
    groups, which is the same test with clusters and for any metric."""
    mcnemar_p: float | None
    """Of the documents one by one, for any right-or-wrong metric; too small where documents share a group."""
    lost: int
    """Documents with a lower score in the first than in the second."""
    won: int
    draws: Array = field(repr=False, compare=False)
    """Of the difference, float64 ``[DRAWS]``, in ascending order; what the intervals are percentiles of."""

    def equal_within(self, margin: float) -> bool:
        """Tell whether two one-sided tests (TOST, 5 % each) find the difference smaller than a margin."""
        return -margin < self.narrow.low and self.narrow.high < margin

    def loss_bound(self, error: float, higher_is_better: bool = True) -> float:
        """Return the loss below which the true one lies, but for a chance of error; one-sided.

        The loss of a margin M or more is refuted at that error (a test of non-inferiority) if M is above the bound:
        the bound is the order statistic of the draws above which ``k`` of them lie, with ``(k + 1) / (draws + 1)`` no
        larger than ``error``, as for the p-value of a Monte-Carlo test.

        Parameters
        ----------
        error
            Chance that the loss is larger.
        higher_is_better
            Of the metric.

        Returns
        -------
        float
            In the unit of the metric; at least the observed loss, infinite if the error is too small for the draws.
        """
        above = math.floor(error * (len(self.draws) + 1) + 1e-9) - 1
        if above < 0:
            return math.inf
        loss = -self.difference if higher_is_better else self.difference
        bound = -self.draws[above] if higher_is_better else self.draws[len(self.draws) - 1 - above]
        return max(float(bound), loss)


def interval(evidence: Evidence, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the interval of a metric.

    Parameters
    ----------
    evidence
        Of the metric.
    level
        Its probability.
    seed
        Of the draws.
    """
    sums = group_sums(evidence)
    effect = _design_effect(evidence, evidence.scores)
    imagined = _half_each([effect * sums.right, effect * sums.wrong])
    draws = _draw(sums.rows, sums.weights, imagined, sums.value, seed)
    return _percentiles(draws, value_of(evidence), level)


def compare(first: Evidence, second: Evidence, seed: int = 0) -> Comparison:
    """Compare a metric over the same documents.

    Parameters
    ----------
    first, second
        The method and the baseline, or new and old.
    seed
        Of the draws.

    Raises
    ------
    ReportError
        If the documents differ.
    """
    check_same_documents(first.documents, second.documents)
    a, b = group_sums(first), group_sums(second)
    width = a.rows.shape[1]
    pairs = np.hstack([a.rows, b.rows])
    outcomes = [(a.right, b.right), (a.right, b.wrong), (a.wrong, b.right), (a.wrong, b.wrong)]
    bounded = min(len(a.right), len(b.right)) > 0
    effect = _design_effect(first, first.scores - second.scores)
    imagined = _half_each([effect * np.hstack(pair) for pair in outcomes] if bounded else [np.empty((0, 2 * width))])

    def difference(total: Array) -> Array:
        return a.value(total[:, :width]) - b.value(total[:, width:])

    draws = _draw(pairs, a.weights, imagined, difference, seed)
    observed = float(difference(pairs.sum(axis=0, keepdims=True))[0])
    lost, won = int((first.scores < second.scores).sum()), int((first.scores > second.scores).sum())
    exact = _mcnemar(lost, won) if first.right_or_wrong and second.right_or_wrong else None
    singles = first.kind == "mean" and len(pairs) == len(first.documents)
    return Comparison(
        difference=observed,
        interval=_percentiles(draws, observed, 0.95),
        narrow=_percentiles(draws, observed, 0.90),
        p=exact if exact is not None and singles else _permutation(a, b, abs(observed), seed),
        test="McNemar" if exact is not None and singles else "permutation",
        mcnemar_p=exact,
        lost=lost,
        won=won,
        draws=np.sort(draws),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, which controls the chance of any false claim."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return [float(value) for value in adjusted]


def _half_each(outcomes: Sequence[Array]) -> tuple[Array, Array]:
    """Return imagined rows and their weights; those of one outcome share half a weight."""
    rows = np.vstack(outcomes)
    weights = np.concatenate([np.full(len(outcome), 0.5 / max(len(outcome), 1)) for outcome in outcomes])
    return rows, weights


def _design_effect(evidence: Evidence, values: Array) -> float:
    """Return how many documents one group is worth: 1 if they fail independently, its mean size if all together."""
    if evidence.kind == "mme":
        return 1.0  # its imagined documents are whole pairs already
    group = group_index(evidence)
    residuals = (values - values.mean())[:, None]
    total = float((residuals**2).sum())
    effect = float((sum_by(group, residuals) ** 2).sum()) / total if total > 0 else 1.0
    return min(max(effect, 1.0), len(group) / (group.max() + 1))


def _draw(
    rows: Array, weights: Array, imagined: tuple[Array, Array], value: Callable[[Array], Array], seed: int
) -> Array:
    """Return the values of :data:`DRAWS` random weightings; equal rows share one weight, the sum of theirs."""
    distinct, place = np.unique(rows, axis=0, return_inverse=True)
    table = np.vstack([distinct, imagined[0]])
    shapes = np.concatenate([np.bincount(place, weights=weights), imagined[1]])
    rng = np.random.default_rng(seed)
    found = []
    for size in _blocks(len(table)):
        found.append(value(rng.standard_gamma(shapes, size=(size, len(shapes))) @ table))
    return np.concatenate(found)


def _blocks(width: int) -> list[int]:
    size = max(1, min(DRAWS, _BLOCK // width))
    return [min(size, DRAWS - start) for start in range(0, DRAWS, size)]


def _percentiles(draws: Array, observed: float, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(min(float(low), observed), max(float(high), observed))


def _mcnemar(lost: int, won: int) -> float:
    return float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _permutation(first: GroupSums, second: GroupSums, observed: float, seed: int) -> float:
    """Two-sided p: how often a difference is as large when each group's answers are swapped by a coin."""
    first, second = _all_pairs(first, second)
    width = first.rows.shape[1]
    distinct, counts = np.unique(np.hstack([first.rows, second.rows]), axis=0, return_counts=True)
    a, b = distinct[:, :width], distinct[:, width:]
    differs = (a != b).any(axis=1)
    if not differs.any():
        return 1.0
    fixed_a, fixed_b = counts[~differs] @ a[~differs], counts[~differs] @ b[~differs]
    a, b, counts = a[differs], b[differs], cast("NDArray[np.int64]", counts[differs])
    rng = np.random.default_rng(seed)
    hits = 0
    for size in _blocks(len(counts)):
        swapped = rng.binomial(counts, 0.5, size=(size, len(counts)))
        kept = counts - swapped
        values = first.value(fixed_a + kept @ a + swapped @ b) - second.value(fixed_b + kept @ b + swapped @ a)
        hits += int((np.abs(values) >= observed - 1e-12 * max(observed, 1.0)).sum())
    return (1 + hits) / (1 + DRAWS)


def _all_pairs(first: GroupSums, second: GroupSums) -> tuple[GroupSums, GroupSums]:
    """Return both with as many repeats: each of the first beside each of the second, so that they can be swapped."""
    if first.repeats == second.repeats == 1:
        return first, second
    runs, others = (np.split(sums.rows, sums.repeats, axis=1) for sums in (first, second))
    pairs = [(run, other) for run in runs for other in others]
    a, b = (np.hstack([pair[side] for pair in pairs]) for side in (0, 1))
    return replace(first, rows=a, repeats=len(pairs)), replace(second, rows=b, repeats=len(pairs))
