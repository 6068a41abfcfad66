"""Which metrics of a task a table shows, and under which title: those of the papers where they have the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vtw_eval.papers.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class Column:
    """One column of scores: the sum of some metrics of a task."""

    title: str
    metrics: tuple[str, ...]


_SHAPES: Mapping[str, tuple[Column, ...]] = {
    "shapes_ai2d": (Column("ai2d", ("exact_match",)),),
    "shapes_caption": (Column("caption EM", ("exact_match",)), Column("caption F1", ("object_f1",))),
    "shapes_mme": (Column("mme (of 600)", ("mme_perception_score",)),),
    "shapes_pope": (Column("pope F1", ("pope_f1_score",)),),
    "shapes_vqa": (Column("vqa", ("exact_match",)),),
    "boards_ai2d": (Column("ai2d", ("exact_match",)),),
    "boards_caption": (Column("caption EM", ("exact_match",)), Column("caption F1", ("object_f1",))),
    "boards_gqa": (Column("gqa", ("exact_match",)),),
    "boards_mme": (Column("mme (of 1000)", ("mme_perception_score",)),),
    "boards_pope": (Column("pope F1", ("pope_f1_score",)),),
    "boards_vqa": (Column("vqa", ("exact_match",)),),
    **{
        f"moves_{name}": (Column(name, ("exact_match",)),) for name in ("frameqa", "count", "action", "order", "choice")
    },
    # The same under VLMEvalKit.
    "Shapes_AI2D": (Column("ai2d", ("Overall",)),),
    "Shapes_Caption": (Column("caption EM", ("Overall",)), Column("caption F1", ("object_f1",))),
    "Shapes_MME": (Column("mme (of 600)", ("perception",)),),
    "Shapes_POPE": (Column("pope F1", ("Overall",)),),
    "Shapes_VQA": (Column("vqa", ("Overall",)),),
    "Boards_AI2D": (Column("ai2d", ("Overall",)),),
    "Boards_Caption": (Column("caption EM", ("Overall",)), Column("caption F1", ("object_f1",))),
    "Boards_GQA": (Column("gqa", ("Overall",)),),
    "Boards_MME": (Column("mme (of 1000)", ("perception",)),),
    "Boards_POPE": (Column("pope F1", ("Overall",)),),
    "Boards_VQA": (Column("vqa", ("Overall",)),),
    **{
        f"Moves_{name}": (Column(name.lower(), ("Overall",)),)
        for name in ("FrameQA", "Count", "Action", "Order", "Choice")
    },
}


def _papers() -> dict[str, tuple[Column, ...]]:
    """Columns of the papers' benchmarks, by task of either harness; of MME, perception and cognition together."""
    found: dict[str, tuple[Column, ...]] = {}
    for benchmark in BENCHMARKS:
        for score in (benchmark.lmms, benchmark.kit):
            if score is not None:
                found.setdefault(score.name, (Column(benchmark.title, score.metrics),))
    return found


COLUMNS: Mapping[str, tuple[Column, ...]] = {**_papers(), **_SHAPES}
"""What to show of a task; of any other one, each of its metrics."""


def columns_of(task: str, present: Iterable[str]) -> tuple[Column, ...]:
    """Return the columns of a task.

    Parameters
    ----------
    task
        Its name in its harness.
    present
        The metrics that its cells have.
    """
    there = list(dict.fromkeys(present))
    known = [
        Column(column.title, metrics)
        for column in COLUMNS.get(task, ())
        if (metrics := tuple(name for name in column.metrics if name in there))
    ]
    if known:
        return tuple(known)
    return tuple(Column(task if len(there) == 1 else f"{task} {name}", (name,)) for name in there)
