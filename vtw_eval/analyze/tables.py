"""Everything that was read, as CSV: one file for each part, one number a row and column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vtw_eval.analyze.analysis import TaskAnalysis
from vtw_eval.analyze.documents import OverDocuments
from vtw_eval.analyze.roles import FIRST, KINDS, ROLES

ALL = "all"
"""Stands for the mean over layers, or over the tokens of an answer."""

Row = Sequence[str | float | int | None]


def csv_files(tasks: Sequence[TaskAnalysis]) -> dict[str, str]:
    """Return the tables by name of the file.

    ``attention.csv``
        Share of the attention that goes to each role (and to the first token, which has a role, too), by layer and
        token of the answer; token 0 is predicted by the prompt's last token. Mean and standard deviation over the
        documents.
    ``kinds.csv``
        Mean and variance of the weights of DyVTE's kinds of attention by layer (Fig. 3, 8-12 there), and the share of
        the queries' attention that goes to these keys.
    ``entropy.csv``
        Entropy of the same (Fig. 5, 13-16 there), nats.
    ``agreement.csv``
        Answers of VTW that are those of the unchanged model by k, with 95 % intervals, and the KL of the first word.
    """
    return {
        "attention.csv": _csv(
            ("task", "method", "layer", "token", "role", "mean", "sd", "documents"),
            (row for task in tasks for row in _attention(task)),
        ),
        "kinds.csv": _csv(
            ("task", "method", "layer", "kind", "mean", "variance", "mass", "mass sd", "documents"),
            (row for task in tasks for row in _kinds(task)),
        ),
        "entropy.csv": _csv(
            ("task", "method", "layer", "kind", "entropy", "sd", "partial entropy", "partial sd", "documents"),
            (row for task in tasks for row in _entropy(task)),
        ),
        "agreement.csv": _csv(
            ("task", "k", "agreement", "low", "high", "kl", "documents"),
            (
                (task.task, one.k, one.share, one.low, one.high, one.divergence, task.documents)
                for task in tasks
                for one in task.agreement
            ),
        ),
    }


def _csv(headers: Sequence[str], rows: Iterable[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: str | float | int | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""  # there is nothing of the kind, such as vision tokens that are withdrawn
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _attention(task: TaskAnalysis) -> Iterator[Row]:
    for one in task.attention:
        parts = (
            ((layer, token, one.shares, (token, layer)) for token, layer in np.ndindex(one.shares.mean.shape[:2])),
            ((layer, ALL, one.by_layer, (layer,)) for layer in range(task.layers)),
            ((ALL, token, one.by_token, (token,)) for token in range(len(one.by_token.mean))),
            ((ALL, ALL, one.overall, ()),),
        )
        for part in parts:
            for layer, token, values, place in part:
                for number, role in enumerate((*ROLES, FIRST)):
                    yield (task.task, one.method, layer, token, role, *_three(values, (*place, number)))


def _three(values: OverDocuments, place: tuple[int, ...]) -> tuple[float, float, int]:
    return float(values.mean[place]), float(values.sd[place]), int(values.documents[place])


def _kinds(task: TaskAnalysis) -> Iterator[Row]:
    for one in task.attention:
        for layer in range(task.layers):
            for number, kind in enumerate(KINDS):
                mean, variance = (float(one.kinds[name].mean[layer, number]) for name in ("mean", "variance"))
                yield (task.task, one.method, layer, kind, mean, variance, *_three(one.kinds["mass"], (layer, number)))


def _entropy(task: TaskAnalysis) -> Iterator[Row]:
    for one in task.attention:
        for layer in range(task.layers):
            for number, kind in enumerate(KINDS):
                entropy, sd, documents = _three(one.kinds["entropy"], (layer, number))
                partial = _three(one.kinds["partial_entropy"], (layer, number))
                yield (task.task, one.method, layer, kind, entropy, sd, *partial[:2], documents)
