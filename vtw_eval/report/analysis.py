"""What a table says: for each model, methods by columns, each with its interval and its difference to the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import labels_of
from vtw_eval.report.results import Outcome, Result, Results
from vtw_eval.report.statistics import Comparison, Interval, compare, holm, interval
from vtw_eval.report.trust import BASELINE, withheld_flops
from vtw_eval.sweep import CellSpec

SIGNIFICANT = 0.05

Verdict = Literal["", "better", "worse"]


@dataclass(frozen=True)
class Score:
    """One column of one cell that is done."""

    result: Result
    outcome: Outcome
    interval: Interval | None
    """In the points that tables show."""
    comparison: Comparison | None = None
    """To the baseline, as a share of 1 or in MME's points; None for the baseline itself or without evidence."""
    holm_p: float = 1.0
    """Adjusted for all comparisons of the model's table."""
    identical: float | None = None
    """Share of documents with the very answer of the baseline; None without samples."""

    @property
    def verdict(self) -> Verdict:
        """Whether the difference to the baseline is significant, and which way it goes."""
        if self.comparison is None:
            return ""
        return verdict(self.comparison, self.holm_p, self.outcome.higher_is_better)


@dataclass(frozen=True)
class Row:
    """One method of a model."""

    method: str
    label: str
    results: Mapping[str, Result]
    """By task."""
    scores: Mapping[str, Score]
    """By title of the column."""
    flops: float | None
    """Of the prefill, mean over the documents of :attr:`ModelTable.flops_tasks`."""


@dataclass(frozen=True)
class ModelTable:
    """All methods of one model."""

    model: str
    columns: Mapping[str, str]
    """Task by title of the column, in order."""
    rows: tuple[Row, ...]
    convention: str
    """Of the FLOPs; empty if no cell has any."""
    flops_tasks: tuple[str, ...]
    """The tasks that count for FLOPs: those that every method has finished (one that finished none aside)."""
    comparisons: int
    """How many differences Holm's adjustment counts."""
    withheld: str = ""
    """Why no FLOPs are shown, if they cannot be believed."""

    @property
    def baseline(self) -> Row | None:
        """The row of the unchanged model."""
        return next((row for row in self.rows if row.method == BASELINE), None)


def verdict(comparison: Comparison, p: float, higher_is_better: bool) -> Verdict:
    """Tell whether a difference is significant, and which way it goes."""
    if p >= SIGNIFICANT or comparison.difference == 0:
        return ""
    return "better" if (comparison.difference > 0) == higher_is_better else "worse"


def model_key(spec: CellSpec) -> tuple[str, ...]:
    """Return what must be equal for two cells to stand in one table."""
    return (spec.model, spec.harness, spec.adapter, spec.pretrained, json.dumps(spec.model_args, sort_keys=True))


def analyse(results: Results, convention: str | None = None) -> tuple[ModelTable, ...]:
    """Return a table for each model, in the order of the plan.

    Parameters
    ----------
    results
        All cells.
    convention
        Of the FLOPs, see :mod:`vtw_eval.cost`; None takes ``eq1``, or the first there is.

    Raises
    ------
    ReportError
        If there is no cell, no cell knows the convention, or methods cover different documents.
    """
    if not results.cells:
        raise ReportError(f"{results.source} holds no cell: run vtw-eval sweep first.")
    chosen = _convention(results, convention)
    by_model: dict[tuple[str, ...], list[Result]] = {}
    for result in results.cells:
        by_model.setdefault(model_key(result.spec), []).append(result)
    names = [key[0] for key in by_model]
    return tuple(
        _table(key[0] if names.count(key[0]) == 1 else f"{key[0]} ({key[1]})", own, chosen)
        for key, own in by_model.items()
    )


def _convention(results: Results, asked: str | None) -> str:
    known = list(dict.fromkeys(name for result in results.cells for name in result.flops))
    if asked is not None and asked not in known:
        raise ReportError(f"no cell has FLOPs by {asked!r}. Known here: {', '.join(known) or 'none'}.")
    return asked or ("eq1" if "eq1" in known else next(iter(known), ""))


def _table(model: str, results: Sequence[Result], convention: str) -> ModelTable:
    columns = _columns(results)
    by_method: dict[str, dict[str, Result]] = {}
    for result in results:
        own = by_method.setdefault(result.spec.method, {})
        if result.spec.task in own:
            raise ReportError(f"{model} / {result.spec.method} / {result.spec.task}: two cells of different limits.")
        own[result.spec.task] = result
    baseline = by_method.get(BASELINE, {})
    scores = {
        method: {
            title: _score(own[task], baseline.get(task), title)
            for title, task in columns.items()
            if task in own and title in own[task].outcomes
        }
        for method, own in by_method.items()
    }
    compared = [(m, t, s.comparison.p) for m, own in scores.items() for t, s in own.items() if s.comparison is not None]
    for (method, title, _), p in zip(compared, holm([p for _, _, p in compared]), strict=True):
        scores[method][title] = replace(scores[method][title], holm_p=p)
    tasks = _flops_tasks(by_method, convention)
    labels = labels_of(by_method)
    flops = {method: _flops(own, tasks, convention) for method, own in by_method.items()}
    if withheld := withheld_flops(flops, {method: own.values() for method, own in by_method.items()}):
        flops, tasks = dict.fromkeys(by_method), ()
    rows = tuple(Row(method, labels[method], own, scores[method], flops[method]) for method, own in by_method.items())
    return ModelTable(model, columns, rows, convention, tasks, len(compared), withheld)


def _columns(results: Sequence[Result]) -> dict[str, str]:
    tasks = dict.fromkeys(result.spec.task for result in results)
    found: dict[str, str] = {}
    for task in tasks:
        titles = dict.fromkeys(title for r in results if r.spec.task == task for title in r.outcomes)
        for title in titles or {task: None}:
            found[title] = task
    return found


def _score(result: Result, baseline: Result | None, title: str) -> Score:
    outcome = result.outcomes[title]
    if outcome.evidence is None:
        return Score(result, outcome, None)
    own = interval(outcome.evidence)
    shown = Interval(outcome.scale * own.low, outcome.scale * own.high)
    other = baseline.outcomes.get(title) if baseline is not None else None
    if baseline is None or result.spec.method == BASELINE or other is None or other.evidence is None:
        return Score(result, outcome, shown)
    try:
        comparison = compare(outcome.evidence, other.evidence)
    except ReportError as error:
        spec = result.spec
        raise ReportError(f"{spec.model} / {spec.task}: {spec.method} and the baseline cover {error}.") from error
    return Score(result, outcome, shown, comparison, identical=identical_answers(result, baseline))


def identical_answers(first: Result, second: Result) -> float | None:
    """Return the share of documents with the same answer, None without samples."""
    if not first.samples or not second.samples:
        return None
    answers = {sample.doc_id: sample.answer for sample in second.samples}
    return sum(answers.get(sample.doc_id) == sample.answer for sample in first.samples) / len(first.samples)


def _flops_tasks(by_method: Mapping[str, Mapping[str, Result]], convention: str) -> tuple[str, ...]:
    counted = [
        {task for task, result in own.items() if result.state == "done" and convention in result.flops}
        for own in by_method.values()
    ]
    some = [tasks for tasks in counted if tasks]
    common = set.intersection(*some) if some else set()
    order = dict.fromkeys(task for own in by_method.values() for task in own)
    return tuple(task for task in order if task in common)


def _flops(own: Mapping[str, Result], tasks: Sequence[str], convention: str) -> float | None:
    chosen = [own[task] for task in tasks if task in own and convention in own[task].flops]
    documents = sum(result.documents for result in chosen)
    return sum(r.flops[convention] * r.documents for r in chosen) / documents if documents else None
