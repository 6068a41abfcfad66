"""``vtw-eval tasks``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from tabulate import tabulate

from vtw_eval.cli.app import app, user_errors


@app.command(epilog="Example: vtw-eval tasks --table vtw_table2; then lmms_eval --tasks vtw_table2 ...")
def tasks(
    table: Annotated[
        str | None,
        typer.Option(
            help="vtw_table2, vtw_table3, vtw_table7, vtw_table8, dyvte_table1 or dyvte_table2. Default: all."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what the papers' benchmarks are called in lmms-eval and VLMEvalKit, with metric and scale."""
    from vtw_eval.papers.benchmarks import Score, columns

    with user_errors("tasks"):
        if markdown and as_json:
            raise ValueError("--markdown or --json, not both.")
        found = columns(table)
    if as_json:
        typer.echo(json.dumps([asdict(benchmark) for benchmark in found], indent=2))
        return

    def cells(score: Score | None) -> tuple[str, str]:
        if score is None:
            return "-", "-"
        return score.name, f"{' + '.join(score.metrics)} ({score.scale}{', judge' if score.judge else ''})"

    rows = [
        (entry.title, entry.split, *cells(entry.lmms), *cells(entry.kit), ", ".join(entry.tables)) for entry in found
    ]
    heads = ("benchmark", "split", "lmms-eval", "metric (scale)", "VLMEvalKit", "metric (scale)", "tables")
    text = tabulate(rows, heads, tablefmt="pipe" if markdown else "simple", disable_numparse=True)
    # the bar in this key would end a Markdown cell
    typer.echo(text.replace("overall|overall", "overall\\|overall") if markdown else text)
    notes = [f"{'- ' if markdown else ''}{entry.title}: {entry.note}" for entry in found if entry.note]
    if notes:
        typer.echo("\n" + "\n".join(notes))
