"""Markdown tables in the layout of the VTW paper: methods by tasks, with the cost and its share of the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from vtw_eval.report.runs import Run, RunError

BASELINE = "baseline"


@dataclass(frozen=True)
class Column:
    """One column of scores: the sum of some metrics of a task."""

    title: str
    metrics: tuple[str, ...]
    percent: bool
    """Whether the metric is a share, shown times 100."""


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "ai2d": (Column("AI2D", ("exact_match",), True),),
    "mmbench_en_dev_static": (Column("MMB_EN", ("gpt_eval_score",), False),),
    "mme": (Column("MME", ("mme_perception_score", "mme_cognition_score"), False),),
    "mmmu_val": (Column("MMMU_val", ("mmmu_acc",), True),),
    "pope": (Column("POPE F1", ("pope_f1_score",), True),),
    "scienceqa_img": (Column("SQA_img", ("exact_match",), True),),
    "shapes_ai2d": (Column("ai2d", ("exact_match",), True),),
    "shapes_caption": (
        Column("caption EM", ("exact_match",), True),
        Column("caption F1", ("object_f1",), True),
    ),
    "shapes_mme": (Column("mme (of 600)", ("mme_perception_score",), False),),
    "shapes_pope": (Column("pope F1", ("pope_f1_score",), True),),
    "shapes_vqa": (Column("vqa", ("exact_match",), True),),
}
"""What to show of a task; of any other one, each metric as it is."""


def columns_of(task: str, run: Run) -> tuple[Column, ...]:
    """Return the columns of a task, from :data:`COLUMNS` or from the metrics a run has."""
    if task in COLUMNS:
        return COLUMNS[task]
    return tuple(Column(f"{task} {metric}", (metric,), False) for name, metric in run.scores if name == task)


def flops_unit(largest: float) -> tuple[float, str]:
    """Return the unit, in FLOPs and by name, in which a table shows costs up to ``largest``."""
    return (1e12, "TFLOPs") if largest >= 1e12 else (1e9, "GFLOPs")


def markdown_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table of runs over the same documents.

    Parameters
    ----------
    runs
        One per method; costs are shown as a share of the one called "baseline", if there is one.

    Raises
    ------
    RunError
        If the runs cover different documents, or one lacks a score.
    """
    first = runs[0]
    for run in runs:
        if run.documents != first.documents:
            raise RunError(
                f"{run.label} covers {dict(run.documents)} documents, {first.label} {dict(first.documents)}: "
                "evaluate all methods with the same tasks and --limit."
            )
    columns = [(task, column) for task in first.documents for column in columns_of(task, first)]
    baseline = next((run.prefill_flops for run in runs if run.label == BASELINE), None)
    unit, unit_name = flops_unit(max(run.prefill_flops for run in runs))
    rows = [
        [_escape(run.label), _cost(run.prefill_flops, unit, baseline), *(_score(run, t, c) for t, c in columns)]
        for run in runs
    ]
    headers = ["method", f"{unit_name} ↓", *(_escape(f"{column.title} ↑") for _, column in columns)]
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _cost(flops: float, unit: float, baseline: float | None) -> str:
    share = "" if baseline is None else f" ({flops / baseline:.1%})"
    return f"{flops / unit:.3g}{share}"


def _score(run: Run, task: str, column: Column) -> str:
    try:
        value = sum(run.scores[task, metric] for metric in column.metrics)
    except KeyError as error:
        raise RunError(f"{run.label} has no score {error.args[0][1]!r} for {task}.") from None
    return f"{100 * value if column.percent else value:.2f}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
