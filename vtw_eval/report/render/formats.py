"""Blocks as Markdown or LaTeX, and all formats by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vtw_eval.report.render import escape
from vtw_eval.report.render.blocks import Block, Examples, Heading, Image, Inline, Items, Paragraph, Text, runs
from vtw_eval.report.render.html import to_html
from vtw_eval.tables import Table, layout

_LATEX_HEAD = """% Needs \\usepackage{amssymb,booktabs,graphicx}
"""


def to_markdown(blocks: Sequence[Block], plots: str = "plots") -> str:
    """Return blocks as GitHub's Markdown.

    Parameters
    ----------
    blocks
        The report.
    plots
        Folder of the pictures, relative to the report.
    """
    return "\n\n".join(_markdown(block, plots) for block in blocks) + "\n"


def to_latex(blocks: Sequence[Block], plots: str = "plots") -> str:
    """Return blocks as LaTeX to be included in a document; parameters as :func:`to_markdown`."""
    return _LATEX_HEAD + "\n\n".join(_latex(block, plots) for block in blocks) + "\n"


def _inline(inline: Inline, styles: dict[str, Callable[[str], str]]) -> str:
    return "".join(styles[run.style](run.text) for run in runs(inline))


def _markdown_inline(inline: Inline) -> str:
    return _inline(
        inline,
        {
            "plain": escape.markdown,
            "bold": lambda text: f"**{escape.markdown(text)}**",
            "code": escape.markdown_code,
        },
    )


def _markdown(block: Block, plots: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escape.markdown(block.text)}"
    if isinstance(block, Paragraph):
        return _markdown_inline(block.content)
    if isinstance(block, Items):
        return "\n".join(f"- {_markdown_inline(item)}" for item in block.items)
    if isinstance(block, Table):
        return layout(block, "markdown", _markdown_inline)
    if isinstance(block, Examples):
        return layout(block.table, "markdown", _markdown_inline)
    if isinstance(block, Image):
        return f"![{escape.markdown(block.alt)}]({plots}/{block.name}.png)"
    inner = "\n\n".join(_markdown(inside, plots) for inside in block.blocks)
    return f"<details><summary>{escape.in_html(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _latex_inline(inline: Inline) -> str:
    return _inline(
        inline,
        {
            "plain": escape.latex,
            "bold": lambda text: rf"\textbf{{{escape.latex(text)}}}",
            "code": lambda text: rf"\texttt{{{escape.latex(text)}}}",
        },
    )


def _latex(block: Block, plots: str) -> str:
    if isinstance(block, Heading):
        command = ("section", "subsection", "subsubsection", "paragraph")[block.level - 1]
        return rf"\{command}*{{{escape.latex(block.text)}}}"
    if isinstance(block, Paragraph):
        return _latex_inline(block.content)
    if isinstance(block, Items):
        lines = "\n".join(rf"\item {_latex_inline(item)}" for item in block.items)
        return f"\\begin{{itemize}}\n{lines}\n\\end{{itemize}}"
    if isinstance(block, Table):
        # A cell that begins with a bracket would be read as an option of the line break before it.
        return layout(block, "latex_raw", lambda cell: _guard(_latex_inline(cell)))
    if isinstance(block, Examples):
        return _latex(block.table, plots)
    if isinstance(block, Image):
        return rf"\includegraphics[width=\linewidth]{{{plots}/{block.name}.png}}"
    return "\n\n".join(_latex(inside, plots) for inside in (Paragraph(Text(block.summary, "bold")), *block.blocks))


def _guard(cell: str) -> str:
    return f"{{}}{cell}" if cell.startswith(("[", "*")) else cell


RENDERERS: dict[str, Callable[[Sequence[Block], str], str]] = {
    "markdown": to_markdown,
    "html": to_html,
    "latex": to_latex,
}
