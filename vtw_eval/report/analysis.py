"""What a table says: for each model, methods by columns, each with its interval and its difference to the baseline."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vtw_eval.record.cell import CellSpec
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import group_label, labels_of, method_called, same_method
from vtw_eval.report.results import Outcome, Result, Results
from vtw_eval.report.seeds import pool, seed_groups
from vtw_eval.report.stats.statistics import Comparison, Interval, compare, holm, interval
from vtw_eval.report.trust import BASELINE, withheld_flops

SIGNIFICANT = 0.05

Mark = Literal["", "better", "worse"]


@dataclass(frozen=True)
class Score:
    """One column of one cell that is done."""

    result: Result
    outcome: Outcome
    interval: Interval | None
    """In the points that tables show."""
    comparison: Comparison | None = None
    """To the method of reference, as a share of 1 or in MME's points; None for it itself or without evidence."""
    holm_p: float = 1.0
    """Adjusted for all comparisons of the model's table."""
    identical: float | None = None
    """Share of documents with the very answer of the reference; None without samples."""

    @property
    def verdict(self) -> Mark:
        """Whether the difference to the reference is significant, and which way it goes."""
        if self.comparison is None:
            return ""
        return verdict(self.comparison, self.holm_p, self.outcome.higher_is_better)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, in the points that tables show; None for fewer than two runs."""
        return statistics.stdev(self.outcome.seeds) if len(self.outcome.seeds) > 1 else None


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
    seeds: tuple[Row, ...] = ()
    """The runs whose mean this is, one for each seed, without comparisons; empty for a single run. The method of the
    row is then that of the first."""
    name: str = ""
    """That the label has in place of the spec; empty if the method has none."""
    unnamed: str = ""
    """What the label would be without a name."""


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
    reference: Row | None = None
    """What the others are compared with."""

    @property
    def reference_name(self) -> str:
        """What texts call the method of reference."""
        if self.reference is None or (self.reference.method == BASELINE and not self.reference.name):
            return "the baseline"
        return self.reference.label

    @property
    def pooled(self) -> list[str]:
        """Methods of rows that stand for several seeds."""
        return [row.method for row in self.rows if row.seeds]

    @property
    def baseline(self) -> Row | None:
        """The row of the unchanged model."""
        return next((row for row in self.rows if row.method == BASELINE), None)


def verdict(comparison: Comparison, p: float, higher_is_better: bool) -> Mark:
    """Tell whether a difference is significant, and which way it goes."""
    if p >= SIGNIFICANT or comparison.difference == 0:
        return ""
    return "better" if (comparison.difference > 0) == higher_is_better else "worse"


def model_key(spec: CellSpec) -> tuple[str, ...]:
    """Return what must be equal for two cells to stand in one table."""
    return (spec.model, spec.harness, spec.adapter, spec.pretrained, json.dumps(spec.model_args, sort_keys=True))


def analyse(results: Results, convention: str | None = None, reference: str = BASELINE) -> tuple[ModelTable, ...]:
    """Return a table for each model, in the order of the plan.

    Of a plan that ran in part, methods, tasks and models of which no cell has run are left out.

    Parameters
    ----------
    results
        All cells.
    convention
        Of the FLOPs, see :mod:`vtw_eval.cost`; None takes ``eq1``, or the first there is.
    reference
        Spec or name of the method that the others are compared with.

    Raises
    ------
    ReportError
        If there is no cell, no cell knows the convention or is of the reference (but for the baseline, without which
        nothing is compared), or methods cover different documents.
    """
    if not results.cells:
        raise ReportError(f"{results.source} holds no cell: run vtw-eval sweep first.")
    chosen = _convention(results, convention)
    by_model: dict[tuple[str, ...], list[Result]] = {}
    for result in results.cells:
        by_model.setdefault(model_key(result.spec), []).append(result)
    specs = dict.fromkeys(result.spec.method for result in results.cells)
    reference = method_called(reference, results.names)
    if reference != BASELINE and not any(same_method(reference, spec) for spec in specs):
        raise ReportError(
            f"no cell is of the reference {reference!r}. Methods here: "
            f"{'; '.join(labels_of(specs, results.names).values())}."
        )
    names = [key[0] for key in by_model]
    started = {key: part for key, own in by_model.items() if (part := _that_ran(own))}
    return tuple(
        _table(key[0] if names.count(key[0]) == 1 else f"{key[0]} ({key[1]})", own, chosen, reference, results.names)
        for key, own in (started or by_model).items()
    )


def _that_ran(results: Sequence[Result]) -> list[Result]:
    """Return the cells of the methods and tasks of which some cell has run."""
    ran = [result.spec for result in results if result.state != "missing"]
    methods, tasks = {spec.method for spec in ran}, {spec.task for spec in ran}
    return [result for result in results if result.spec.method in methods and result.spec.task in tasks]


def _convention(results: Results, asked: str | None) -> str:
    known = list(dict.fromkeys(name for result in results.cells for name in result.flops))
    if asked is not None and asked not in known:
        raise ReportError(f"no cell has FLOPs by {asked!r}. Known here: {', '.join(known) or 'none'}.")
    return asked or ("eq1" if "eq1" in known else next(iter(known), ""))


def _table(
    model: str, results: Sequence[Result], convention: str, reference: str, names: Mapping[str, str]
) -> ModelTable:
    columns = _columns(results)
    single: dict[str, dict[str, Result]] = {}
    for result in results:
        own = single.setdefault(result.spec.method, {})
        if result.spec.task in own:
            raise ReportError(f"{model} / {result.spec.method} / {result.spec.task}: two cells of different limits.")
        own[result.spec.task] = result
    groups = {group[0]: group for group in seed_groups(single)}
    by_method = {first: _pooled([single[method] for method in group]) for first, group in groups.items()}
    chosen = next((m for m, group in groups.items() if any(same_method(reference, spec) for spec in group)), "")
    scores = {method: _scores(own, columns, by_method.get(chosen, {})) for method, own in by_method.items()}
    for method, found in scores.items():
        for title, score in found.items():
            if score.outcome.seeds and score.comparison is not None:
                found[title] = replace(
                    score, identical=_mean_identical(groups[method], single, by_method[chosen], title, columns)
                )
    compared = [(m, t, s.comparison.p) for m, own in scores.items() for t, s in own.items() if s.comparison is not None]
    for (method, title, _), p in zip(compared, holm([p for _, _, p in compared]), strict=True):
        scores[method][title] = replace(scores[method][title], holm_p=p)
    tasks = _flops_tasks(by_method, convention)
    flops = {method: _flops(own, tasks, convention) for method, own in by_method.items()}
    if withheld := withheld_flops(flops, {method: own.values() for method, own in by_method.items()}, names):
        flops, tasks = dict.fromkeys(by_method), ()
    labels, unnamed = labels_of(single, names), labels_of(single)
    rows = tuple(
        Row(
            method,
            group_label(group, labels, names),
            by_method[method],
            scores[method],
            flops[method],
            tuple(
                Row(spec, labels[spec], single[spec], _scores(single[spec], columns, {}), None, unnamed=unnamed[spec])
                for spec in (group if len(group) > 1 else ())
            ),
            names.get(method, ""),
            group_label(group, unnamed, {}),
        )
        for method, group in groups.items()
    )
    compared_with = next((row for row in rows if row.method == chosen), None)
    return ModelTable(model, columns, rows, convention, tasks, len(compared), withheld, compared_with)


def _pooled(runs: Sequence[Mapping[str, Result]]) -> dict[str, Result]:
    """Return results by task; means where there are several runs."""
    if len(runs) == 1:
        return dict(runs[0])
    tasks = dict.fromkeys(task for run in runs for task in run)
    return {task: pool([run[task] for run in runs if task in run]) for task in tasks}


def _scores(own: Mapping[str, Result], columns: Mapping[str, str], reference: Mapping[str, Result]) -> dict[str, Score]:
    """Return the scores of a method by title, compared with the results of another."""
    return {
        title: _score(own[task], reference.get(task), title)
        for title, task in columns.items()
        if task in own and title in own[task].outcomes
    }


def _mean_identical(
    group: Sequence[str],
    single: Mapping[str, Mapping[str, Result]],
    reference: Mapping[str, Result],
    title: str,
    columns: Mapping[str, str],
) -> float | None:
    """Return the mean over seeds of the share of answers that equal the reference's."""
    task = columns[title]
    runs = [single[spec][task] for spec in group if task in single[spec] and single[spec][task].state == "done"]
    shares = [identical_answers(run, reference[task]) for run in runs]
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if len(known) == len(shares) else None


def _columns(results: Sequence[Result]) -> dict[str, str]:
    tasks = dict.fromkeys(result.spec.task for result in results)
    found: dict[str, str] = {}
    for task in tasks:
        titles = dict.fromkeys(title for r in results if r.spec.task == task for title in r.outcomes)
        for title in titles or {task: None}:
            found[title] = task
    return found


def _score(result: Result, reference: Result | None, title: str) -> Score:
    outcome = result.outcomes[title]
    if outcome.evidence is None:
        return Score(result, outcome, None)
    own = interval(outcome.evidence)
    shown = Interval(outcome.scale * own.low, outcome.scale * own.high)
    other = reference.outcomes.get(title) if reference is not None and reference is not result else None
    if reference is None or other is None or other.evidence is None:
        return Score(result, outcome, shown)
    try:
        comparison = compare(outcome.evidence, other.evidence)
    except ReportError as error:
        spec, name = result.spec, "the baseline" if reference.spec.method == BASELINE else reference.spec.method
        raise ReportError(f"{spec.model} / {spec.task}: {spec.method} and {name} cover {error}.") from error
    return Score(result, outcome, shown, comparison, identical=identical_answers(result, reference))


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
