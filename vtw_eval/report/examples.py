"""A few documents where methods and the baseline answer differently."""

from __future__ import annotations

import shlex

from vtw_eval.record.cell import CellSpec, Sample
from vtw_eval.report.analysis import BASELINE, ModelTable
from vtw_eval.report.pictures import picture_of
from vtw_eval.report.render.blocks import Block, Details, Examples, Inline, Items, Paragraph, Picture, Text
from vtw_eval.report.results import Result
from vtw_eval.tables import Table

PER_TASK = 3
_LENGTH = 120
_LEGEND = (
    "The small pictures show how many and which vision tokens enter the layers named: what is dark has none of its own "
    "there, since it left or was merged into another one; an orange line runs around the rest."
)


def changed_answers(table: ModelTable, pictures: bool = False) -> list[Block]:
    """Return documents whose answer a method changes, a few for each task, those whose score falls first.

    Each method gives at most one document per task, so that the examples show several methods. With pictures stand the
    commands that show more of each. Nothing if no answer differs or no answers are at hand.

    Parameters
    ----------
    table
        Of a model.
    pictures
        Whether to look for pictures, see :func:`~vtw_eval.report.pictures.picture_of`.
    """
    rows: list[list[Inline]] = []
    shown: list[Picture | None] = []
    commands: list[Inline] = []
    for task in dict.fromkeys(table.columns.values()):
        base = next((row.results.get(task) for row in table.rows if row.method == BASELINE), None)
        if base is None or not base.samples:
            continue
        changes = [
            (*found, row.label, row.results[task].spec)
            for row in table.rows
            if row.method != BASELINE and task in row.results and (found := _change(row.results[task], base))
        ]
        changes.sort(key=lambda change: change[0])
        for _, sample, before, label, spec in changes[:PER_TASK]:
            texts = (sample.target, before, sample.answer)
            rows.append([task, sample.doc_id, label, *(Text(_cut(text), "code") for text in texts)])
            shown.append(picture_of(spec, sample) if pictures else None)
            if pictures and (command := show_command(spec, sample)):
                commands.append(Text(command, "code"))
    if not rows:
        return []
    headers = ["task", "document", "method", "right answer", "baseline", "method's answer"]
    blocks: list[Block] = [Examples(Table(headers, rows, words=len(headers)), shown)]
    if any(picture and picture.kept for picture in shown):
        blocks.append(Paragraph(_LEGEND))
    if commands:
        blocks.append(Details("What was kept in each of them, layer by layer", [Items(commands)]))
    return blocks


def show_command(spec: CellSpec, sample: Sample) -> str:
    """Return the command that makes the page of ``vtw-eval show`` of a document and the method that ran on it.

    Parameters
    ----------
    spec
        Of the cell.
    sample
        The document.

    Returns
    -------
    str
        Empty where there is none: for another harness than lmms-eval, and for a search that did not tell what it has
        found.
    """
    method = sample.costs.method if sample.costs else spec.method
    if spec.harness != "lmms-eval" or not sample.doc_id.isdecimal() or "=search" in method:
        return ""
    options = {"pretrained": spec.pretrained, **spec.model_args}
    arguments = ",".join(f"{name}={value}" for name, value in options.items())
    words = ["vtw-eval", "show", "--model", spec.adapter, "--model-args", arguments, "--task", spec.task]
    return shlex.join([*words, "--doc", sample.doc_id, "--method", method, "-o", "page.html"])


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
