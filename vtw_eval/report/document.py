"""The whole report as blocks: short at the top, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vtw_eval.report.analysis import ModelTable
from vtw_eval.report.blocks import Block, Details, Heading, Image, Inline, Items, Paragraph, Table, Text
from vtw_eval.report.changes import Changes, changes_blocks
from vtw_eval.report.examples import changed_answers
from vtw_eval.report.labels import families
from vtw_eval.report.results import Results
from vtw_eval.report.tables import (
    ablation_table,
    interval_table,
    main_table,
    notes_of,
    paired_table,
    subtask_table,
)
from vtw_eval.report.trust import origin_notes


@dataclass(frozen=True)
class Options:
    """What a report shows beside its tables."""

    title: str
    command: str = ""
    """That made the results."""
    equivalence: float | None = None
    """Percent of a metric's range within which the baseline counts as equal."""
    changes: Changes | None = None
    published: Sequence[Block] = ()
    """Printed numbers beside ours."""
    images: dict[str, list[Image]] = field(default_factory=dict)
    """By model."""


def report_blocks(results: Results, tables: Sequence[ModelTable], options: Options) -> list[Block]:
    """Return a report.

    Parameters
    ----------
    results
        All cells.
    tables
        Of :func:`vtw_eval.report.analysis.analyse`.
    options
        What to show with them.
    """
    blocks: list[Block] = [Heading(1, options.title)]
    if origins := origin_notes(results.cells):
        blocks.append(Items(origins))
    if options.changes is not None:
        blocks += changes_blocks(options.changes)
    for table in tables:
        if len(tables) > 1:
            blocks.append(Heading(2, table.model))
        blocks += _model_blocks(results, table, options)
    problems = [
        f"{r.spec.model} / {r.spec.method} / {r.spec.task}: {r.state}{': ' + r.problem if r.problem else ''}"
        for r in results.cells
        if r.state != "done"
    ]
    if problems:
        blocks += [Paragraph(Text(f"{len(problems)} of {len(results.cells)} cells are not done:", "bold"))]
        blocks += [Items(problems)]
    if notes := notes_of(tables):
        blocks.append(Items(notes))
    if options.published:
        blocks.append(Details("Published numbers beside these", options.published))
    if options.command:
        blocks.append(Paragraph(("Made by ", Text(options.command, "code"), ".")))
    return blocks


def _model_blocks(results: Results, table: ModelTable, options: Options) -> list[Block]:
    blocks: list[Block] = [main_table(table, options.equivalence), Paragraph(_legend(table, options.equivalence))]
    if table.withheld:
        blocks.insert(0, Paragraph(Text(table.withheld, "bold")))
    blocks.append(Details("95 % intervals", [interval_table(table), Paragraph(_INTERVALS)]))
    if (paired := paired_table(table, options.equivalence)) is not None:
        blocks.append(Details("Differences to the baseline", [paired, Paragraph(_paired_note(options.equivalence))]))
    for title in table.columns:
        if (parts := subtask_table(table, title)) is not None:
            blocks.append(Details(f"{title} by category", [parts]))
    for family in families(row.method for row in table.rows):
        inner: list[Block] = [Paragraph(("Ablation of ", Text(family.parameter, "code"), f" in {family.name}."))]
        blocks.append(Details(f"{family.name}: {family.parameter}", [*inner, ablation_table(table, family)]))
    if images := options.images.get(table.model):
        blocks.append(Details("Plots", images))
    if (examples := changed_answers(table)) is not None:
        blocks.append(Details("Examples of changed answers", [examples]))
    blocks.append(Details("Methods in full", [_methods(table)]))
    if environment := _environment(table):
        blocks.append(Paragraph(f"Environment: {environment}."))
    return blocks


_INTERVALS = (
    "Bayesian bootstrap over groups of documents: questions about one image are one group, for MME the pair of "
    "questions. For a share without groups this is Jeffreys' interval."
)


def _legend(table: ModelTable, equivalence: float | None) -> str:
    documents: dict[str, int] = {}
    for row in table.rows:
        for task, result in row.results.items():
            if result.state == "done":
                documents.setdefault(task, result.documents)
    parts = []
    if table.comparisons:
        parts.append(
            "▼ ▲: significantly worse or better than the baseline, p < 0.05 after Holm's adjustment for the "
            f"{table.comparisons} differences of this table."
        )
    elif table.baseline is None:
        parts.append("There is no baseline among the methods, so no difference is tested.")
    if equivalence is not None:
        parts.append(f"≈: equal to the baseline within {equivalence:g} % of the metric's range (TOST, 5 % each side).")
    if len(table.rows) > 2:
        parts.append("Bold: best of the methods, the baseline aside.")
    if table.flops_tasks:
        some = set(table.columns.values()) - set(table.flops_tasks)
        which = f" of {', '.join(table.flops_tasks)}" if some else ""
        parts.append(f"FLOPs: prefill by the convention {table.convention}, mean over the documents{which}.")
    parts.append(f"Documents: {', '.join(f'{task} {n}' for task, n in documents.items()) or 'none'}.")
    return " ".join(parts)


def _paired_note(equivalence: float | None) -> str:
    text = (
        "Method minus baseline on the same documents, with a paired interval (not adjusted). p: exact McNemar test "
        "where scores are right or wrong and each document is its own group, otherwise a permutation test that swaps "
        "the answers of whole groups (smallest p 0.0001); adjusted by Holm over this table. Lost and won: documents "
        "whose score falls or rises."
    )
    if equivalence is None:
        return text
    return (
        f"{text} Equal: the paired 90 % interval lies within {equivalence:g} % of the metric's range on both sides, "
        "which is two one-sided tests at 5 %; not adjusted."
    )


def _methods(table: ModelTable) -> Table:
    rows: list[list[Inline]] = []
    for row in table.rows:
        ran = {task: " / ".join(r.methods) for task, r in row.results.items() if r.methods}
        differs = {task: text for task, text in ran.items() if text != row.method}
        if not differs:
            found = ""
        elif len(set(differs.values())) == 1 and len(differs) == len(ran):
            found = next(iter(differs.values()))
        else:
            found = "; ".join(f"{task}: {text}" for task, text in differs.items())
        rows.append([row.label, Text(row.method, "code"), found])
    return Table(["method", "as asked", "as run, where that differs"], rows, words=3)


def _environment(table: ModelTable) -> str:
    values: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for result in row.results.values():
            for name, value in result.environment.items():
                values.setdefault(name, {})[value] = None
    return ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in sorted(values.items()))
