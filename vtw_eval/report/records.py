"""Every score as a line of CSV, for those who make their own tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vtw_eval.report.analysis import ModelTable, Row
from vtw_eval.report.tables import equal

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
)


def to_csv(tables: Sequence[ModelTable], equivalence: float | None = None) -> str:
    """Return one line per score, and one per cell that has none; numbers unrounded, in the points of the tables.

    A method that ran with several seeds has a line for each, and one for their mean under its label, which alone is
    compared.

    Parameters
    ----------
    tables
        Of :func:`vtw_eval.report.analysis.analyse`.
    equivalence
        Percent of a metric's range, for the column ``equal``.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADERS)
    for table in tables:
        for row in table.rows:
            for one in (*row.seeds, row):
                for title, task in table.columns.items():
                    if task in one.results:
                        writer.writerow(_line(table, one, title, task, equivalence))
    return file.getvalue()


def _line(table: ModelTable, row: Row, title: str, task: str, equivalence: float | None) -> list[object]:
    result, score = row.results[task], row.scores.get(title)
    name = row.label if row.seeds else row.method
    head: list[object] = [table.model, name, task, title, result.state, result.documents or ""]
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
