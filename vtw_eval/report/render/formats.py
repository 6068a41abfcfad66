"""Blocks as Markdown, and all formats by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    runs,
)
from vtw_eval.report.render.html import to_html
from vtw_eval.report.render.latex import to_latex
from vtw_eval.tables import Table, layout


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
    if isinstance(block, Captioned):
        return f"{_markdown(block.table, plots)}\n\n{_markdown_inline(block.caption)}"
    if isinstance(block, Image):
        return f"![{escape.markdown(block.alt)}]({plots}/{block.name}.png)"
    inner = "\n\n".join(_markdown(inside, plots) for inside in block.blocks)
    return f"<details><summary>{escape.in_html(block.summary)}</summary>\n\n{inner}\n\n</details>"


RENDERERS: dict[str, Callable[[Sequence[Block], str], str]] = {
    "markdown": to_markdown,
    "html": to_html,
    "latex": to_latex,
}
