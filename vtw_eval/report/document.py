"""The whole report as blocks: short at the top, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vtw_eval.report.analysis import BASELINE, ModelTable
from vtw_eval.report.budgets import budget_blocks, budget_rows
from vtw_eval.report.changes import Changes, changes_blocks
from vtw_eval.report.choice_blocks import choice_blocks
from vtw_eval.report.examples import changed_answers
from vtw_eval.report.labels import families, named_labels
from vtw_eval.report.measured import Measured, measured_tables
from vtw_eval.report.plots import picture_name
from vtw_eval.report.render.blocks import Block, Captioned, Details, Heading, Image, Inline, Items, Paragraph, Text
from vtw_eval.report.results import Results
from vtw_eval.report.tables import (
    ablation_table,
    interval_table,
    main_table,
    notes_of,
    paired_table,
    seed_table,
    subtask_table,
)
from vtw_eval.report.trust import DOCUMENT_NOTES, document_notes, origin_notes, sharing_note
from vtw_eval.tables import Table


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows beside its tables."""

    title: str
    command: str = ""
    """That made the results."""
    equivalence: float | None = None
    """Percent of a metric's range within which a method counts as equal to the reference."""
    part: str = ""
    """Which cells are shown, if not all."""
    changes: Changes | None = None
    published: Sequence[Block] = ()
    """Printed numbers beside ours."""
    images: dict[str, list[Image]] = field(default_factory=dict)
    """By model."""
    measured: Sequence[Measured] = ()
    """Latency and memory."""
    pictures: bool = False
    """Whether examples show pictures."""
    curves: Sequence[Block] = ()
    """VTW at every k."""


def report_blocks(results: Results, tables: Sequence[ModelTable], options: ReportOptions) -> list[Block]:
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
    if options.part:
        blocks.append(Paragraph(f"A part of the results: {options.part}."))
    told: set[str] = set()
    for table in tables:
        if len(tables) > 1:
            blocks.append(Heading(2, table.model))
        blocks += _model_blocks(table, options, told, budget_blocks(table, results, options.equivalence))
        told |= {row.name for row in table.rows}
    blocks += options.curves
    blocks += _not_done(results)
    if notes := [*document_notes(results.cells), *notes_of(tables)]:
        blocks.append(Items(notes))
    if options.published:
        blocks.append(Details("Published numbers beside these", options.published))
    if options.command:
        blocks.append(Paragraph(("Made by ", Text(options.command, "code"), ".")))
    return blocks


def table_blocks(results: Results, tables: Sequence[ModelTable], options: ReportOptions) -> list[Block]:
    """Return the main tables alone, each with its legend as its caption; parameters as :func:`report_blocks`."""
    blocks: list[Block] = []
    for table in tables:
        budgets = budget_rows(table, results)
        base = [row for row in table.rows if row.method == BASELINE]
        parts = {f"at {label}": (*base, *rows) for label, rows in budgets.items()} or {"": table.rows}
        for number, (label, rows) in enumerate(parts.items()):
            what = f"{table.model}{f' {label}' if label else ''}: scores of methods. "
            name = picture_name(table.model, *([str(number + 1)] if label else []))
            shown = main_table(replace(table, rows=tuple(rows)), options.equivalence)
            blocks.append(Captioned(shown, what + _legend(table, options.equivalence), f"tab:{name}"))
            if table.withheld:
                blocks.append(Paragraph(Text(table.withheld, "bold")))
    return [*blocks, *_not_done(results)]


def _not_done(results: Results) -> list[Block]:
    """Return what is not done: a line for each failed cell, one for each method with those that have not run."""
    named = named_labels(dict.fromkeys(result.spec.method for result in results.cells), results.names)
    lines: list[str] = []
    waiting: dict[tuple[str, str], list[str]] = {}
    for result in results.cells:
        spec = result.spec
        method = named.get(spec.method, spec.method)
        if result.state == "missing":
            waiting.setdefault((spec.model, method), []).append(spec.task)
        elif result.state != "done":
            problem = f": {result.problem}" if result.problem else ""
            lines.append(f"{spec.model} / {method} / {spec.task}: {result.state}{problem}")
    tasks = {(r.spec.model, r.spec.task) for r in results.cells}
    alike: dict[tuple[str, str], list[str]] = {}
    for (model, method), own in waiting.items():
        everything = len(own) > 1 and len(own) == sum(name == model for name, _ in tasks)
        alike.setdefault((model, "all tasks" if everything else ", ".join(own)), []).append(method)
    lines += [f"{model} / {'; '.join(methods)} / {own}: missing" for (model, own), methods in alike.items()]
    if not lines:
        return []
    count = sum(result.state != "done" for result in results.cells)
    return [Paragraph(Text(f"{count} of {len(results.cells)} cells are not done:", "bold")), Items(lines)]


def _model_blocks(table: ModelTable, options: ReportOptions, told: set[str], budgets: Sequence[Block]) -> list[Block]:
    everything = main_table(table, options.equivalence)
    blocks: list[Block] = [*budgets, Details("All methods", [everything])] if budgets else [everything]
    blocks.append(Paragraph(_legend(table, options.equivalence)))
    if shared := sharing_note(result for row in table.rows for result in row.results.values()):
        blocks.append(Paragraph(shared))
    named: list[Inline] = [
        (f"{row.name}: ", Text(row.unnamed, "code")) for row in table.rows if row.name and row.name not in told
    ]
    if named:
        blocks += [Paragraph("Methods:"), Items(named)]
    if table.withheld:
        blocks.insert(0, Paragraph(Text(table.withheld, "bold")))
    for text, measured in measured_tables(table, options.measured):
        blocks += [measured, Paragraph(f"Measured: {text}")]
    blocks += choice_blocks(table)
    if images := options.images.get(table.model):
        blocks.append(Details("Plots", images, open=True))
    blocks.append(Details("95 % intervals", [interval_table(table), Paragraph(_INTERVALS)]))
    if (paired := paired_table(table, options.equivalence)) is not None:
        note = Paragraph(_paired_note(table.reference_name, options.equivalence))
        blocks.append(Details(f"Differences to {table.reference_name}", [paired, note]))
    if (seeds := seed_table(table)) is not None:
        blocks.append(Details("Seeds", [seeds, Paragraph(_SEEDS)]))
    for title in table.columns:
        if (parts := subtask_table(table, title)) is not None:
            blocks.append(Details(f"{title} by category", [parts]))
    for family in families((row.method for row in table.rows), table.pooled):
        inner: list[Block] = [Paragraph(("Ablation of ", Text(family.parameter, "code"), f" in {family.name}."))]
        blocks.append(Details(f"{family.name}: {family.parameter}", [*inner, ablation_table(table, family)]))
    if examples := changed_answers(table, options.pictures):
        blocks.append(Details("Examples of changed answers", examples))
    blocks.append(Details("Methods in full", [_methods(table)]))
    if environment := _environment(table):
        blocks.append(Paragraph(f"Environment: {environment}."))
    return blocks


_INTERVALS = (
    "Bayesian bootstrap over groups of documents: questions about one image are one group, for MME the pair of "
    "questions. For a share without groups this is Jeffreys' interval."
)


_SEEDS = (
    "A method that ran with several seeds is one row: the mean of its scores ± their standard deviation over seeds. "
    "It is compared once, by that mean; intervals are over documents, for these seeds."
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
            f"▼ ▲: significantly worse or better than {table.reference_name}, p < 0.05 after Holm's adjustment for the "
            f"{table.comparisons} differences of this table."
        )
    elif table.reference is None:
        lacking = "baseline" if table.baseline is None else "method of reference"
        parts.append(f"There is no {lacking} among the methods, so no difference is tested.")
    if table.pooled:
        parts.append("±: standard deviation over seeds of a method that ran with several.")
    if equivalence is not None:
        parts.append(
            f"≈: equal to {table.reference_name} within {equivalence:g} % of the metric's range (TOST, 5 % each side)."
        )
    if len(table.rows) > 2:
        parts.append("Bold: best of the methods, the baseline aside.")
    if table.flops_tasks:
        some = set(table.columns.values()) - set(table.flops_tasks)
        which = f" of {', '.join(table.flops_tasks)}" if some else ""
        parts.append(f"FLOPs: prefill by the convention {table.convention}, mean over the documents{which}.")
    parts.append(f"Documents: {', '.join(f'{task} {n}' for task, n in documents.items()) or 'none'}.")
    return " ".join(parts)


def _paired_note(reference: str, equivalence: float | None) -> str:
    other = "baseline" if reference == "the baseline" else reference
    text = (
        f"Method minus {other} on the same documents, with a paired interval (not adjusted). "
        "p: exact McNemar test where scores are right or wrong and each document is its own group, otherwise a "
        "permutation test that swaps the answers of whole groups (smallest p 0.0001); adjusted by Holm over this "
        "table. Lost and won: documents whose score falls or rises."
    )
    if equivalence is None:
        return text
    return (
        f"{text} Equal: the paired 90 % interval lies within {equivalence:g} % of the metric's range on both sides, "
        "which is two one-sided tests at 5 %; not adjusted."
    )


def _methods(table: ModelTable) -> Table[Inline]:
    rows: list[list[Inline]] = []
    for row in table.rows:
        ran = {task: " / ".join(r.methods) for task, r in row.results.items() if r.methods}
        differs = {
            task: text for task, text in ran.items() if text != " / ".join(r.method for r in row.seeds or (row,))
        }
        if not differs:
            found = ""
        elif len(set(differs.values())) == 1 and len(differs) == len(ran):
            found = next(iter(differs.values()))
        else:
            found = "; ".join(f"{task}: {text}" for task, text in differs.items())
        asked = "; ".join(run.method for run in row.seeds) or row.method
        rows.append([row.label, Text(asked, "code"), found])
    return Table(["method", "as asked", "as run, where that differs"], rows, words=3)


def _environment(table: ModelTable) -> str:
    values: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for result in row.results.values():
            for name, value in result.environment.items():
                if name in DOCUMENT_NOTES:
                    continue
                values.setdefault(name, {})[value] = None
    return ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in sorted(values.items()))
