"""Metrics as functions of sums over groups of documents, so that a resampled metric is a matrix product away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vtw_eval.record.metrics import f1_parts, pair_points
from vtw_eval.report.errors import ReportError
from vtw_eval.report.stats.evidence import Evidence, Kind

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSums:
    """Sufficient statistics of a metric.

    Parameters
    ----------
    kind
        How the metric follows from their (weighted) sum over groups.
    rows
        float64 ``[groups, columns]``, one row per unit of resampling.
        With repeats, those of one after those of another.
    weights
        float64 ``[groups]``, mean random weight of each: 1, and a little less in MME's categories, see
        :func:`_mme_sums`.
    right, wrong
        float64 ``[imagined, columns]``: an imagined document that is answered rightly, and one wrongly; for MME one
        pair for each category; none where scores have no bounds.
    repeats
        Runs with different seeds; the metric is the mean of theirs.
    """

    kind: Kind
    rows: Array
    weights: Array
    right: Array
    wrong: Array
    repeats: int = 1

    def value(self, sums: Array) -> Array:
        """Return the metric for (weighted) sums of the rows, ``[..., columns]``: mean over repeats, ``[...]``."""
        apart = sums.reshape(*sums.shape[:-1], self.repeats, -1)
        return cast("Array", metric(self.kind, apart).mean(axis=-1))


def metric(kind: Kind, sums: Array) -> Array:
    """Return the metric for sums over groups.

    Parameters
    ----------
    kind
        ``mean``: columns (sum of scores, documents). ``f1``: (true positives, false positives, false negatives).
        ``mme``: (points, pairs) for each category.
    sums
        float64 ``[..., columns]``.

    Returns
    -------
    ndarray
        float64 ``[...]``: a share of 1, or MME's points.
    """
    if kind == "f1":
        doubled, total = f1_parts(sums[..., 0], sums[..., 1], sums[..., 2])
        return cast("Array", np.divide(doubled, total, out=np.zeros_like(total), where=total > 0))
    points, counts = sums[..., 0::2], sums[..., 1::2]
    means = np.divide(points, counts, out=np.zeros_like(points), where=counts > 0)
    return cast("Array", means.sum(axis=-1))


def group_sums(evidence: Evidence) -> GroupSums:
    """Return the sufficient statistics of a metric by group.

    Raises
    ------
    ReportError
        For MME if a picture does not have two questions.
    """
    bound = _upper_bound(evidence.contributions) if evidence.kind == "mean" else None
    parts = [_sums(run, bound) for run in evidence.each()]
    if len(parts) == 1:
        return parts[0]
    rows, right, wrong = (
        np.hstack(arrays) for arrays in zip(*[(part.rows, part.right, part.wrong) for part in parts], strict=True)
    )
    return GroupSums(evidence.kind, rows, parts[0].weights, right, wrong, len(parts))


def _sums(evidence: Evidence, bound: float | None) -> GroupSums:
    """Return the statistics of one run; ``bound`` is the largest score that a document can have."""
    if evidence.kind == "mme":
        return _mme_sums(evidence)
    group = group_index(evidence)
    if evidence.kind == "f1":
        rows = sum_by(group, evidence.contributions[:, 1:4])
        yes = evidence.contributions[:, 4].mean()
        right, wrong = np.array([[yes, 0.0, 0.0]]), np.array([[0.0, 1 - yes, yes]])
        return GroupSums("f1", rows, np.ones(len(rows)), right, wrong)
    rows = sum_by(group, np.column_stack([evidence.scores, np.ones(len(group))]))
    right, wrong = np.array([[bound or 0.0, 1.0]]), np.array([[0.0, 1.0]])
    imagined = slice(None) if bound is not None else slice(0)
    return GroupSums("mean", rows, np.ones(len(rows)), right[imagined], wrong[imagined])


def group_index(evidence: Evidence) -> NDArray[np.intp]:
    """Return the number of each document's group, ``[documents]``."""
    return np.unique(np.array(evidence.documents.groups), return_inverse=True)[1]


def sum_by(group: NDArray[np.intp], values: Array) -> Array:
    """Return sums over the documents of each group, ``[groups, columns]``, from ``[documents, columns]``."""
    sums = np.zeros((group.max() + 1, values.shape[1]))
    np.add.at(sums, group, values)
    return sums


def value_of(evidence: Evidence) -> float:
    """Return the metric, as a share of 1 or in MME's points."""
    sums = group_sums(evidence)
    return float(sums.value(sums.rows.sum(axis=0)))


def by_category(evidence: Evidence) -> dict[str, float]:
    """Return the metric of each category's documents, by category in alphabetical order."""
    categories = np.array(evidence.documents.categories)
    found = {}
    for name in sorted(set(evidence.documents.categories)):
        chosen = np.flatnonzero(categories == name)
        found[name] = value_of(_subset(evidence, chosen))
    return found


def _subset(evidence: Evidence, chosen: NDArray[np.intp]) -> Evidence:
    old = evidence.documents
    documents = type(old)(
        tuple(old.ids[i] for i in chosen),
        tuple(old.groups[i] for i in chosen),
        tuple(old.categories[i] for i in chosen),
        old.targets_sha256,
    )
    return Evidence(evidence.kind, documents, evidence.contributions[chosen], evidence.repeats)


def _mme_sums(evidence: Evidence) -> GroupSums:
    """100 (accuracy + both right) of each pair, in the columns of its category.

    Categories are as small as 20 pairs. Random weights of mean (n - 2) / n make the variance of a category's mean the
    unbiased one (of n - 1), which is what keeps the coverage of a sum of 14 such means.
    """
    documents = evidence.documents
    names, category = np.unique(np.array(documents.categories), return_inverse=True)
    pairs = np.array([f"{c}\x00{g}" for c, g in zip(documents.categories, documents.groups, strict=True)])
    _, first, pair, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
    if (counts != 2).any():
        wrong = int(np.flatnonzero(counts != 2)[0])
        raise ReportError(
            f"MME scores pairs of questions, but picture {documents.groups[first[wrong]]!r} has {counts[wrong]}"
        )
    right = sum_by(pair, evidence.scores[:, None])[:, 0]
    rows = np.zeros((len(first), 2 * len(names)))
    places = np.arange(len(first))
    rows[places, 2 * category[first]] = pair_points(right)
    rows[places, 2 * category[first] + 1] = 1
    wrong_rows = np.zeros((len(names), 2 * len(names)))
    wrong_rows[np.arange(len(names)), 2 * np.arange(len(names)) + 1] = 1
    right_rows = wrong_rows.copy()
    right_rows[np.arange(len(names)), 2 * np.arange(len(names))] = 200
    size = np.bincount(category[first])[category[first]]
    return GroupSums("mme", rows, np.where(size > 2, (size - 2) / size, 1.0), right_rows, wrong_rows)


def _upper_bound(scores: Array) -> float | None:
    if scores.min() < 0:
        return None
    return next((bound for bound in (1.0, 100.0) if scores.max() <= bound), None)
