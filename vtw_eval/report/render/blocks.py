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
    """A picture beside the report, as ``NAME.png`` and ``NAME.svg``."""

    name: str
    alt: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away where the format can."""

    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = "Heading | Paragraph | Items | Table[Inline] | Image | Details"
