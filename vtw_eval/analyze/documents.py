"""Means over documents, each of which counts once; what a document does not have, it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtw_eval.report.stats.evidence import Documents, Evidence
from vtw_eval.report.stats.statistics import Interval, interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OverDocuments:
    """Mean, standard deviation and number of documents, arrays of one shape; NaN where no document has a value."""

    mean: Array
    sd: Array
    documents: NDArray[np.int64]


def over_documents(values: Sequence[Array]) -> OverDocuments:
    """Return mean and standard deviation over documents.

    Parameters
    ----------
    values
        For each document an array; NaN is left out. Where the first axis differs in length (answers do), a document
        counts as far as its own reaches.
    """
    longest = max(len(each) for each in values)
    padded = [np.concatenate([each, np.full((longest - len(each), *each.shape[1:]), np.nan)]) for each in values]
    stacked = np.stack(padded)
    there = ~np.isnan(stacked)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, stacked, 0).sum(axis=0) / count
        square = np.where(there, (stacked - mean) ** 2, 0).sum(axis=0) / (count - 1)
    return OverDocuments(mean, np.sqrt(np.where(count > 1, square, np.nan)), count)


def share_interval(hits: Sequence[bool], groups: Sequence[str]) -> Interval:
    """Return the 95 % interval of a share of documents, as reports have it for scores.

    Parameters
    ----------
    hits
        Of each document.
    groups
        What it shows; documents that show the same are no independent evidence.
    """
    names = tuple(str(number) for number in range(len(hits)))
    documents = Documents(names, tuple(groups), ("",) * len(hits), "")
    return interval(Evidence("mean", documents, np.array(hits, dtype=np.float64)[:, None]))
