"""From a folder of results to a report and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vtw_eval.names import names_of
from vtw_eval.record.curves import curve_folders
from vtw_eval.report.analysis import ModelTable, analyse
from vtw_eval.report.budgets import budget_rows
from vtw_eval.report.changes import Changes, changes_between
from vtw_eval.report.curve import curve_blocks, read_curve
from vtw_eval.report.document import ReportOptions, report_blocks, table_blocks
from vtw_eval.report.errors import ReportError
from vtw_eval.report.inline import inline_panels
from vtw_eval.report.labels import families, method_called
from vtw_eval.report.measured import read_measured
from vtw_eval.report.names import with_names
from vtw_eval.report.part import Only
from vtw_eval.report.plots import apart, model_plots
from vtw_eval.report.published_tables import beside_blocks
from vtw_eval.report.records import to_csv
from vtw_eval.report.render.blocks import Block, Image, Paragraph, Text
from vtw_eval.report.render.formats import RENDERERS
from vtw_eval.report.results import Results
from vtw_eval.report.search import read_divergence
from vtw_eval.report.source import read_results
from vtw_eval.report.summary import FILE, summary_text
from vtw_eval.report.trust import BASELINE

PLOTS = "plots"


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report, and how."""

    folder: Path
    """Of a sweep or of committed results."""
    form: Literal["markdown", "latex", "csv", "html"] = "markdown"
    old: Path | None = None
    """Older results to compare with."""
    published: bool = False
    """Whether to show the papers' numbers."""
    equivalence: float | None = None
    """Percent of a metric's range."""
    convention: str | None = None
    """Of the FLOPs."""
    reference: str = BASELINE
    """Method that the others are compared with, by spec or name."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What tables call methods, by spec, in place of the names that the plan gives them."""
    only: Only = field(default_factory=Only)
    """Which cells to show; the method of reference and the baseline stay."""
    benches: tuple[str, ...] = ()
    """Measurements of latency and memory, see :func:`vtw_eval.report.measured.read_measured`."""
    divergences: tuple[Path, ...] = ()
    """Results of searches for k."""
    title: str = ""
    """Heading; if empty, the title of the plan or the name of the folder."""
    command: str = ""
    plots: bool = True
    """Whether to draw."""
    table: bool = False
    """Whether to show the main tables alone, as for a paper."""


@dataclass(frozen=True)
class Made:
    """A report."""

    text: str
    changes: Changes | None
    files: dict[str, bytes] = field(default_factory=dict)
    """What stands beside it, by path: pictures, and the results of a Markdown report."""


def make_report(request: ReportRequest) -> Made:
    """Make a report.

    Raises
    ------
    ReportError
        If the results cannot be read or compared.
    """
    everything = with_names(read_results(request.folder), request.names)
    kept = (BASELINE, method_called(request.reference, everything.names))
    results = request.only.of(everything, kept)
    tables = analyse(results, request.convention, request.reference)
    changes = None
    if request.old is not None:
        before = read_results(request.old)
        before = replace(before, names=names_of((cell.spec.method for cell in before.cells), everything.names))
        changes = changes_between(results, request.only.of(before, kept))
    measured = read_measured(request.benches, tables)
    if request.form == "csv":
        return Made(to_csv(tables, request.equivalence, measured), changes)
    images, files = _draw(results, tables, request) if request.plots and not request.table else ({}, {})
    curves = _curves(request, files)
    options = ReportOptions(
        title=request.title or results.title or request.folder.resolve().name,
        command=request.command,
        equivalence=request.equivalence,
        part=_told(request, results, everything),
        changes=changes,
        published=beside_blocks(tables) if request.published else (),
        images=images,
        measured=measured,
        pictures=request.form == "html",
        curves=curves,
    )
    blocks = (table_blocks if request.table else report_blocks)(results, tables, options)
    text = RENDERERS[request.form](blocks, PLOTS)
    if request.form == "markdown" and not request.table:
        files[FILE] = summary_text(everything).encode()
    return Made(text, changes, files)


def _curves(request: ReportRequest, files: dict[str, bytes]) -> list[Block]:
    """Return the curves that stand in the folder; their figures join the files."""
    if request.only.patterns or request.table:
        return []
    found: list[Block] = []
    for folder in curve_folders(request.folder):
        try:
            curve = read_curve(folder, f"curve-{folder.name}")
        except ReportError as error:
            found.append(Paragraph(Text(f"No curve of {folder.name}: {error}", "bold")))
            continue
        image = None
        if request.plots and request.form == "html":
            image = replace(curve.plot.image, panels=inline_panels(curve.plot, curve.plot.image.name))
        elif request.plots:
            image = curve.plot.image
            files |= {f"{PLOTS}/{image.name}.{kind}": content for kind, content in curve.plot.files().items()}
        found += curve_blocks(curve, image)
    return found


def _told(request: ReportRequest, results: Results, everything: Results) -> str:
    if not request.only.patterns:
        return ""
    return f"{request.only}, {len(results.cells)} of {len(everything.cells)} cells"


def _draw(
    results: Results, tables: tuple[ModelTable, ...], request: ReportRequest
) -> tuple[dict[str, list[Image]], dict[str, bytes]]:
    divergence = dict(read_divergence(path) for path in request.divergences)
    drawn = [
        (table.model, plot)
        for table in tables
        for plot in model_plots(
            table,
            families((row.method for row in table.rows), table.pooled),
            divergence,
            budget_rows(table, results),
        )
    ]
    images: dict[str, list[Image]] = {}
    files: dict[str, bytes] = {}
    for (model, plot), image in zip(drawn, apart([plot.image for _, plot in drawn]), strict=True):
        if request.form == "html":
            image = replace(image, panels=inline_panels(plot, image.name))
        else:
            files |= {f"{PLOTS}/{image.name}.{kind}": content for kind, content in plot.files().items()}
        images.setdefault(model, []).append(image)
    return images, files
