"""``vtw-eval report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors


@app.command(epilog="Example: vtw-eval report runs/shapes -o results/shapes/README.md --title 'Shapes'")
def report(
    folder: Annotated[Path, typer.Argument(help="Holds one folder of lmms-eval output per method.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the report to this file.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Comparison",
    command: Annotated[str, typer.Option(help="The command that made the runs, shown below the table.")] = "",
) -> None:
    """Print a Markdown table of methods by tasks, with prefill FLOPs and their share of the baseline."""
    from vtw_eval.report import read_runs
    from vtw_eval.report.document import markdown_document, write_atomically
    from vtw_eval.report.runs import RunError

    with user_errors("report", (RunError,)):
        text = markdown_document(read_runs(folder), title=title, command=command)
    if output is not None:
        write_atomically(output, text)
    typer.echo(text, nl=False)
