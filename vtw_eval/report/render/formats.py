"""Blocks as Markdown, HTML or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vtw_eval.report.render import escape
from vtw_eval.report.render.blocks import Block, Heading, Image, Inline, Items, Paragraph, Text, runs
from vtw_eval.tables import Table, layout

_HTML_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25em .7em; }}
th {{ text-align: left; }}
summary {{ cursor: pointer; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
"""
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


def to_html(blocks: Sequence[Block], plots: str = "plots") -> str:
    """Return blocks as one HTML page; parameters as :func:`to_markdown`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = "\n".join(_html(block, plots) for block in blocks)
    return f"{_HTML_HEAD.format(title=escape.in_html(title))}{body}\n</body>\n</html>\n"


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
    if isinstance(block, Image):
        return f"![{escape.markdown(block.alt)}]({plots}/{block.name}.png)"
    inner = "\n\n".join(_markdown(inside, plots) for inside in block.blocks)
    return f"<details><summary>{escape.in_html(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _html_inline(inline: Inline) -> str:
    return _inline(
        inline,
        {
            "plain": escape.in_html,
            "bold": lambda text: f"<strong>{escape.in_html(text)}</strong>",
            "code": lambda text: f"<code>{escape.in_html(text)}</code>",
        },
    )


def _html(block: Block, plots: str) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape.in_html(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_html_inline(block.content)}</p>"
    if isinstance(block, Items):
        return "<ul>\n" + "\n".join(f"<li>{_html_inline(item)}</li>" for item in block.items) + "\n</ul>"
    if isinstance(block, Table):
        return layout(block, "unsafehtml", _html_inline)
    if isinstance(block, Image):
        return f'<p><img src="{escape.in_html(plots)}/{block.name}.svg" alt="{escape.in_html(block.alt)}"></p>'
    inner = "\n".join(_html(inside, plots) for inside in block.blocks)
    return f"<details>\n<summary>{escape.in_html(block.summary)}</summary>\n{inner}\n</details>"


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
