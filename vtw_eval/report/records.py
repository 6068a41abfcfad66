"""Every score as a line of CSV, for those who make their own tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vtw_eval.report.analysis import ModelTable
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
)


def to_csv(tables: Sequence[ModelTable], equivalence: float | None = None) -> str:
    """Return one line per score, and one per cell that has none; numbers unrounded, in the points of the tables.

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
            for title, task in table.columns.items():
                result, score = row.results.get(task), row.scores.get(title)
                if result is None:
                    continue
                head = [table.model, row.method, task, title, result.state, result.documents or ""]
                flops = [table.convention, "" if table.withheld else result.flops.get(table.convention, "")]
                if score is None:
                    writer.writerow([*head, *[""] * 14, *flops])
                    continue
                scale, found, own = score.outcome.scale, score.comparison, score.interval
                paired: list[object] = [""] * 9
                if found is not None:
                    ends = (found.difference, found.interval.low, found.interval.high)
                    same = "" if score.identical is None else score.identical
                    mcnemar = "" if found.mcnemar_p is None else found.mcnemar_p
                    tests = [found.p, score.holm_p, found.test, mcnemar]
                    paired = [*(scale * end for end in ends), *tests, found.lost, found.won]
                    paired += [same, equal(score, equivalence) if equivalence is not None else ""]
                else:
                    paired += ["", ""]
                writer.writerow(
                    [*head, score.outcome.value, *((own.low, own.high) if own else ("", "")), *paired, *flops]
                )
    return file.getvalue()
