"""Pictures of a model's table: score versus k, score versus FLOPs."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vtw_eval.report.analysis import ModelTable, Row
from vtw_eval.report.labels import Ablation
from vtw_eval.report.render.blocks import Image

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
"""Panels side by side."""
_MARKERS = "osD^v<>PX*hp"
_LENGTH = 60
"""Characters of a part of a file name: file systems take 255 bytes for a name."""

Divergence = Mapping[str, Sequence[tuple[int, float]]]
"""Mean KL by k, for each task that was searched; see :func:`vtw_eval.report.search.read_divergence`."""


def slug(text: str) -> str:
    """Return text as part of a file name, without what tells it from other texts; see :func:`picture_name`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:_LENGTH].rstrip("-.") or "model"


def picture_name(model: str, *parts: str) -> str:
    """Return the name of the file of a picture, without suffix.

    Parameters
    ----------
    model
        Name of the model. Where a file name cannot hold it as it is, a hash of it follows, so that no two models
        share a file.
    parts
        What the picture shows of it.
    """
    plain = slug(model)
    return "-".join([plain if plain == model else marked(plain, model), *map(slug, parts)])


def marked(name: str, text: str) -> str:
    """Return a name with six hexadecimal digits that depend on a text, to tell it from an equal name."""
    return f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:6]}"


def apart(images: Sequence[Image]) -> list[Image]:
    """Return pictures under names that differ, on file systems too that do not tell capitals from small letters."""
    names = [image.name.casefold() for image in images]
    return [
        image if names.count(name) == 1 else Image(marked(image.name, image.alt), image.alt)
        for image, name in zip(images, names, strict=True)
    ]


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


def model_plots(
    table: ModelTable, families: Sequence[Ablation], divergence: Divergence | None = None
) -> list[tuple[Image, Figure]]:
    """Return the pictures of a model, each with its place in a report.

    Parameters
    ----------
    table
        The model's table.
    families
        Its ablations; those of a number k are drawn.
    divergence
        Results of searches for k, drawn below the scores.
    """
    found: list[tuple[Image, Figure]] = []
    for family in families:
        ks = [value for value in family.values if isinstance(value, int) and not isinstance(value, bool)]
        if family.parameter.rpartition(".")[2] == "k" and len(ks) > 1 and _scored(table, family.methods):
            image = Image(
                picture_name(table.model, family.name, family.parameter),
                f"{table.model}: scores of {family.name} versus {family.parameter}",
            )
            found.append((image, _versus_k(table, family, divergence or {})))
    if table.baseline is not None and table.baseline.flops and sum(_costed(row) for row in table.rows) > 1:
        image = Image(picture_name(table.model, "flops"), f"{table.model}: scores versus FLOPs")
        found.append((image, _versus_flops(table)))
    return found


def _costed(row: Row) -> bool:
    """Whether a row is a point in a picture of scores versus FLOPs."""
    return row.flops is not None and bool(row.scores)


def _scored(table: ModelTable, methods: Sequence[str]) -> bool:
    """Whether two of the methods or more have a score, so that a line can be drawn."""
    return sum(bool(row.scores) for row in table.rows if row.method in methods) > 1


def _versus_k(table: ModelTable, family: Ablation, divergence: Divergence) -> Figure:
    """Scores with their intervals, one panel per column; the unchanged model is a line."""
    from matplotlib.ticker import MaxNLocator

    rows = {row.method: row for row in table.rows}
    members = [
        (value, rows[method])
        for value, method in zip(family.values, family.methods, strict=True)
        if isinstance(value, int)
    ]
    titles = [title for title in table.columns if any(title in row.scores for _, row in members)]
    figure, panels = _panels(len(titles) + bool(divergence))
    for axes, title in zip(panels, titles, strict=False):
        points = [(k, row.scores[title]) for k, row in members if title in row.scores]
        low = [s.outcome.value - s.interval.low if s.interval else 0.0 for _, s in points]
        high = [s.interval.high - s.outcome.value if s.interval else 0.0 for _, s in points]
        axes.errorbar(
            [k for k, _ in points],
            [s.outcome.value for _, s in points],
            yerr=[low, high],
            marker="o",
            capsize=3,
            label=_plain(family.name.partition(",")[0]),
        )
        if table.baseline is not None and title in table.baseline.scores:
            axes.axhline(
                table.baseline.scores[title].outcome.value, color="grey", linestyle="--", label="unchanged model"
            )
        axes.set(title=_plain(title), xlabel=_plain(family.parameter))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if divergence:
        axes = panels[len(titles)]
        for task, curve in divergence.items():
            axes.plot([k for k, _ in curve], [kl for _, kl in curve], marker=".", label=_plain(task))
        axes.set(title="KL of the first answer token (nats)", xlabel="k", yscale="log")
        axes.legend(fontsize="small")
    if titles:
        panels[0].legend(fontsize="small")
    figure.suptitle(_plain(f"{table.model}: {family.name}, 95 % intervals"))
    return figure


def _versus_flops(table: ModelTable) -> Figure:
    """Scores versus the share of the baseline's FLOPs, one panel per column, with the Pareto front."""
    titles = [title for title in table.columns if any(title in row.scores for row in table.rows if _costed(row))]
    figure, panels = _panels(len(titles), extra=0.24 * math.ceil(len(table.rows) / 3))
    base = table.baseline.flops if table.baseline is not None and table.baseline.flops else 1.0
    for axes, title in zip(panels, titles, strict=True):
        points: list[tuple[float, float]] = []
        for number, row in enumerate(table.rows):
            if row.flops is None or title not in row.scores:
                continue
            points.append((100 * row.flops / base, row.scores[title].outcome.value))
            marker, color = _MARKERS[number % len(_MARKERS)], f"C{number % 10}"
            axes.plot(*points[-1], marker, color=color, label=_plain(row.label), markersize=7)
        lower = any(row.scores[title].outcome.higher_is_better is False for row in table.rows if title in row.scores)
        front = pareto_front(points, higher_is_better=not lower)
        axes.plot(
            [x for x, _ in front], [y for _, y in front], color="grey", linewidth=1, zorder=0, drawstyle="steps-post"
        )
        axes.set(title=_plain(title), xlabel=f"FLOPs, % of the unchanged model ({table.convention})")
    _shared_legend(figure, panels, table.rows)
    figure.suptitle(_plain(f"{table.model}: scores versus FLOPs; the line joins what nothing beats in both"))
    return figure


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


def _shared_legend(figure: Figure, panels: Sequence[Axes], rows: Sequence[Row]) -> None:
    known: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    order = [label for row in rows if (label := _plain(row.label)) in known]
    figure.legend(
        handles=[known[label] for label in order], labels=order, loc="outside lower center", ncols=3, fontsize="small"
    )


def _panels(count: int, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, max(count, 1))
    lines = math.ceil(max(count, 1) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines + 0.4 + extra), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _plain(text: str) -> str:
    """Keep matplotlib from reading mathematics into a name, or leaving out of a legend what begins with ``_``."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
