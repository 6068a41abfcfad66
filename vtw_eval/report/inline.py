"""Panels as SVG inside a page: in its colours, with names that differ, and words at each point."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from vtw_eval.report.drawing import INK, Plot

_NAMED = re.compile(r'<g id="([a-z]+)-(\d+)((?:-\d+)?)">')

_LEGIBLE = 1.15
"""Least CSS pixels per point of a picture: its smallest words are 7 points."""


def inline_panels(plot: Plot, name: str) -> tuple[tuple[str, str], ...]:
    """Return title and SVG of each panel of a picture.

    Parameters
    ----------
    plot
        The picture.
    name
        Unlike that of any other picture in the page.

    Returns
    -------
    tuple of (str, str)
        In the SVG, what is drawn of one method has its number as ``data-series``, and a point its words as
        ``data-tip``; points can have the keyboard's focus.
    """
    return tuple(
        (title, _inline(svg, words, f"{name}-{number}", f"{plot.image.alt}, {title}", plot.size))
        for number, (title, svg, words) in enumerate(plot.single())
    )


def _inline(svg: str, words: Mapping[str, str], name: str, alt: str, size: tuple[float, float]) -> str:
    def group(found: re.Match[str]) -> str:
        kind, series, rest = found.groups()
        told = words.get(f"{kind}-{series}{rest}")
        more = ""
        if told is not None:
            tip = html.escape(told).replace("\n", "&#10;")
            more = f' class="point" tabindex="0" role="img" aria-label="{tip}" data-tip="{tip}"'
        return f'<g id="{kind}-{series}{rest}" data-series="{series}"{more}>'

    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = _NAMED.sub(group, body).replace(INK, "currentColor")
    # Names are known in the whole page.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}.\1"', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}.", body)
    width, height = (72 * inches for inches in size)
    opening = (
        f'<svg class="chart" role="group" aria-label="{html.escape(alt)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="min-width: {_LEGIBLE * width:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg\b[^>]*>", lambda _: opening, body, count=1).strip()
