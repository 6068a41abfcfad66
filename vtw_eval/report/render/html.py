"""Blocks as one HTML page that needs nothing else: style, script and pictures stand in it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vtw_eval.report.render.blocks import Block, Heading, Inline, runs
from vtw_eval.report.render.escape import one_line

_PAGE = Path(__file__).with_name("page")
_MARKS = {"▼": ("worse", "significantly worse"), "▲": ("better", "significantly better")}
_NUMBER = re.compile(r"[<≤+]?\s*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(MiB|GiB)?")


def to_html(blocks: Sequence[Block], plots: str = "plots") -> str:
    """Return blocks as one HTML page.

    Parameters
    ----------
    blocks
        The report.
    plots
        Not used: the page holds its pictures. It is there since other formats need it.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"one_line": one_line, "words": _words, "sort_value": sort_value, "data_url": _data_url}
    return environment.get_template("page.html").render(
        blocks=blocks,
        title=title,
        runs=runs,
        kind_of=lambda block: type(block).__name__,
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def sort_value(cell: Inline) -> float | None:
    """Return the number by which a table sorts a cell: the first of its text, in MiB for bytes; None without one."""
    text = "".join(run.text for run in runs(cell)).strip()
    found = _NUMBER.match(text)
    if found is None:
        return None
    number = float(found[1]) * (1024 if found[2] == "GiB" else 1)
    return number - 1e-9 if text.startswith("<") else number


def _words(text: str) -> Markup:
    """Return plain text in which no arrow stands alone on a line, lines break in specs, and marks have a name."""
    plain = re.sub(r" ([≈↑↓])", "\N{NO-BREAK SPACE}\\1", one_line(text))
    parts = re.split(r"( ?[▼▲]|,(?=\S))", plain)
    return Markup("").join(_part(part) for part in parts)


def _part(part: str) -> Markup:
    if part == ",":
        return Markup(",<wbr>")
    if part.strip() not in _MARKS:
        return escape(part)
    name, meaning = _MARKS[part.strip()]
    sign = part.replace(" ", "\N{NO-BREAK SPACE}")
    return Markup('<span class="mark {}" title="{}">{}</span>').format(name, meaning, sign)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
