"""Plain text into each format, so that nothing a model says can become markup."""

from __future__ import annotations

import html
import re

import tabulate

_MARKDOWN = re.compile(r"([\\`*_{}\[\]#~$])")
_SYMBOLS = {
    "▼": r"$\blacktriangledown$",
    "▲": r"$\blacktriangle$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "≈": r"$\approx$",
    "†": r"$\dagger$",
    "η": r"$\eta$",
    "≤": r"$\leq$",
    "→": r"$\rightarrow$",
    "\N{EN DASH}": "--",
    "…": r"\dots{}",
    "↵": r"$\hookleftarrow$",
}


def one_line(text: str) -> str:
    """Return text on one line: line ends as ↵, other characters that do not print as their code."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "↵")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in lines)


def markdown(text: str) -> str:
    """Escape plain text for Markdown, in a table cell too: a bar is an entity, since a table row is split first."""
    plain = html.escape(one_line(text), quote=False)
    return _MARKDOWN.sub(r"\\\1", plain).replace("|", "&#124;")


def markdown_code(text: str) -> str:
    """Return literal text for Markdown, as ``<code>``: no backtick can end it, and GitHub links no name in it."""
    plain = "".join(f"&#{ord(c)};" if c in "\\`*_{}[]#~$|<>&:@" else c for c in one_line(text))
    return f"<code>{plain}</code>"


def in_html(text: str) -> str:
    """Escape plain text for HTML, attributes included."""
    return html.escape(one_line(text))


def latex(text: str) -> str:
    """Escape plain text for LaTeX (``amssymb`` for the triangles)."""
    rules = {**tabulate.LATEX_ESCAPE_RULES, **_SYMBOLS}
    return "".join(rules.get(c, c) for c in one_line(text))
