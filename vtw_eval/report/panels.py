"""What is drawn: scores versus FLOPs with a label at each line, scores versus k, divergence by k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtw_eval.report.analysis import ModelTable, Row, Score
from vtw_eval.report.drawing import INK, plain
from vtw_eval.report.labels import Ablation
from vtw_eval.report.series import COLORS, Series, spread
from vtw_eval.report.tables import MARKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Divergence = Mapping[str, Sequence[tuple[int, float]]]
"""Mean KL by k, for each task that was searched; see :func:`vtw_eval.report.search.read_divergence`."""

LABEL_HEIGHT = 0.145
"""Inches from one label to the next."""


@dataclass(frozen=True)
class _End:
    """Where a line ends, and how it is labelled there."""

    x: float
    y: float
    number: int
    label: str
    color: str
    marker: str


@dataclass(frozen=True)
class FlopsPanel:
    """Scores versus the share of the unchanged model's FLOPs, with the Pareto front."""

    table: ModelTable
    series: Sequence[Series]
    title: str
    """Of the column."""
    budgets: Mapping[str, Sequence[Row]]
    height: float
    """Of the axes, inches."""

    def draw(self, axes: Axes) -> Mapping[str, str]:
        """Draw it; see :class:`vtw_eval.report.drawing.Panel`."""
        words: dict[str, str] = {}
        ends: list[_End] = []
        points: list[tuple[float, float]] = []
        for number, one in enumerate(self.series):
            own = [(row, self._share(row), row.scores[self.title]) for row in one.rows if self.title in row.scores]
            if not own:
                continue
            xs, ys = [x for _, x, _ in own], [score.outcome.value for _, _, score in own]
            style = ":" if one.control else "-"
            axes.plot(xs, ys, style, color=one.color, linewidth=1.1, zorder=2, gid=f"line-{number}")
            for place, (row, x, score) in enumerate(own):
                words |= self._point(axes, f"{number}-{place}", row, x, score, one.color, one.marker)
            points += zip(xs, ys, strict=True)
            ends.append(_End(xs[-1], ys[-1], number, one.label, one.color, one.marker))
        base = self.table.baseline
        if base is not None and self.title in base.scores:
            score, number = base.scores[self.title], len(self.series)
            points.append((100.0, score.outcome.value))
            axes.axhline(score.outcome.value, color=INK, linestyle="--", linewidth=0.8, zorder=1)
            words |= self._point(axes, f"{number}-0", base, 100.0, score, INK, "*")
            ends.append(_End(100.0, score.outcome.value, number, base.label, INK, "*"))
        lower = any(not row.scores[self.title].outcome.higher_is_better for row in self._rows())
        front = pareto_front(points, higher_is_better=not lower)
        axes.plot(
            *zip(*front, strict=True), color="#808080", linewidth=1, zorder=0, drawstyle="steps-post", gid="front"
        )
        self._bands(axes)
        axes.set_xlabel(f"FLOPs, % of the unchanged model ({self.table.convention})", fontsize=8)
        axes.margins(x=0.06, y=0.1 if self.budgets else 0.06)
        _labels(axes, ends, self.height)
        return words

    def _rows(self) -> list[Row]:
        return [row for row in self.table.rows if self.title in row.scores]

    def _share(self, row: Row) -> float:
        base = self.table.baseline
        return 100 * (row.flops or 0.0) / (base.flops if base is not None and base.flops else 1.0)

    def _point(
        self, axes: Axes, name: str, row: Row, x: float, score: Score, color: str, marker: str
    ) -> dict[str, str]:
        if (own := score.interval) is not None:
            bar = axes.vlines(x, own.low, own.high, color=color, linewidth=0.9, alpha=0.6, zorder=2)
            bar.set_gid(f"bar-{name}")
        size, gid = 9 if marker == "*" else 5.5, f"point-{name}"
        axes.plot(x, score.outcome.value, marker, color=color, markersize=size, zorder=3, gid=gid)
        limits = f" [{own.low:.2f}, {own.high:.2f}]" if own else ""
        told = f"{self.title}: {score.outcome.value:.2f}{limits}{MARKS[score.verdict]}"
        return {gid: f"{row.label}\n{x:.1f} % of the FLOPs\n{told}"}

    def _bands(self, axes: Axes) -> None:
        """Grey behind the points of one budget, with its name."""
        for label, rows in self.budgets.items():
            xs = [self._share(row) for row in rows if row.flops is not None and self.title in row.scores]
            if xs:
                axes.axvspan(min(xs) - 1, max(xs) + 1, color="#808080", alpha=0.12, linewidth=0, zorder=0)
                where: Any = axes.get_xaxis_transform()
                middle = (min(xs) + max(xs)) / 2
                words = plain(label).replace(" ", "\n", 1)
                axes.text(middle, 0.01, words, transform=where, fontsize=6, ha="center", va="bottom")


def _labels(axes: Axes, ends: Sequence[_End], height: float) -> None:
    """Write a label for each line at the right, none over another, tied to the line's end."""
    from matplotlib.patches import ConnectionPatch

    low, high = axes.get_ylim()
    upwards = sorted(ends, key=lambda end: (end.y, -end.x))
    places = spread([(end.y - low) / (high - low) for end in upwards], LABEL_HEIGHT / height, 0.02, 0.98)
    beside = axes.transAxes
    for place, end in zip(places, upwards, strict=True):
        tie = ConnectionPatch(
            (end.x, end.y),
            (1.02, place),
            "data",
            "axes fraction",
            axesA=axes,
            color=end.color,
            linewidth=0.6,
            alpha=0.55,
        )
        tie.set_gid(f"tie-{end.number}")
        tie.set_clip_on(False)
        axes.add_artist(tie)
        style: dict[str, Any] = {"color": end.color, "markersize": 5, "transform": beside, "clip_on": False}
        axes.plot(1.035, place, end.marker, gid=f"key-{end.number}", **style)
        words: dict[str, Any] = {"fontsize": 7, "va": "center", "color": INK, "transform": beside}
        axes.text(1.06, place, plain(end.label), gid=f"label-{end.number}", **words)


@dataclass(frozen=True)
class KPanel:
    """Scores of a method versus its k with their intervals; the unchanged model is a line."""

    table: ModelTable
    family: Ablation
    title: str
    members: Sequence[tuple[int, Row]]

    def draw(self, axes: Axes) -> Mapping[str, str]:
        """Draw it; see :class:`vtw_eval.report.drawing.Panel`."""
        from matplotlib.ticker import MaxNLocator

        points = [(k, row.scores[self.title]) for k, row in self.members if self.title in row.scores]
        low = [s.outcome.value - s.interval.low if s.interval else 0.0 for _, s in points]
        high = [s.interval.high - s.outcome.value if s.interval else 0.0 for _, s in points]
        ks, values = [k for k, _ in points], [s.outcome.value for _, s in points]
        name = plain(self.family.name.partition(",")[0])
        axes.errorbar(ks, values, yerr=[low, high], marker="o", markersize=4, capsize=3, color=COLORS[0], label=name)
        words = {}
        for place, (k, score) in enumerate(points):
            axes.plot(k, score.outcome.value, "o", color=COLORS[0], markersize=4, gid=f"point-0-{place}")
            limits = f" [{score.interval.low:.2f}, {score.interval.high:.2f}]" if score.interval else ""
            told = f"{self.title}: {score.outcome.value:.2f}{limits}{MARKS[score.verdict]}"
            words[f"point-0-{place}"] = f"{self.family.parameter} = {k}\n{told}"
        base = self.table.baseline
        if base is not None and self.title in base.scores:
            value = base.scores[self.title].outcome.value
            axes.axhline(value, color=INK, linestyle="--", linewidth=0.8, label="unchanged model")
        axes.set_xlabel(plain(self.family.parameter), fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=7, frameon=False)
        return words


@dataclass(frozen=True)
class KLPanel:
    """Divergence of the first answer token by k."""

    divergence: Divergence
    title: str = "KL of the first answer token (nats)"

    def draw(self, axes: Axes) -> Mapping[str, str]:
        """Draw it; see :class:`vtw_eval.report.drawing.Panel`."""
        for number, (task, curve) in enumerate(self.divergence.items()):
            color = COLORS[number % len(COLORS)]
            axes.plot([k for k, _ in curve], [kl for _, kl in curve], marker=".", color=color, label=plain(task))
        axes.set_xlabel("k", fontsize=8)
        axes.set_yscale("log")
        axes.legend(fontsize=7, frameon=False)
        return {}


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[tuple[float, float]]:
    """Return the points that no other one beats, by cost.

    Parameters
    ----------
    points
        Pairs of cost and score. One beats another if it costs no more and scores no less, and is better in one of them.
    higher_is_better
        Of the score.
    """
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * score > sign * front[-1][1]:
            front.append((cost, score))
    return front
