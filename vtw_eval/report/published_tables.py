"""The papers' printed tables, alone or beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vtw_eval.checkpoints import KNOWN
from vtw_eval.errors import suggest
from vtw_eval.papers.printed import LABEL, PrintedRow, PrintedTable, papers, printed_tables
from vtw_eval.report.analysis import BASELINE, ModelTable, Score
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import params_of
from vtw_eval.report.render.blocks import Block, Heading, Inline, Items, Paragraph, Text
from vtw_eval.report.results import Result
from vtw_eval.tables import Table


def published_blocks(name: str) -> list[Block]:
    """Return a paper's table with its notes.

    Parameters
    ----------
    name
        A key of :func:`~vtw_eval.papers.printed.printed_tables`, or ``all``.

    Raises
    ------
    ReportError
        If there is no such table.
    """
    known = printed_tables()
    if name == "all":
        return [block for one in known for block in published_blocks(one)]
    if name not in known:
        raise ReportError(f"unknown table {name!r}{suggest(name, list(known))} Valid: {', '.join(known)}, all.")
    paper = next(paper for paper in papers().values() if name in paper.tables)
    table = known[name]
    used: dict[str, str] = {}
    shown = [column for i, column in enumerate(table.columns) if not _belongs_to_last(table.columns, i)]
    headers = ["", *(f"{c} {'↓' if c in table.lower else ''}".strip() for c in shown)]
    headers = [
        f"{h}{_marks(table.header_notes.get(c, []), used)}" for h, c in zip(headers, (LABEL, *shown), strict=True)
    ]
    rows: list[list[Inline]] = []
    for row in table.rows:
        label = f"{row.label}{_marks(row.notes.get(LABEL, []), used)}"
        rows.append([label, *(_cell(table, row, column, used) for column in shown)])
    blocks: list[Block] = [Heading(2, f"{paper.paper}"), Paragraph(Text(table.title, "bold")), Table(headers, rows)]
    if any(_best(table, row, column) for row in table.rows for column in shown):
        blocks.append(Paragraph("Bold (ours): best of a model's methods, the unchanged model aside."))
    if used:
        blocks.append(Items([f"[{mark}] {table.notes[key]}" for key, mark in used.items()]))
    blocks.append(Paragraph(("Made by ", Text(f"vtw-eval report {name} --published", "code"), ".")))
    return blocks


def beside_blocks(tables: Sequence[ModelTable]) -> list[Block]:
    """Return printed numbers beside ours, wherever checkpoint, method and task are the same.

    Raises
    ------
    ReportError
        If nothing of what we have has been published.
    """
    blocks: list[Block] = []
    for paper in papers().values():
        for name, published in paper.tables.items():
            used: dict[str, str] = {}
            rows = [line for row in published.rows for table in tables for line in _beside(published, row, table, used)]
            if rows:
                headers = ["model", "method", "task", "published", "ours [95 %]", "ours - published"]
                blocks += [Paragraph(Text(f"{paper.paper}, {published.title} ({name})", "bold"))]
                blocks.append(Table(headers, rows, words=3))
                if used:
                    blocks.append(Items([f"[{mark}] {published.notes[key]}" for key, mark in used.items()]))
    if not blocks:
        return [Paragraph("Neither paper prints these models, methods and tasks.")]
    return blocks


def _beside(published: PrintedTable, row: PrintedRow, table: ModelTable, used: dict[str, str]) -> list[list[Inline]]:
    lines: list[list[Inline]] = []
    known = {hub.lower() for entry in KNOWN if entry.name == row.model for hub in entry.hub}
    for ours in table.rows:
        for column in published.columns:
            score, value = ours.scores.get(column), published.value(row, column)
            if score is None or not isinstance(value, float | int) or not row.method:
                continue
            if score.result.spec.pretrained.lower() not in known or not _same_method(row.method, score.result):
                continue
            shown = 100 * value if column in published.shares else value
            keys = [*published.header_notes.get(column, []), *row.notes.get(column, []), *row.notes.get(LABEL, [])]
            marks = _marks(keys, used)
            lines.append([table.model, ours.label, column, f"{shown:.2f}{marks}", *_ours(score, shown)])
    return lines


def _ours(score: Score, published: float) -> list[str]:
    value, own = score.outcome.value, score.interval
    limits = f" [{own.low:.2f}, {own.high:.2f}]" if own else ""
    return [f"{value:.2f}{limits}", f"{value - published:+.2f}"]


def _same_method(published: str, result: Result) -> bool:
    """Tell whether a cell ran the published method; parameters that the paper leaves open may have any value."""
    ran = result.methods[0] if len(result.methods) == 1 else result.spec.method
    if published.partition(",")[0] != ran.partition(",")[0]:
        return False
    ours = params_of(ran)
    return all(ours.get(name) == value for name, value in params_of(published).items() if value is not None)


def _belongs_to_last(columns: Sequence[str], index: int) -> bool:
    """Tell whether a column is printed in brackets behind the one before it."""
    name = columns[index]
    return index > 0 and (name == "share %" or name == f"{columns[index - 1]} change %")


def _cell(table: PrintedTable, row: PrintedRow, column: str, used: dict[str, str]) -> Inline:
    text = f"{table.printed(row, column)}{_marks(row.notes.get(column, []), used)}"
    place = table.columns.index(column) + 1
    extra = ""
    if place < len(table.columns) and _belongs_to_last(table.columns, place):
        name = table.columns[place]
        if printed := table.printed(row, name):
            sign = "+" if name != "share %" and not printed.startswith("-") else ""
            extra = f" ({sign}{printed} %{_marks(row.notes.get(name, []), used)})"
    return (Text(text, "bold" if _best(table, row, column) else "plain"), extra)


def _best(table: PrintedTable, row: PrintedRow, column: str) -> bool:
    """Tell whether a value is the best of its model's methods; costs and the unchanged model do not take part."""
    if column in table.lower or not row.method or row.method == BASELINE:
        return False
    rivals = [
        value
        for other in table.rows
        if other.model == row.model and other.method and other.method != BASELINE
        if isinstance(value := table.value(other, column), float | int)
    ]
    return len(rivals) > 1 and table.value(row, column) == max(rivals)


def _marks(keys: Iterable[str], used: dict[str, str]) -> str:
    """Return the marks of notes, numbering those that are new."""
    marks = [used.setdefault(key, str(len(used) + 1)) for key in keys]
    return f" [{', '.join(marks)}]" if marks else ""
