"""The papers' figures from what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtw_eval.analyze.analysis import Attention, TaskAnalysis
from vtw_eval.analyze.documents import Array
from vtw_eval.analyze.roles import BETWEEN, CROSS, FIRST, KINDS, ROLES, TEXT_SELF
from vtw_eval.report.drawing import INK, Panel, Plot, plain
from vtw_eval.report.panels import KLPanel
from vtw_eval.report.render.blocks import Image
from vtw_eval.report.series import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SCARCE = 0.5
"""Share of the documents that a token of the answer must have to be drawn: the end would be that of a few answers."""


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    label: str
    xs: Sequence[float]
    ys: Array
    color: str
    style: str = "-"
    around: tuple[Array, Array] | None = None
    """Lower and upper ends of what is shaded around it."""


@dataclass(frozen=True)
class LinePanel:
    """Lines over layers, tokens or k."""

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    share: bool = False
    """Whether the values are shares, 0 to 1."""
    log: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    """Places along the x axis with a name."""

    def draw(self, axes: Axes) -> Mapping[str, str]:
        """Draw it; see :class:`vtw_eval.report.drawing.Panel`."""
        from matplotlib.ticker import MaxNLocator, NullFormatter

        for line in self.lines:
            axes.plot(
                line.xs,
                line.ys,
                line.style,
                color=line.color,
                linewidth=1.2,
                marker=".",
                markersize=4,
                label=plain(line.label),
            )
            if line.around is not None:
                axes.fill_between(line.xs, *line.around, color=line.color, alpha=0.15, linewidth=0)
        for name, place in self.marks.items():
            axes.axvline(place, color=INK, linestyle=":", linewidth=0.9, label=plain(name))
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if self.share:
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(self.xlabel, fontsize=8)
        axes.set_ylabel(self.ylabel, fontsize=8, labelpad=2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=6.5, frameon=False)
        return {}


def plots(tasks: Sequence[TaskAnalysis], model: str) -> list[Plot]:
    """Return the figures: by layer (VTW Fig. 4), by token (Fig. 5), kinds (DyVTE Fig. 3), entropy (Fig. 5), by k.

    Parameters
    ----------
    tasks
        What was read.
    model
        Name of the checkpoint.
    """
    columns = len(tasks[0].attention)
    attentions = [(task, one) for task in tasks for one in task.attention]
    return [
        Plot(
            Image("attention-by-layer", f"{model}: attention of the answering tokens by layer"),
            f"{model}: what the answering tokens attend to, by layer (mean over heads and tokens)",
            tuple(_by_layer(task, one) for task, one in attentions),
            columns=columns,
        ),
        Plot(
            Image("attention-by-token", f"{model}: attention of the answering tokens by token"),
            f"{model}: what the answering tokens attend to, by token (mean over heads and layers)",
            tuple(_by_token(task, one) for task, one in attentions),
            columns=columns,
        ),
        Plot(
            Image("kinds", f"{model}: attention among image tokens, from text to image, among text tokens by layer"),
            f"{model}, unchanged: three kinds of attention in the prompt, by layer",
            tuple(panel for task in tasks for panel in _of_kinds(task)),
            columns=3,
        ),
        Plot(
            Image("entropy", f"{model}: entropy of attention with and without withdrawal by layer"),
            f"{model}: entropy of attention of the prompt's text, by layer",
            tuple(_of_entropy(task, kind) for task in tasks for kind in (CROSS, TEXT_SELF)),
            columns=2,
        ),
        Plot(
            Image("agreement", f"{model}: answers that stay the same by k"),
            f"{model}: answers of VTW that are those of the unchanged model, 95 % intervals",
            _of_agreement(tasks),
            columns=3,
        ),
    ]


def _by_layer(task: TaskAnalysis, one: Attention) -> Panel:
    mean, sd = one.by_layer.mean, one.by_layer.sd
    lines = _roles(range(task.layers), mean, sd)
    return LinePanel(f"{task.task}: {one.method}", "layer", "share of attention", lines, share=True)


def _by_token(task: TaskAnalysis, one: Attention) -> Panel:
    enough = one.by_token.documents[:, 0] >= _SCARCE * task.documents
    count = max(int(enough.sum()), 1)
    lines = _roles(range(1, count + 1), one.by_token.mean[:count], one.by_token.sd[:count])
    return LinePanel(f"{task.task}: {one.method}", "token of the answer", "share of attention", lines, share=True)


def _roles(xs: Sequence[int], mean: Array, sd: Array) -> list[Line]:
    found = []
    for number, role in enumerate((*ROLES, FIRST)):
        if number == BETWEEN and not mean[:, BETWEEN].any():
            continue
        deviation = np.nan_to_num(sd[:, number])
        around = (np.clip(mean[:, number] - deviation, 0, 1), np.clip(mean[:, number] + deviation, 0, 1))
        of_first = role == FIRST
        color = INK if of_first else COLORS[number]
        style = ":" if of_first else "-"
        found.append(Line(role, list(xs), mean[:, number], color, style, None if of_first else around))
    return found


def _of_kinds(task: TaskAnalysis) -> list[Panel]:
    """Return mean weight, its variance, and the share of attention."""
    of, xs = task.unchanged.kinds, list(range(task.layers))

    def lines(name: str) -> list[Line]:
        return [Line(kind, xs, of[name].mean[:, number], COLORS[number]) for number, kind in enumerate(KINDS)]

    return [
        LinePanel(f"{task.task}: mean weight of a pair", "layer", "mean", lines("mean")),
        LinePanel(f"{task.task}: variance of the weights", "layer", "variance", lines("variance"), log=True),
        LinePanel(f"{task.task}: share of the queries' attention", "layer", "share", lines("mass"), share=True),
    ]


def _of_entropy(task: TaskAnalysis, kind: int) -> Panel:
    xs = list(range(task.layers))
    lines = []
    for number, one in enumerate(task.attention):
        color = COLORS[(number - 1) % len(COLORS)] if number else INK
        lines.append(Line(one.method, xs, one.kinds["entropy"].mean[:, kind], color, "--" if number else "-"))
    return LinePanel(f"{task.task}: {KINDS[kind]}", "layer", "entropy, nats", lines)


def _of_agreement(tasks: Sequence[TaskAnalysis]) -> tuple[Panel, ...]:
    panels: list[Panel] = []
    for number, task in enumerate(tasks):
        ks, ys, low, high = (
            np.array([getattr(one, name) for one in task.agreement]) for name in ("k", "share", "low", "high")
        )
        line = Line("same answer", ks.tolist(), ys, COLORS[number % len(COLORS)], "-", (low, high))
        panels.append(LinePanel(task.task, "k", "share of answers", [line], share=True))
    known = {
        task.task: [(one.k, one.divergence) for one in task.agreement if one.divergence is not None] for task in tasks
    }
    divergence = {task: curve for task, curve in known.items() if curve}
    return (*panels, KLPanel(divergence)) if divergence else tuple(panels)
