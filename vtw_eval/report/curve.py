"""Scores and divergence of VTW by k: one table, one figure, and every score as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtw_eval.record.curves import DIVERGENCE
from vtw_eval.report.analysis import SIGNIFICANT, ModelTable, Row, Score, analyse
from vtw_eval.report.drawing import Plot
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import Ablation, params_of
from vtw_eval.report.panels import KLPanel, KPanel
from vtw_eval.report.records import to_csv
from vtw_eval.report.render.blocks import Block, Heading, Image, Paragraph, Text
from vtw_eval.report.search import read_divergence
from vtw_eval.report.source import read_results
from vtw_eval.report.tables import MARKS, cost_text, difference_text, missing, p_text
from vtw_eval.report.trust import sharing_note
from vtw_eval.tables import Table, markdown

NAME = "curve"
"""Of the files."""


@dataclass(frozen=True)
class Curve:
    """What is shown of the cells of a curve."""

    title: str
    about: str
    """What the columns are."""
    table: Table[str]
    plot: Plot
    scores: ModelTable
    """Of all its cells."""
    left: str
    """How many cells are not done; empty if all are."""


def read_curve(folder: Path, name: str = NAME) -> Curve:
    """Return what a folder with cells of VTW at several k tells.

    Parameters
    ----------
    folder
        Of the cells, those of the unchanged model among them, and of the divergences beside them.
    name
        Of the figure.

    Raises
    ------
    ReportError
        If the folder cannot be read, or no k has a score.
    """
    results = read_results(folder)
    (table,) = analyse(results)
    files = sorted((folder / DIVERGENCE).glob("*.json"))
    divergence = {task: curve for task, curve in map(read_divergence, files) if task in table.columns.values()}
    rows = _by_k(table)
    if not any(row.scores for row in rows.values()):
        raise ReportError(f"{folder} holds no score of vtw at any k.")
    title = results.title or folder.resolve().name
    family = Ablation("vtw", "k", tuple(rows), tuple(row.method for row in rows.values()))
    panels = [KPanel(table, family, column, list(rows.items())) for column in table.columns]
    alt = f"{table.model}: scores and divergence of VTW by k"
    about = (
        f"{table.model}. Withdrawal of all vision tokens before layer k; differences are paired, to the unchanged "
        f"model. {MARKS['worse'].strip()} {MARKS['better'].strip()}: significant, p < {SIGNIFICANT} by Holm's method "
        "over the table. KL: of the first word, withdrawn from unchanged, mean over the documents."
    )
    undone = sum(result.state != "done" for result in results.cells)
    return Curve(
        title,
        about,
        _table(table, rows, divergence),
        Plot(Image(name, alt), f"{title}, 95 % intervals", (*panels, KLPanel(divergence)), columns=3),
        table,
        f"{undone} of {len(results.cells)} cells are not done." if undone else "",
    )


def curve_files(folder: Path, command: str = "") -> dict[str, bytes]:
    """Return table, figure and CSV of a curve.

    Parameters
    ----------
    folder
        See :func:`read_curve`, which tells what is raised.
    command
        What has made the cells.

    Returns
    -------
    dict of str to bytes
        By name: ``curve.md``, ``curve.csv``, ``curve.png`` and ``curve.svg``.
    """
    curve = read_curve(folder)
    lines = [
        f"# {curve.title}",
        curve.about,
        markdown(curve.table),
        *([curve.left] if curve.left else []),
        f"![{curve.plot.image.alt}]({NAME}.svg)",
        *([f"Made by `{command}`."] if command else []),
    ]
    found = {f"{NAME}.md": "\n\n".join(lines).encode() + b"\n", f"{NAME}.csv": to_csv([curve.scores]).encode()}
    return found | {f"{NAME}.{kind}": content for kind, content in curve.plot.files().items()}


def curve_blocks(curve: Curve, image: Image | None) -> list[Block]:
    """Return a curve as a part of a report, with its figure if there is one."""
    shown: list[Block] = [Paragraph(curve.about), curve.table]
    if shared := sharing_note(result for row in curve.scores.rows for result in row.results.values()):
        shown.append(Paragraph(shared))
    if curve.left:
        shown.append(Paragraph(Text(curve.left, "bold")))
    return [Heading(2, f"{curve.scores.model}: {curve.title}"), *shown, *([image] if image is not None else [])]


def _by_k(table: ModelTable) -> dict[int, Row]:
    """Return the rows of VTW by k, in ascending order."""
    ks = {row.method: params_of(row.method).get("k") for row in table.rows if row.method.partition(",")[0] == "vtw"}
    rows = {k: row for row in table.rows if isinstance(k := ks.get(row.method), int)}
    return dict(sorted(rows.items()))


def _table(
    table: ModelTable, rows: Mapping[int, Row], divergence: Mapping[str, Sequence[tuple[int, float]]]
) -> Table[str]:
    base = table.baseline
    unit = 1e9 if max((row.flops or 0.0 for row in table.rows), default=0.0) < 1e12 else 1e12
    several = len(divergence) > 1
    kl = {f"KL, {task}" if several else "KL (nats)": dict(curve) for task, curve in divergence.items()}
    headers = ["k", f"{'GFLOPs' if unit == 1e9 else 'TFLOPs'} ↓", *kl]
    for title in table.columns:
        headers += [title, f"difference, {title}", "p (Holm)"]
    shown: list[tuple[str, Row, list[str]]] = [
        (str(k), row, [f"{curve[k]:.2e}" if k in curve else "-" for curve in kl.values()]) for k, row in rows.items()
    ]
    if base is not None:
        shown.append(("unchanged", base, ["0"] * len(kl)))
    lines = []
    for name, row, diverging in shown:
        line = [name, cost_text(row.flops, unit, base.flops if base else None), *diverging]
        for title, task in table.columns.items():
            line += _score(row.scores.get(title), missing(row, task))
        lines.append(line)
    return Table(headers, lines)


def _score(score: Score | None, otherwise: str) -> list[str]:
    """Return value, difference and p of a score."""
    if score is None:
        return [otherwise, "-", "-"]
    limits = f" [{score.interval.low:.2f}, {score.interval.high:.2f}]" if score.interval else ""
    value = f"{score.outcome.value:.2f}{limits}"
    if (found := score.comparison) is None:
        return [value, "-", "-"]
    return [value, difference_text(found, score.outcome.scale) + MARKS[score.verdict], p_text(score.holm_p)]
