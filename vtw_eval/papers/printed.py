"""The papers' printed tables: data in ``printed/*.yaml``, read once."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

LABEL = "label"
"""Names the column of row labels in notes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrintedRow(_Strict):
    """One row as printed."""

    label: str
    values: list[float | str | None]
    """By column; None where the paper prints nothing."""
    model: str = ""
    """Name of a checkpoint in :data:`vtw_eval.checkpoints.KNOWN`, or what the paper calls another one; rows of one
    model are compared with each other."""
    method: str = ""
    """Our spec of the method, where it is one of ours."""
    decimals: int | None = None
    """Of the whole row, in tables whose columns are methods."""
    notes: dict[str, list[str]] = {}
    """Keys of the table's notes by column."""


class PrintedTable(_Strict):
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
    rows: list[PrintedRow]

    @model_validator(mode="after")
    def _whole(self) -> PrintedTable:
        names = {LABEL, *self.columns}
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

    def row(self, model: str, method: str) -> PrintedRow:
        """Return the row of a model and of a method by its key, such as "vtw"."""
        return next(row for row in self.rows if row.model == model and row.method.partition(",")[0] == method)

    def value(self, row: PrintedRow, column: str) -> float | str | None:
        """Return what a row prints in a column."""
        return row.values[self.columns.index(column)]

    def printed(self, row: PrintedRow, column: str) -> str:
        """Return a value with as many decimals as the paper prints."""
        value = self.value(row, column)
        if not isinstance(value, float | int):
            return value or ""
        places = self.decimals.get(column, self.default_decimals) if row.decimals is None else row.decimals
        return f"{value:.{places}f}"


class Paper(_Strict):
    """The tables of one paper."""

    paper: str
    """Its name, with authors and address."""
    exits: dict[str, float] = {}
    """DyVTE's mean exit layers by benchmark, counted from 0."""
    notes: dict[str, str] = {}
    tables: dict[str, PrintedTable]


@cache
def papers() -> dict[str, Paper]:
    """Return the papers by name: ``vtw`` and ``dyvte``."""
    folder = resources.files("vtw_eval.papers") / "printed"
    texts = {name: (folder / f"{name}.yaml").read_text("utf-8") for name in ("vtw", "dyvte")}
    return {name: Paper.model_validate(yaml.safe_load(text)) for name, text in texts.items()}


def printed_tables() -> dict[str, PrintedTable]:
    """Return all printed tables by name: ``vtw-table1`` ... and ``dyvte-table1`` ..."""
    return {name: table for paper in papers().values() for name, table in paper.tables.items()}
