"""k=search,by=metric: VTW at the k that the task's own metric gives on the other half of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from vtw_eval.methods import VTW, Baseline, Method
from vtw_eval.methods.base import MetricSearch
from vtw_eval.model_adapters.lmms.models import document_name
from vtw_eval.models.curve import CurveRunner
from vtw_eval.record.cell import CellSpec, Metric
from vtw_eval.report.columns import columns_of
from vtw_eval.sweep.halves import Choice, choose_by_halves
from vtw_eval.sweep.harness import Evaluation, Progress


class OpenTask(Protocol):
    """What is needed of a checkpoint that is open: :class:`vtw_eval.model_adapters.lmms.cells.LmmsModel`."""

    @property
    def model(self) -> Any:
        """The harness's model, with our runner."""

    def run(self, spec: CellSpec, progress: Progress) -> Evaluation:
        """Evaluate the task of a cell with the method that is installed."""

    def name_of(self, name: str) -> tuple[str, str]:
        """Return how requests call a task and its split."""


def evaluate_by_metric(model: OpenTask, spec: CellSpec, method: Method, progress: Progress) -> Evaluation:
    """Evaluate a cell whose k is chosen by the task's metric.

    All documents are answered at all k at once (:class:`vtw_eval.models.curve.CurveRunner`) and scored by the harness
    at each; each half of them then gets the k of the other one, see :func:`vtw_eval.sweep.halves.choose_by_halves`.

    Parameters
    ----------
    model
        The open checkpoint.
    spec
        The cell.
    method
        Of the cell; its search is one by metric.
    progress
        Told how many documents are answered.

    Raises
    ------
    ValueError
        If the task's scores cannot tell.
    """
    runner = model.model._runner
    runner.exchange(method)
    bound, asked = runner.method, runner.method.search
    assert isinstance(asked, MetricSearch)
    layers = runner.anatomy.num_layers
    every = CurveRunner.beside(runner, range(asked.start, layers))
    model.model.runner = every
    try:
        found: dict[int, Evaluation] = {}
        for k in (layers, *every.ks):
            every.exchange(Baseline() if k == layers else VTW(k=k))
            found[k] = model.run(spec, progress)
        metrics = _shown(spec.task, found[layers])
        choices = choose_by_halves({k: each.samples for k, each in found.items()}, metrics, asked.loss)
        runner.log(f"{spec.task}: {bound}: {_scores(choices, layers)}")
        every.exchange(bound)
        name = model.name_of(spec.task)
        every.chosen = {document_name(*name, int(doc)): bound.found(c.k) for c in choices for doc in c.used_for}
        final = model.run(spec, progress)
    finally:
        model.model.runner = runner
    _check(final, choices, bound)
    return replace(final, environment={**final.environment, "search": _told(choices, asked)})


def _shown(task: str, unchanged: Evaluation) -> dict[str, Metric]:
    """Return the metrics of a task that tables show."""
    names = [name for column in columns_of(task, unchanged.metrics) for name in column.metrics]
    return {name: unchanged.metrics[name] for name in names}


def _check(final: Evaluation, choices: Sequence[Choice], method: Method) -> None:
    """Check that each document was answered at the k that was chosen on the others."""
    expected = {doc: str(method.found(choice.k)) for choice in choices for doc in choice.used_for}
    ran = {sample.doc_id: sample.costs.method if sample.costs is not None else "" for sample in final.samples}
    if ran != expected:
        wrong = next(doc for doc in {**ran, **expected} if ran.get(doc) != expected.get(doc))
        raise RuntimeError(f"document {wrong} ran with {ran.get(wrong)}, not with {expected.get(wrong)}.")


def _told(choices: Sequence[Choice], asked: MetricSearch) -> str:
    """Return what a cell keeps of the search."""
    names = ", ".join(choices[0].scores)
    each = "; ".join(f"k={c.k} for {len(c.used_for)} documents, chosen on {len(c.chosen_on)} others" for c in choices)
    return f"smallest k that loses at most {asked.loss:g} % of {names}: {each}"


def _scores(choices: Sequence[Choice], layers: int) -> str:
    """Return all scores of a search, for the log."""
    lines = []
    for choice in choices:
        for name, scores in choice.scores.items():
            values = ", ".join(f"{'unchanged' if k == layers else k}: {value:.2f}" for k, value in scores.items())
            lines.append(f"k={choice.k} by {name} of {len(choice.chosen_on)} documents ({values})")
    return "; ".join(lines)
