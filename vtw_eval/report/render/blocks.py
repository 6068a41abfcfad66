"""A report as data: what is said, apart from the format in which it is written. All text in it is plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vtw_eval.tables import Table

Style = Literal["plain", "bold", "code"]


@dataclass(frozen=True)
class Text:
    """A run of characters in one style."""

    text: str
    style: Style = "plain"


Inline: TypeAlias = "str | Text | tuple[str | Text, ...]"
"""Plain text, or several runs."""


def runs(inline: Inline) -> tuple[Text, ...]:
    """Return the runs of an inline."""
    parts = inline if isinstance(inline, tuple) else (inline,)
    return tuple(part if isinstance(part, Text) else Text(part) for part in parts)


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    content: Inline


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[Inline]


@dataclass(frozen=True)
class Image:
    """A picture beside the report, as ``NAME.png`` and ``NAME.svg``; in a page its panels, if it has any."""

    name: str
    alt: str
    panels: tuple[tuple[str, str], ...] = ()
    """Title and SVG of each, which stand in a page as they are."""


@dataclass(frozen=True)
class Captioned:
    """A table with its caption, as a paper has it."""

    table: Table[Inline]
    caption: Inline
    label: str
    """By which LaTeX refers to it."""


@dataclass(frozen=True)
class Kept:
    """What a method has left of a picture in some layers."""

    words: str
    """Which layers, and how many tokens."""
    png: bytes | None
    """The picture with what is gone in the dark; None where nothing is left to be drawn."""


@dataclass(frozen=True)
class Picture:
    """What a document shows."""

    png: bytes
    words: str
    """Below it."""
    kept: tuple[Kept, ...] = ()
    """What was left of it, where that is known."""


@dataclass(frozen=True)
class Examples:
    """Documents as a table, with their pictures where the format can."""

    table: Table[Inline]
    pictures: Sequence[Picture | None]
    """Of each row."""


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away where the format can."""

    summary: str
    blocks: Sequence[Block]
    open: bool = False
    """Whether a page shows them at first."""


Block: TypeAlias = "Heading | Paragraph | Items | Table[Inline] | Image | Captioned | Examples | Details"
