"""What to take, as a section of a report and on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtw_eval.cost.units import flops_unit
from vtw_eval.report.analysis import ModelTable
from vtw_eval.report.choose import Candidate, Choice, Loss, choice_of
from vtw_eval.report.errors import ReportError
from vtw_eval.report.render.blocks import Block, Details, Inline, Paragraph, Text, runs
from vtw_eval.report.tables import cost_text
from vtw_eval.tables import Table, layout

LOSSES = (1.0, 2.0, 5.0, 10.0)
"""Percent of a metric's range for which the report's section says the cheapest setting."""


def choice_blocks(table: ModelTable) -> list[Block]:
    """Return the section of a model: the cheapest setting for some losses, with the evidence folded.

    Nothing where nothing can be chosen: no method of reference, no FLOPs, a task without evidence, one method only.
    """
    try:
        choice = choice_of(table)
    except ReportError:
        return []
    if len(choice.candidates) < 2:
        return []
    rows: list[list[Inline]] = []
    for loss in LOSSES:
        chosen = choice.within(loss)
        if chosen:
            rows.append([f"{loss:g}", Text(chosen[0].row.label, "bold"), _cost(choice, chosen[0])])
        else:
            rows.append([f"{loss:g}", none_text(choice, loss), "-"])
    return [
        Paragraph(Text("Which one should I take?", "bold")),
        Table(["loses less than", "cheapest setting", f"{_unit(choice)[1]} ↓"], rows, words=2),
        Paragraph(note_text(choice)),
        Details("Losses that can be ruled out", [evidence_table(choice)]),
    ]


def none_text(choice: Choice, loss: float) -> str:
    """Return why no setting is shown to lose less than some percent of the range."""
    if choice.floor < loss:
        return "none is shown to"
    short = max(choice.floors, key=lambda title: choice.floors[title])
    if math.isinf(choice.floor):
        return "too many settings for the draws of the intervals"
    return f"none: {short} has too few documents to show less than {choice.floor:.2g}"


def choice_text(choice: Choice, loss: float) -> str:
    """Return what to take at a loss, with the evidence, for a terminal.

    Parameters
    ----------
    choice
        Of a model.
    loss
        Percent of a metric's range.
    """
    chosen = choice.within(loss)
    rest = [candidate for candidate in choice.candidates if candidate not in chosen]
    where = f"{choice.table.model}, loss of less than {loss:g}"
    if chosen:
        parts = [f"{where}: {chosen[0].row.label}, {_cost(choice, chosen[0])} {_unit(choice)[1]}."]
        parts += ["Shown, the cheapest first:", _plain(choice, chosen)]
    else:
        parts = [f"{where}: {none_text(choice, loss)}."]
    if rest:
        parts += ["Not shown:", _plain(choice, rest)]
    return "\n\n".join([*parts, note_text(choice)])


def _plain(choice: Choice, candidates: Sequence[Candidate]) -> str:
    return layout(evidence_table(choice, candidates), "simple", lambda cell: "".join(run.text for run in runs(cell)))


def evidence_table(choice: Choice, candidates: Sequence[Candidate] | None = None) -> Table[Inline]:
    """Return settings by columns: the loss that was seen, and the one below which the true one lies.

    Parameters
    ----------
    choice
        What can be said.
    candidates
        Settings to show; None shows all.
    """
    shown = choice.candidates if candidates is None else candidates
    headers = ["setting", f"{_unit(choice)[1]} ↓", *choice.floors, "on every task"]
    rows: list[list[Inline]] = [
        [
            candidate.row.label,
            _cost(choice, candidate),
            *(loss_text(candidate.losses[title]) for title in choice.floors),
            "-" if math.isinf(candidate.bound) else f"< {candidate.bound:.2f}",
        ]
        for candidate in shown
    ]
    return Table(headers, rows)


def loss_text(loss: Loss | None) -> str:
    """Return a loss with its bound; ``-`` if there is none."""
    if loss is None:
        return "-"
    seen = f"{loss.observed:.2f}".replace("-0.00", "0.00")
    return seen if math.isinf(loss.bound) else f"{seen} (< {loss.bound:.2f})"


def note_text(choice: Choice) -> str:
    """Return what the claims are, and what they rest on."""
    tasks = "on every task" if len(choice.floors) > 1 else f"on {next(iter(choice.floors))}"
    return (
        f"Loss against {choice.table.reference_name} {tasks}, in percent of a metric's range (points of 100; of MME, 2 "
        f"for each category). A setting counts if a larger loss is ruled out on the same documents: one-sided paired "
        f"intervals, 5 % error for all {len(choice.candidates)} cheaper settings together (Bonferroni; over tasks an "
        f"intersection-union test). No answer changed at all would rule out {_floors(choice)}."
    )


def _floors(choice: Choice) -> str:
    return ", ".join(f"{floor:.2g} on {title}" for title, floor in choice.floors.items())


def _unit(choice: Choice) -> tuple[float, str]:
    return flops_unit(max((row.flops for row in choice.table.rows if row.flops is not None), default=0.0))


def _cost(choice: Choice, candidate: Candidate) -> str:
    base = choice.table.baseline
    return cost_text(candidate.flops, _unit(choice)[0], base.flops if base is not None else None)
