"""A table for each budget of a plan: methods that were set to one cost, beside the unchanged model."""

from __future__ import annotations

from dataclasses import replace

from vtw_eval.names import but_for_seeds
from vtw_eval.report.analysis import BASELINE, ModelTable, Row
from vtw_eval.report.render.blocks import Block, Items, Paragraph, Text
from vtw_eval.report.results import Results
from vtw_eval.report.tables import main_table


def budget_blocks(table: ModelTable, results: Results, equivalence: float | None) -> list[Block]:
    """Return a table for each budget that has results of a model, and what could not be set to one.

    Parameters
    ----------
    table
        All methods of the model; marks of significance are those of this table.
    results
        With the budgets of the plan; empty if it has none.
    equivalence
        See :func:`~vtw_eval.report.tables.main_table`.
    """
    blocks: list[Block] = []
    for label, rows in budget_rows(table, results).items():
        base = [row for row in table.rows if row.method == BASELINE]
        blocks += [
            Paragraph(Text(f"At {label}:", "bold")),
            main_table(replace(table, rows=(*base, *rows)), equivalence),
        ]
    if blocks and results.missed:
        blocks += [Paragraph("Not set to a budget, or near it only:"), Items(list(results.missed))]
    return blocks


def budget_rows(table: ModelTable, results: Results) -> dict[str, list[Row]]:
    """Return the rows of a model that were set to a budget, by what it is called; none of those without any."""
    if not results.budgets:
        return {}
    methods = [(row, but_for_seeds(row.method)) for row in table.rows if row.method != BASELINE]
    found = {}
    for label, specs in results.budgets.items():
        at = {but_for_seeds(spec) for spec in specs}
        if rows := [row for row, method in methods if method in at]:
            found[label] = rows
    return found
