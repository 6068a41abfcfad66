"""The command ``vtw-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="vtw-eval",
    help="Visual-token reduction for multimodal models: methods, costs, tables. Evaluations run through lmms_eval.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Keep sub-commands, also while there are few."""


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

    try:
        text = markdown_document(read_runs(folder), title=title, command=command)
    except RunError as error:
        typer.echo(f"vtw-eval report: error: {error}", err=True)
        raise typer.Exit(1) from None
    if output is not None:
        write_atomically(output, text)
    typer.echo(text, nl=False)


@app.command(epilog="Example of use: lmms_eval --model llava_vtw --model_args pretrained=CKPT,method=vtw,k=16 ...")
def methods() -> None:
    """List the methods with their parameters and sources."""
    from vtw_eval.methods import METHODS

    for key, cls in METHODS.items():
        defaults = {name: "by model" if value is None else value for name, value in cls().params().items()}
        typer.echo(", ".join([key, *(f"{name}={value}" for name, value in defaults.items())]))
        typer.echo(f"    {(cls.__doc__ or '').strip().splitlines()[0]}")
        if cls.paper:
            typer.echo(f"    {cls.paper}")
