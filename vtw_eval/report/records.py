"""Every score as a line of CSV, for those who make their own tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtw_eval.report.analysis import ModelTable, Row
from vtw_eval.report.measured import Measured, measurements
from vtw_eval.report.tables import equal

if TYPE_CHECKING:
    from vtw_eval.cost.bench.found import BenchRow

_HEADERS = (
    "model",
    "method",
    "task",
    "column",
    "state",
    "documents",
    "value",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "test",
    "mcnemar_p",
    "lost",
    "won",
    "identical_answers",
    "equal",
    "flops_convention",
    "flops",
    "reference",
    "seeds",
    "spread",
    "prefill_s",
    "first_token_s",
    "step_s",
    "kv_bytes",
    "peak_bytes",
)


def to_csv(tables: Sequence[ModelTable], equivalence: float | None = None, measured: Sequence[Measured] = ()) -> str:
    """Return one line per score, and one per cell that has none; numbers unrounded, in the points of the tables.

    A method that ran with several seeds has a line for each, and one for their mean under its label, which alone is
    compared. Where methods have names, a column ``name`` follows the one of the specs.

    Parameters
    ----------
    tables
        Of :func:`vtw_eval.report.analysis.analyse`.
    equivalence
        Percent of a metric's range, for the column ``equal``.
    measured
        Benchmarks, for the last columns: of each method in the setting with the smallest batch.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    named = any(row.name for table in tables for row in table.rows)
    writer.writerow([*_HEADERS[:2], "name", *_HEADERS[2:]] if named else _HEADERS)
    for table in tables:
        timed = measurements(table, measured)
        for row in table.rows:
            for one in (*row.seeds, row):
                for title, task in table.columns.items():
                    if task in one.results:
                        costs = _measured(timed.get(row.method) if one is row else None)
                        model, method, *rest = _line(table, one, title, task, equivalence)
                        writer.writerow([model, method, *([one.label] if named else []), *rest, *costs])
    return file.getvalue()


def _measured(row: BenchRow | None) -> list[object]:
    """Return seconds and bytes, empty where nothing was measured."""
    if row is None:
        return [""] * 5
    times = ["" if time is None else time.median for time in (row.prefill, row.first_token, row.step)]
    return [*times, *("" if count is None else count for count in (row.kv_bytes, row.peak_bytes))]


def _line(table: ModelTable, row: Row, title: str, task: str, equivalence: float | None) -> list[object]:
    result, score = row.results[task], row.scores.get(title)
    method = row.unnamed if row.seeds else row.method
    head: list[object] = [table.model, method, task, title, result.state, result.documents or ""]
    flops = [table.convention, "" if table.withheld else result.flops.get(table.convention, "")]
    if score is None:
        return [*head, *[""] * 14, *flops, "", len(row.seeds) or "", ""]
    scale, found, own = score.outcome.scale, score.comparison, score.interval
    paired: list[object] = [""] * 11
    reference = ""
    if found is not None:
        ends = (found.difference, found.interval.low, found.interval.high)
        same = "" if score.identical is None else score.identical
        mcnemar = "" if found.mcnemar_p is None else found.mcnemar_p
        tests = [found.p, score.holm_p, found.test, mcnemar]
        paired = [*(scale * end for end in ends), *tests, found.lost, found.won]
        paired += [same, equal(score, equivalence) if equivalence is not None else ""]
        reference = table.reference.method if table.reference is not None else ""
    spread = "" if score.spread is None else score.spread
    limits = (own.low, own.high) if own else ("", "")
    return [*head, score.outcome.value, *limits, *paired, *flops, reference, len(score.outcome.seeds) or "", spread]
