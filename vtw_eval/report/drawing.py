"""Panels into files: side by side as PNG and SVG beside a report, or each on its own inside a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vtw_eval.report.render.blocks import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#000000"
"""Of words, axes and the unchanged model; a page takes its own colour of text instead."""
_WIDTH = 3.3
"""Inches of a panel's axes."""
_LEFT, _TOP, _BOTTOM = 0.62, 0.34, 0.56
"""Inches around them."""
_TITLE = 0.36


class Panel(Protocol):
    """One picture among several."""

    @property
    def title(self) -> str:
        """What it shows."""
        ...

    def draw(self, axes: Axes) -> Mapping[str, str]:
        """Draw it, and return the words of its points, by the name (``gid``) of what is drawn.

        Names are ``KIND-NUMBER-...``; what belongs together has one number.
        """
        ...


@dataclass(frozen=True)
class Plot:
    """Panels with one title."""

    image: Image
    title: str
    panels: tuple[Panel, ...]
    columns: int
    """Most panels side by side in one file."""
    height: float = 2.4
    """Inches of a panel's axes."""
    margin: float = 0.15
    """Inches at their right, for labels."""

    def figure(self) -> Figure:
        """Return all panels in one figure."""
        columns = min(self.columns, max(len(self.panels), 1))
        lines = math.ceil(max(len(self.panels), 1) / columns)
        width, height = self.size
        figure = _figure(columns * width, lines * height + _TITLE)
        for number, panel in enumerate(self.panels):
            line, column = divmod(number, columns)
            self._add(figure, panel, column * width, (lines - 1 - line) * height)
        figure.suptitle(plain(self.title), fontsize=10, y=1 - 0.12 / figure.get_figheight(), va="top")
        return figure

    def files(self) -> dict[str, bytes]:
        """Return the figure as ``png`` and ``svg``, the same bytes for the same figure."""
        return render(self.figure())

    def single(self) -> list[tuple[str, str, Mapping[str, str]]]:
        """Return each panel on its own: its title, SVG with text as text, the words of its points."""
        from matplotlib import rc_context

        found = []
        for panel in self.panels:
            figure = _figure(*self.size)
            words = self._add(figure, panel, 0.0, 0.0)
            file = io.StringIO()
            with rc_context({"svg.hashsalt": "vtw-eval", "svg.fonttype": "none"}):
                figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            found.append((panel.title, file.getvalue(), words))
        return found

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of a panel with its surroundings, inches."""
        return _LEFT + _WIDTH + self.margin, _BOTTOM + self.height + _TOP

    def _add(self, figure: Figure, panel: Panel, left: float, bottom: float) -> Mapping[str, str]:
        width, height = figure.get_figwidth(), figure.get_figheight()
        place = ((left + _LEFT) / width, (bottom + _BOTTOM) / height, _WIDTH / width, self.height / height)
        axes = figure.add_axes(place)
        axes.set_title(plain(panel.title), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#80808030", linewidth=0.6)
        axes.set_axisbelow(True)
        return panel.draw(axes)


def render(figure: Figure) -> dict[str, bytes]:
    """Return a figure as ``png`` and ``svg``, the same bytes for the same figure."""
    from matplotlib import rc_context

    found = {}
    with rc_context({"svg.hashsalt": "vtw-eval"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=120, metadata=metadata)
            found[kind] = file.getvalue()
    return found


def plain(text: str) -> str:
    """Keep matplotlib from reading mathematics into a name, or leaving out of a legend what begins with ``_``."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))
