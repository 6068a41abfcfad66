"""Blocks as LaTeX whose tables fit the page of a one-column article: their columns break over lines, or go into parts.

Widths are estimated from those of Computer Modern, so nothing need be installed. Only packages that every distribution
brings are used (see the first line of what is written).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vtw_eval.report.render import escape
from vtw_eval.report.render.blocks import (
    Block,
    Captioned,
    Examples,
    Heading,
    Image,
    Inline,
    Items,
    Paragraph,
    Text,
    runs,
)
from vtw_eval.tables import Table

_HEAD = "% Needs \\usepackage{amssymb,array,booktabs,graphicx,longtable}\n"
WIDTH = 345.0
"""Points of a line of an article in one column, at 10 points."""
_HEIGHT = 430.0
"""Points that the rows of a float may take; the page has 550, and the caption some of them."""
_SMALL = 0.87
"""Of footnotesize, by which all tables are set; it is a little wider than 8/10."""
_BETWEEN = 6.0
"""Points between two columns."""
_LINE = 9.6
"""Points from line to line."""
_WORDS = 0.38
"""Share of a line that the first columns of a table in parts may take."""
_LEAST = 34.0
"""Points that a column of words has at least."""

# Points of a character at 10 points.
_WIDTHS = {
    **dict.fromkeys("ijl.,:;!'|", 2.8),
    **dict.fromkeys("ft()[]-r ", 3.9),
    **dict.fromkeys("mMW%", 9.0),
    **dict.fromkeys("w+=<>~≈▼▲→±", 7.8),
}


def to_latex(blocks: Sequence[Block], plots: str = "plots") -> str:
    """Return blocks as LaTeX to be included in a document.

    Parameters
    ----------
    blocks
        The report.
    plots
        Folder of the pictures, relative to the report.
    """
    return _HEAD + "\n\n".join(_latex(block, plots) for block in blocks) + "\n"


def _latex(block: Block, plots: str) -> str:
    if isinstance(block, Heading):
        command = ("section", "subsection", "subsubsection", "paragraph")[block.level - 1]
        return rf"\{command}*{{{escape.latex(block.text)}}}"
    if isinstance(block, Paragraph):
        return _inline(block.content)
    if isinstance(block, Items):
        lines = "\n".join(rf"\item {_inline(item)}" for item in block.items)
        return f"\\begin{{itemize}}\n{lines}\n\\end{{itemize}}"
    if isinstance(block, Examples):
        return _latex(block.table, plots)
    if isinstance(block, Table):
        return "\n\n".join(_long(part) for part in parts_of(block))
    if isinstance(block, Captioned):
        return _float(block)
    if isinstance(block, Image):
        return rf"\noindent\includegraphics[width=\linewidth]{{{plots}/{block.name}.png}}"
    return "\n\n".join(_latex(inside, plots) for inside in (Paragraph(Text(block.summary, "bold")), *block.blocks))


@dataclass(frozen=True)
class Part:
    """Columns of a table that fit side by side."""

    table: Table[Inline]
    widths: tuple[float | None, ...]
    """Points of each column that breaks its lines; None for one that is as wide as its words."""
    total: float
    """Points of all columns with what is between them, estimated."""

    @property
    def columns(self) -> str:
        """The argument of ``tabular``."""
        sides = ["l" if i < self.table.words else "r" for i in range(len(self.table.headers))]
        wrapped = ">{{\\raggedright\\arraybackslash}}p{{{:.0f}pt}}"
        found = [
            side if width is None else wrapped.format(width) for side, width in zip(sides, self.widths, strict=True)
        ]
        return f"@{{}}{''.join(found)}@{{}}"

    def lines(self, row: Sequence[Inline]) -> int:
        """Return how many lines a row takes, about."""
        return max(
            math.ceil(width_of(cell) / width) if width else 1 for cell, width in zip(row, self.widths, strict=True)
        )


def parts_of(table: Table[Inline], width: float = WIDTH) -> list[Part]:
    """Return a table in parts that fit a line, each with the first columns of words.

    Parameters
    ----------
    table
        Of any width.
    width
        Points of the line.
    """
    natural = [
        max([width_of(header) if i < table.words else _head_width(header), *(width_of(row[i]) for row in table.rows)])
        for i, header in enumerate(table.headers)
    ]
    words, numbers = natural[: table.words], natural[table.words :]
    room = width - _BETWEEN * (len(natural) - 1) - sum(numbers)
    if sum(words) <= room:
        return [_part(table, natural, [None] * len(natural), range(len(numbers)))]
    if room >= sum(min(one, 2 * _LEAST) for one in words) or not numbers:
        return [_part(table, natural, [*_shrink(words, room), *([None] * len(numbers))], range(len(numbers)))]
    first = _shrink(words, min(sum(words), _WORDS * width))
    taken = sum(one or natural[i] for i, one in enumerate(first)) + _BETWEEN * (len(first) - 1)
    groups: list[list[int]] = [[]]
    used = taken
    for i, one in enumerate(numbers):
        if groups[-1] and used + _BETWEEN + one > width:
            groups.append([])
            used = taken
        groups[-1].append(i)
        used += _BETWEEN + one
    return [_part(table, natural, [*first, *([None] * len(group))], group) for group in groups]


def _part(
    table: Table[Inline], natural: Sequence[float], widths: Sequence[float | None], numbers: Sequence[int]
) -> Part:
    chosen = [*range(table.words), *(table.words + i for i in numbers)]
    own = Table([table.headers[i] for i in chosen], [[row[i] for i in chosen] for row in table.rows], words=table.words)
    total = sum(natural[i] if width is None else width for i, width in zip(chosen, widths, strict=True))
    return Part(own, tuple(widths), total + _BETWEEN * (len(chosen) - 1))


def _shrink(natural: Sequence[float], room: float) -> list[float | None]:
    """Return widths of columns of words that together take the room; those that are narrow anyway keep theirs."""
    found: list[float | None] = [None] * len(natural)
    wide = list(range(len(natural)))
    while wide:
        each = (room - sum(natural[i] for i in range(len(natural)) if i not in wide)) / len(wide)
        narrow = [i for i in wide if natural[i] <= each]
        if not narrow:
            for i in wide:
                found[i] = max(each, _LEAST)
            break
        wide = [i for i in wide if i not in narrow]
    return found


def width_of(cell: Inline) -> float:
    """Return the points that a cell takes on one line of a table, estimated."""
    return sum(_run_width(run) for run in runs(cell))


def _run_width(run: Text) -> float:
    if run.style == "code":
        return 5.25 * _SMALL * len(escape.one_line(run.text))
    wide = 1.16 if run.style == "bold" else 1.03
    return wide * _SMALL * sum(_WIDTHS.get(c, 7.4 if c.isupper() else 5.2) for c in escape.one_line(run.text))


def _head_width(header: Inline) -> float:
    """Return the points of the widest word of a header, which stands on several lines; arrows stand behind a word."""
    text = "".join(run.text for run in runs(header))
    return max((width_of(word.replace("\N{NO-BREAK SPACE}", " ")) for word in _head_words(text)), default=0.0)


def _head_words(text: str) -> list[str]:
    together = re.sub(r" ([▼▲≈↑↓])", "\N{NO-BREAK SPACE}\\1", text)
    return re.split(r" (?![^\[(]*[\])])", together)  # what stands in brackets stays together


def _header(part: Part) -> str:
    cells = []
    for i, header in enumerate(part.table.headers):
        words = _head_words("".join(run.text for run in runs(header)))
        wrapped = i >= part.table.words and len(words) > 1
        text = ["~".join(map(escape.latex, word.split("\N{NO-BREAK SPACE}"))) for word in words]
        stacked = r" \\{} ".join(text)  # braces, since a word may begin with a bracket
        cells.append(rf"\shortstack[r]{{{stacked}}}" if wrapped else _guard(" ".join(text)))
    return " & ".join(cells) + r" \\"


def _rows(part: Part, rows: Sequence[Sequence[Inline]]) -> str:
    lines = []
    for row in rows:
        pairs = zip(row, part.widths, strict=True)
        cells = [_guard(_inline(cell, breaks=width is not None)) for cell, width in pairs]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join(lines)


def _long(part: Part) -> str:
    """Return a table that goes on over pages."""
    return "\n".join(
        [
            r"{\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\LTleft}{0pt}",
            rf"\begin{{longtable}}{{{part.columns}}}",
            r"\toprule",
            _header(part),
            r"\midrule\endhead",
            r"\bottomrule\endfoot",
            _rows(part, part.table.rows),
            r"\end{longtable}}",
        ]
    )


def _float(block: Captioned) -> str:
    """Return a table as floats with a caption, as many as its rows and parts need."""
    pages: list[list[str]] = [[]]
    used = 0.0
    for part in parts_of(block.table):
        rest = list(part.table.rows)
        while rest:
            count, height = 0, 3.5 * _LINE
            for row in rest:
                height += _LINE * part.lines(row)
                if height > _HEIGHT and count:
                    break
                count += 1
            taken = 3.5 * _LINE + _LINE * sum(part.lines(row) for row in rest[:count])
            if pages[-1] and used + taken > _HEIGHT:
                pages.append([])
                used = 0.0
            pages[-1].append(_tabular(part, rest[:count]))
            used += taken
            rest = rest[count:]
    floats = []
    for number, page in enumerate(pages):
        caption = rf"\caption{{{_inline(block.caption)}}}" + f"\n\\label{{{block.label}}}"
        if number:
            caption = r"\addtocounter{table}{-1}" + "\n" + r"\caption{(continued)}"
        tables = "\n\n\\smallskip\n".join(page)
        setting = r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"
        floats.append(f"\\begin{{table}}[tbp]\n{setting}\n{caption}\n\n\\smallskip\n{tables}\n\\end{{table}}")
    return "\n\n".join(floats)


def _tabular(part: Part, rows: Sequence[Sequence[Inline]]) -> str:
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{part.columns}}}",
            r"\toprule",
            _header(part),
            r"\midrule",
            _rows(part, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _inline(inline: Inline, breaks: bool = True) -> str:
    text: Callable[[str], str] = _breaking if breaks else escape.latex
    styles: dict[str, Callable[[str], str]] = {
        "plain": text,
        "bold": lambda run: rf"\textbf{{{text(run)}}}",
        "code": lambda run: rf"\texttt{{{text(run)}}}",
    }
    return "".join(styles[run.style](run.text) for run in runs(inline))


def _breaking(text: str) -> str:
    """Escape text that may break after a sign, and inside of what is long without one."""
    pieces = re.findall(r"[^\W_]{1,12}|[\W_]", escape.one_line(text))
    found = []
    for piece, after in itertools.pairwise([*pieces, ""]):
        found.append(escape.latex(piece))
        if after and not after.isspace() and (piece in ",+_/\\|;:&" or len(piece) == 12):
            found.append(r"\allowbreak{}")
    return "".join(found)


def _guard(cell: str) -> str:
    """Keep a cell that begins with a bracket from being read as an option of the line break before it."""
    return f"{{}}{cell}" if cell.startswith(("[", "*")) else cell
