"""``vtw-eval choose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors


@app.command(epilog="Example: vtw-eval choose results/shapes --loss 2 --on mme,pope")
def choose(
    source: Annotated[
        Path, typer.Argument(help="Folder of a sweep, or of committed results (summary.json).", exists=True)
    ],
    loss: Annotated[
        float,
        typer.Option(
            min=0, help="Percent of a metric's range (points of 100; of MME, 2 for each category) not to be lost."
        ),
    ] = 1.0,
    on: Annotated[
        str, typer.Option(help="Tasks or columns on which it counts, such as mme,pope. Default: all of them.")
    ] = "",
    reference: Annotated[str, typer.Option(help="Method against which one loses, or its name.")] = "baseline",
    flops: Annotated[
        str | None, typer.Option(help="Convention of the FLOPs: eq1, profiler, exact. Default: eq1, or what there is.")
    ] = None,
) -> None:
    """Say which settings are the cheapest whose loss is shown to be below some points on every task.

    A loss is shown to be small if a larger one is ruled out by a one-sided paired interval on the same documents, at
    5 % error for all settings together. That a difference is not significant is not enough.
    """
    from vtw_eval.report.choice_blocks import choice_text
    from vtw_eval.report.choose import choices
    from vtw_eval.report.errors import ReportError
    from vtw_eval.report.source import read_results

    with user_errors("choose", (ReportError, OSError)):
        names = [name for name in on.split(",") if name.strip()]
        found = choices(read_results(source), names, flops, reference)
        typer.echo("\n\n".join(choice_text(choice, loss) for choice in found))
