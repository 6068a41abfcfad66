"""What the documents of a cell contribute to one metric, in the form that statistics need."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vtw_eval.record.cell import Sample
from vtw_eval.record.metrics import is_yes, yes_counts
from vtw_eval.report.errors import ReportError

Kind = Literal["mean", "f1", "mme"]
"""The aggregates of :data:`vtw_eval.record.cell.Aggregate` that follow from the samples."""


@dataclass(frozen=True)
class Documents:
    """The documents behind a metric, sorted by id."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    """The unit of resampling of each document."""
    categories: tuple[str, ...]
    targets_sha256: str
    """Of the ids and targets: equal ids with other targets are other documents."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Evidence:
    """One metric of one cell, document by document.

    Parameters
    ----------
    kind
        How the metric follows from the documents.
    documents
        Which they are.
    contributions
        float64 ``[documents, columns]``. ``mean`` and ``mme``: the score. ``f1``: the score, then 1 or 0 for a true
        positive, a false positive, a false negative and a target "yes". With ``repeats``: these columns of one run
        after those of another, ``[documents, repeats * columns]``.
    repeats
        Runs with different seeds on the same documents; the metric is the mean of theirs.
    """

    kind: Kind
    documents: Documents
    contributions: NDArray[np.float64]
    repeats: int = 1

    @property
    def scores(self) -> NDArray[np.float64]:
        """Score of each document, float64 ``[documents]``; the mean over repeats."""
        return self.contributions.reshape(len(self.documents), self.repeats, -1)[:, :, 0].mean(axis=1)

    def each(self) -> list[Evidence]:
        """Return the evidence of each repeat."""
        parts = np.split(self.contributions, self.repeats, axis=1)
        return [Evidence(self.kind, self.documents, part) for part in parts]

    @cached_property
    def right_or_wrong(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.scores, (0.0, 1.0)).all())


def evidence_of(samples: Sequence[Sample], metrics: Sequence[str], kind: Kind) -> Evidence:
    """Collect what samples contribute to a metric.

    Parameters
    ----------
    samples
        Of one cell. Those that have none of the metrics do not take part.
    metrics
        Names in :attr:`vtw_eval.record.cell.Sample.scores`; several are one sum, as MME's perception and cognition.
    kind
        How the metric follows from the documents.

    Raises
    ------
    ReportError
        If there is no such sample, or a document stands twice.
    """
    chosen = sorted((s for s in samples if any(m in s.scores for m in metrics)), key=lambda s: s.doc_id)
    if not chosen:
        raise ReportError(f"no sample has a score {' or '.join(metrics)}")
    ids = tuple(s.doc_id for s in chosen)
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise ReportError(f"document {twice!r} stands twice among the samples")
    digest = hashlib.sha256(json.dumps([(s.doc_id, s.target) for s in chosen]).encode()).hexdigest()
    documents = Documents(ids, tuple(s.group for s in chosen), tuple(s.category for s in chosen), digest)
    scores = [sum(s.scores[m] for m in metrics if m in s.scores) for s in chosen]
    if kind != "f1":
        return Evidence(kind, documents, np.array(scores, dtype=np.float64)[:, None])
    return Evidence(kind, documents, np.array([_f1_row(s, score) for s, score in zip(chosen, scores, strict=True)]))


def repeated(runs: Sequence[Evidence]) -> Evidence:
    """Return the evidence of a metric's mean over runs with different seeds.

    Raises
    ------
    ReportError
        If their documents differ.
    """
    for run in runs[1:]:
        check_same_documents(runs[0].documents, run.documents)
    return Evidence(runs[0].kind, runs[0].documents, np.hstack([run.contributions for run in runs]), len(runs))


def _f1_row(sample: Sample, score: float) -> list[float]:
    return [score, *map(float, yes_counts(sample.prediction, sample.target)), float(is_yes(sample.target))]


def check_same_documents(first: Documents, second: Documents) -> None:
    """Check that two metrics cover the same documents.

    Raises
    ------
    ReportError
        If they do not; the message counts or names the difference.
    """
    if first == second:
        return
    if first.ids != second.ids:
        lack, extra = set(first.ids) - set(second.ids), set(second.ids) - set(first.ids)
        some = ", ".join(sorted(lack | extra)[:3])
        raise ReportError(
            f"different documents ({len(first)} and {len(second)}; {len(lack | extra)} are in one only, such as "
            f"{some}): evaluate both with the same task and limit"
        )
    what = "targets" if first.targets_sha256 != second.targets_sha256 else "groups or categories"
    raise ReportError(f"the same document ids, but different {what}: the data of the task has changed")
