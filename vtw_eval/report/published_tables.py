"""The papers' printed tables, alone or beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from vtw_eval.errors import suggest
from vtw_eval.report.analysis import BASELINE, ModelTable, Score
from vtw_eval.report.blocks import Block, Heading, Inline, Items, Paragraph, Table, Text
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import params_of
from vtw_eval.report.results import Result

_FILES = ("vtw.yaml", "dyvte.yaml")
_LABEL = "label"
"""Names the column of row labels in notes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedRow(_Strict):
    """One row as printed."""

    label: str
    values: list[float | str | None]
    """By column; None where the paper prints nothing."""
    model: str = ""
    """Key of the checkpoints; rows of one model are compared with each other."""
    method: str = ""
    """Our spec of the method, where it is one of ours."""
    decimals: int | None = None
    """Of the whole row, in tables whose columns are methods."""
    notes: dict[str, list[str]] = {}
    """Keys of the table's notes by column."""


class PublishedTable(_Strict):
    """One table as printed, with what must be known to read it."""

    title: str
    columns: list[str]
    """``X change %`` is the printed change of ``X`` to the baseline, ``share %`` the share of the column before it."""
    lower: list[str] = []
    """Columns where lower is better."""
    shares: list[str] = []
    """Columns that print shares of 1 where ours are percent."""
    decimals: dict[str, int] = {}
    default_decimals: int = 2
    notes: dict[str, str] = {}
    header_notes: dict[str, list[str]] = {}
    rows: list[PublishedRow]

    @model_validator(mode="after")
    def _whole(self) -> PublishedTable:
        names = {_LABEL, *self.columns}
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {row.label!r} has {len(row.values)} values for {len(self.columns)} columns")
        for notes in (self.header_notes, *(row.notes for row in self.rows)):
            for column, keys in notes.items():
                unknown = [key for key in keys if key not in self.notes]
                if column not in names or unknown:
                    raise ValueError(f"note for unknown column {column!r} or with unknown keys {unknown}")
        unknown = [name for name in (*self.lower, *self.shares, *self.decimals) if name not in names]
        if unknown:
            raise ValueError(f"no such columns: {unknown}")
        return self

    def value(self, row: PublishedRow, column: str) -> float | str | None:
        """Return what a row prints in a column."""
        return row.values[self.columns.index(column)]

    def printed(self, row: PublishedRow, column: str) -> str:
        """Return a value with as many decimals as the paper prints."""
        value = self.value(row, column)
        if not isinstance(value, float | int):
            return value or ""
        places = self.decimals.get(column, self.default_decimals) if row.decimals is None else row.decimals
        return f"{value:.{places}f}"


class _Paper(_Strict):
    paper: str
    models: dict[str, list[str]]
    notes: dict[str, str] = {}
    tables: dict[str, PublishedTable]


@cache
def _papers() -> tuple[_Paper, ...]:
    folder = resources.files("vtw_eval.report.published")
    return tuple(_Paper.model_validate(yaml.safe_load((folder / name).read_text("utf-8"))) for name in _FILES)


def published_tables() -> dict[str, PublishedTable]:
    """Return all printed tables by name: ``table1`` ... of the VTW paper, ``dyvte1`` ... of DyVTE's."""
    return {name: table for paper in _papers() for name, table in paper.tables.items()}


def published_blocks(name: str) -> list[Block]:
    """Return a paper's table with its notes.

    Parameters
    ----------
    name
        A key of :func:`published_tables`, or ``all``.

    Raises
    ------
    ReportError
        If there is no such table.
    """
    known = published_tables()
    if name == "all":
        return [block for one in known for block in published_blocks(one)]
    if name not in known:
        raise ReportError(f"unknown table {name!r}{suggest(name, list(known))} Valid: {', '.join(known)}, all.")
    paper = next(paper for paper in _papers() if name in paper.tables)
    table = known[name]
    used: dict[str, str] = {}
    shown = [column for i, column in enumerate(table.columns) if not _belongs_to_last(table.columns, i)]
    headers = ["", *(f"{c} {'↓' if c in table.lower else ''}".strip() for c in shown)]
    headers = [
        f"{h}{_marks(table.header_notes.get(c, []), used)}" for h, c in zip(headers, (_LABEL, *shown), strict=True)
    ]
    rows: list[list[Inline]] = []
    for row in table.rows:
        label = f"{row.label}{_marks(row.notes.get(_LABEL, []), used)}"
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
    for paper in _papers():
        for name, published in paper.tables.items():
            used: dict[str, str] = {}
            rows = [
                line
                for row in published.rows
                for table in tables
                for line in _beside(published, row, table, paper.models.get(row.model, []), used)
            ]
            if rows:
                headers = ["model", "method", "task", "published", "ours [95 %]", "ours - published"]
                blocks += [Paragraph(Text(f"{paper.paper}, {published.title} ({name})", "bold"))]
                blocks.append(Table(headers, rows, words=3))
                if used:
                    blocks.append(Items([f"[{mark}] {published.notes[key]}" for key, mark in used.items()]))
    if not blocks:
        return [Paragraph("Neither paper prints these models, methods and tasks.")]
    return blocks


def _beside(
    published: PublishedTable, row: PublishedRow, table: ModelTable, checkpoints: Sequence[str], used: dict[str, str]
) -> list[list[Inline]]:
    lines: list[list[Inline]] = []
    known = {name.lower() for name in checkpoints}
    for ours in table.rows:
        for column in published.columns:
            score, value = ours.scores.get(column), published.value(row, column)
            if score is None or not isinstance(value, float | int) or not row.method:
                continue
            if score.result.spec.pretrained.lower() not in known or not _same_method(row.method, score.result):
                continue
            shown = 100 * value if column in published.shares else value
            keys = [*published.header_notes.get(column, []), *row.notes.get(column, []), *row.notes.get(_LABEL, [])]
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


def _cell(table: PublishedTable, row: PublishedRow, column: str, used: dict[str, str]) -> Inline:
    text = f"{table.printed(row, column)}{_marks(row.notes.get(column, []), used)}"
    place = table.columns.index(column) + 1
    extra = ""
    if place < len(table.columns) and _belongs_to_last(table.columns, place):
        name = table.columns[place]
        if printed := table.printed(row, name):
            sign = "+" if name != "share %" and not printed.startswith("-") else ""
            extra = f" ({sign}{printed} %{_marks(row.notes.get(name, []), used)})"
    return (Text(text, "bold" if _best(table, row, column) else "plain"), extra)


def _best(table: PublishedTable, row: PublishedRow, column: str) -> bool:
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
