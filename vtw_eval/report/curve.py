"""Scores and divergence of VTW by k: one table, one figure, and every score as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vtw_eval.report.analysis import SIGNIFICANT, ModelTable, Row, Score, analyse
from vtw_eval.report.drawing import Plot
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import Ablation, params_of
from vtw_eval.report.panels import KLPanel, KPanel
from vtw_eval.report.records import to_csv
from vtw_eval.report.render.blocks import Image
from vtw_eval.report.search import read_divergence
from vtw_eval.report.source import read_results
from vtw_eval.report.tables import MARKS, cost_text, difference_text, missing, p_text
from vtw_eval.tables import Table, markdown

NAME = "curve"
"""Of the files."""


def curve_files(folder: Path, divergences: Sequence[Path], command: str = "") -> dict[str, bytes]:
    """Return table, figure and CSV of a folder with cells of VTW at several k.

    Parameters
    ----------
    folder
        Of the cells, those of the unchanged model among them.
    divergences
        Files of :func:`vtw_eval.report.search.write_divergence`, one for each task.
    command
        What has made them.

    Returns
    -------
    dict of str to bytes
        By name: ``curve.md``, ``curve.csv``, ``curve.png`` and ``curve.svg``.

    Raises
    ------
    ReportError
        If the folder cannot be read, or no k has a score.
    """
    results = read_results(folder)
    (table,) = analyse(results)
    divergence = dict(read_divergence(file) for file in divergences)
    rows = _by_k(table)
    if not any(row.scores for row in rows.values()):
        raise ReportError(f"{folder} holds no score of vtw at any k.")
    title = results.title or folder.resolve().name
    family = Ablation("vtw", "k", tuple(rows), tuple(row.method for row in rows.values()))
    panels = [KPanel(table, family, name, list(rows.items())) for name in table.columns]
    alt = f"{table.model}: scores and divergence of VTW by k"
    figure = Plot(Image(NAME, alt), f"{title}, 95 % intervals", (*panels, KLPanel(divergence)), columns=3)
    lines = [
        f"# {title}",
        f"{table.model}. Withdrawal of all vision tokens before layer k; differences are paired, to the unchanged "
        f"model. {MARKS['worse'].strip()} {MARKS['better'].strip()}: significant, p < {SIGNIFICANT} by Holm's method "
        "over the table. KL: of the first word, withdrawn from unchanged, mean over the documents.",
        markdown(_table(table, rows, divergence)),
        f"![{alt}]({NAME}.svg)",
        *([f"Made by `{command}`."] if command else []),
    ]
    found = {f"{NAME}.md": "\n\n".join(lines).encode() + b"\n", f"{NAME}.csv": to_csv([table]).encode()}
    return found | {f"{NAME}.{kind}": content for kind, content in figure.files().items()}


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
