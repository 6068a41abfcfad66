"""Tables of all commands: a terminal's, Markdown's, and whatever else tabulate lays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tabulate import tabulate

Cell = TypeVar("Cell", covariant=True)


@dataclass(frozen=True)
class Table(Generic[Cell]):
    """A table: the first columns hold words (left), all others numbers (right)."""

    headers: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    words: int = 1
    """Number of columns on the left that hold words."""


def layout(table: Table[Cell], form: str, show: Callable[[Cell], str]) -> str:
    """Lay a table out.

    Parameters
    ----------
    table
        The table.
    form
        "markdown" (GitHub's, without padding: a comment there holds 65,536 characters), or a format of tabulate.
    show
        Turns a cell into text of that format.
    """
    headers = [show(header).strip() for header in table.headers]
    rows = [[show(cell).strip() for cell in row] for row in table.rows]
    align = ["left" if i < table.words else "right" for i in range(len(headers))]
    if form == "markdown":
        rule = "|".join(":---" if side == "left" else "---:" for side in align)
        head, *lines = (f"| {' | '.join(row)} |" for row in (headers, *rows))
        return "\n".join([head, f"|{rule}|", *lines])
    return tabulate(
        rows,
        headers=headers,
        tablefmt=form,
        colalign=align if rows else None,
        headersglobalalign="left" if form == "unsafehtml" else None,
        disable_numparse=True,
    )


def plain(table: Table[str]) -> str:
    """Return a table for a terminal."""
    return layout(table, "simple", str)


def markdown(table: Table[str]) -> str:
    """Return a table in Markdown; its cells are Markdown, but for bars, which would end them."""
    return layout(table, "markdown", lambda cell: cell.replace("|", "\\|"))
