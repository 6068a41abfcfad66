"""``vtw-eval tasks``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors


@app.command(epilog="Example: vtw-eval tasks --table vtw-table2; then lmms_eval --tasks vtw-table2 ...")
def tasks(
    table: Annotated[
        str | None,
        typer.Option(
            help="vtw-table2, vtw-table3, vtw-table7, vtw-table8, dyvte-table1 or dyvte-table2. Default: all."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what the papers' benchmarks are called in lmms-eval and VLMEvalKit, with metric and scale."""
    from vtw_eval import tables
    from vtw_eval.papers.benchmarks import PrintedScore, columns

    with user_errors("tasks"):
        if markdown and as_json:
            raise ValueError("--markdown or --json, not both.")
        found = columns(table)
    if as_json:
        typer.echo(json.dumps([asdict(benchmark) for benchmark in found], indent=2))
        return

    def cells(score: PrintedScore | None) -> tuple[str, str]:
        if score is None:
            return "-", "-"
        return score.name, f"{' + '.join(score.metrics)} ({score.scale}{', judge' if score.judge else ''})"

    rows = [
        (entry.title, entry.split, *cells(entry.lmms), *cells(entry.kit), ", ".join(entry.tables)) for entry in found
    ]
    heads = ("benchmark", "split", "lmms-eval", "metric (scale)", "VLMEvalKit", "metric (scale)", "tables")
    table_of_all = tables.Table(heads, rows, words=len(heads))
    typer.echo(tables.markdown(table_of_all) if markdown else tables.plain(table_of_all))
    notes = [f"{'- ' if markdown else ''}{entry.title}: {entry.note}" for entry in found if entry.note]
    if notes:
        typer.echo("\n" + "\n".join(notes))
