"""A few documents where methods and the baseline answer differently."""

from __future__ import annotations

from vtw_eval.record.cell import Sample
from vtw_eval.report.analysis import BASELINE, ModelTable
from vtw_eval.report.pictures import picture_of
from vtw_eval.report.render.blocks import Examples, Inline, Picture, Text
from vtw_eval.report.results import Result
from vtw_eval.tables import Table

PER_TASK = 3
_LENGTH = 120


def changed_answers(table: ModelTable, pictures: bool = False) -> Examples | None:
    """Return documents whose answer a method changes, a few for each task, those whose score falls first.

    Each method gives at most one document per task, so that the examples show several methods. None if no answer
    differs or no answers are at hand.

    Parameters
    ----------
    table
        Of a model.
    pictures
        Whether to look for pictures, see :func:`~vtw_eval.report.pictures.picture_of`.
    """
    rows: list[list[Inline]] = []
    shown: list[Picture | None] = []
    for task in dict.fromkeys(table.columns.values()):
        base = next((row.results.get(task) for row in table.rows if row.method == BASELINE), None)
        if base is None or not base.samples:
            continue
        changes = [
            (*found, row.label)
            for row in table.rows
            if row.method != BASELINE and task in row.results and (found := _change(row.results[task], base))
        ]
        changes.sort(key=lambda change: change[0])
        for _, sample, before, label in changes[:PER_TASK]:
            texts = (sample.target, before, sample.answer)
            rows.append([task, sample.doc_id, label, *(Text(_cut(text), "code") for text in texts)])
            shown.append(picture_of(task, sample) if pictures else None)
    headers = ["task", "document", "method", "right answer", "baseline", "method's answer"]
    return Examples(Table(headers, rows, words=len(headers)), shown) if rows else None


def _change(result: Result, base: Result) -> tuple[float, Sample, str] | None:
    """Return (change of score, sample, baseline's answer) of the worst change, None without one."""
    before = {sample.doc_id: sample for sample in base.samples}
    worst = None
    for sample in result.samples:
        other = before.get(sample.doc_id)
        if other is None or other.answer == sample.answer:
            continue
        change = sum(sample.scores.values()) - sum(other.scores.values())
        if worst is None or change < worst[0]:
            worst = (change, sample, other.answer)
    return worst


def _cut(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"
