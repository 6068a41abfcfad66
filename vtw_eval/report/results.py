"""The results that a report is made from: every cell of a sweep, in the order of its plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vtw_eval.names import names_of
from vtw_eval.record.cell import Cell, CellSpec, Metric, Sample
from vtw_eval.report.columns import Column, columns_of
from vtw_eval.report.errors import ReportError
from vtw_eval.report.stats.aggregate import value_of
from vtw_eval.report.stats.evidence import Evidence, evidence_of

State = Literal["done", "failed", "missing", "corrupt"]

_TOLERANCE = 0.005
"""Points: harnesses round to two decimals; one document of 10,000 is 0.01."""


@dataclass(frozen=True)
class Outcome:
    """One column of one cell."""

    metrics: tuple[str, ...]
    value: float
    """As tables show it: percent for shares."""
    scale: float
    """Points per unit of the metric that the evidence gives."""
    higher_is_better: bool
    evidence: Evidence | None
    note: str = ""
    """Why there is no evidence."""
    seeds: tuple[float, ...] = ()
    """Values of the runs with different seeds whose mean this is; empty for a single run."""


@dataclass(frozen=True)
class Result:
    """One cell of the plan, whatever became of it."""

    spec: CellSpec
    state: State
    problem: str = ""
    """Why it is not done, in one line."""
    methods: tuple[str, ...] = ()
    documents: int = 0
    flops: Mapping[str, float] = field(default_factory=dict)
    """FLOPs of the prefill by convention, mean over documents."""
    layers: int = 0
    """Decoder layers of the model; 0 if that is not known."""
    environment: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """By title of the column."""
    answers_sha256: str = ""
    """Of all answers in the order of the documents."""
    samples: tuple[Sample, ...] = ()
    """Empty where only a summary is at hand."""


@dataclass(frozen=True)
class Results:
    """All cells of a plan, by model, method and task."""

    source: str
    cells: tuple[Result, ...]
    title: str = ""
    """Of the plan."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What tables call methods, by spec as the cells have it."""
    budgets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Specs of methods that were set to one cost, by what it is called."""
    missed: Sequence[str] = ()
    """Which methods could not be set to a budget, and why."""


def read_store(folder: Path) -> Results:
    """Read the cells and samples of a sweep.

    Raises
    ------
    ReportError
        If the folder holds no sweep.
    """
    from vtw_eval.record.store import Store, StoreError

    store = Store(folder)
    try:
        index, found = store.index, store.entries()
        cells = [(entry.spec, entry.state, entry.problem, entry.cell) for entry in found]
        samples = {
            entry.spec.key: tuple(store.samples(entry.cell))
            for entry in found
            if entry.state == "done" and entry.cell is not None
        }
    except StoreError as error:
        raise ReportError(str(error)) from error
    present: dict[str, list[str]] = {}
    for spec, state, _, cell in cells:
        if state == "done" and cell is not None:
            present.setdefault(spec.task, []).extend(cell.metrics)
    columns = {task: columns_of(task, names) for task, names in present.items()}
    results = [
        result_of(cell, samples[spec.key], columns[spec.task])
        if state == "done" and cell is not None
        else Result(spec, state, problem or f"the cell is {state}")
        for spec, state, problem, cell in cells
    ]
    names = names_of((spec.method for spec, *_ in cells), index.names)
    return Results(str(folder), tuple(results), index.title, names, index.budgets, index.missed)


def result_of(cell: Cell, samples: Sequence[Sample], columns: Iterable[Column]) -> Result:
    """Return what a report needs of a cell that is done."""
    outcomes = {column.title: _outcome(cell, samples, column) for column in columns if _has(cell, column)}
    answers = json.dumps([(s.doc_id, s.answer) for s in sorted(samples, key=lambda s: s.doc_id)])
    return Result(
        spec=cell.spec,
        state="done",
        methods=tuple(cell.methods),
        documents=cell.documents,
        flops=dict(cell.costs.prefill_flops) if cell.costs else {},
        layers=len(cell.costs.tokens_per_layer) if cell.costs else 0,
        environment=cell.environment,
        outcomes=outcomes,
        answers_sha256=hashlib.sha256(answers.encode()).hexdigest(),
        samples=tuple(samples),
    )


def _has(cell: Cell, column: Column) -> bool:
    return all(name in cell.metrics for name in column.metrics)


def _outcome(cell: Cell, samples: Sequence[Sample], column: Column) -> Outcome:
    metrics = [cell.metrics[name] for name in column.metrics]
    shown = math.fsum(m.shown for m in metrics)
    evidence, scale, note = _evidence(metrics, samples, column, shown)
    return Outcome(column.metrics, shown, scale, metrics[0].higher_is_better, evidence, note)


def _evidence(
    metrics: Sequence[Metric], samples: Sequence[Sample], column: Column, shown: float
) -> tuple[Evidence | None, float, str]:
    kind = metrics[0].aggregate
    if kind == "other" or (len(metrics) > 1 and any(metric.aggregate != "mme" for metric in metrics)):
        return None, 1.0, "does not follow from the scores of single documents"
    try:
        evidence = evidence_of(samples, column.metrics, kind)
        value = value_of(evidence)
    except ReportError as error:
        return None, 1.0, str(error)
    scale = metrics[0].scale
    if abs(scale * value - shown) <= _TOLERANCE:
        return evidence, scale, ""
    return None, 1.0, f"the samples give {scale * value:.2f}, the task reports {shown:.2f}"
