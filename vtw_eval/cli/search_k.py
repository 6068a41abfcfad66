"""``vtw-eval search-k``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.files import check_output
from vtw_eval.models.adapters import ADAPTERS


@app.command(
    epilog="Example: vtw-eval search-k --model llava-hf/llava-1.5-7b-hf --task scienceqa_img --samples 200 "
    "--plot results/search.png"
)
def search_k(
    model: Annotated[str, typer.Option(help="Checkpoint: Hub name or folder, or shapes.")],
    task: Annotated[str, typer.Option(help="Task of lmms-eval whose first documents are used.")],
    adapter: Annotated[str, typer.Option(help=f"One of {', '.join(ADAPTERS)}.")] = "llava_vtw",
    samples: Annotated[int, typer.Option(min=1, help="Documents. 20 as in the paper often do not settle k.")] = 20,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Threshold in nats. Default: the paper's for the checkpoint (0.003; 13B 0.0005; NeXT 0.0001)."
        ),
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First candidate.")] = 5,
    direction: Annotated[
        str, typer.Option(help="vtw_full: KL(withdrawn || full) as the paper's code; full_vtw: the other way.")
    ] = "vtw_full",
    model_args: Annotated[str, typer.Option(help="More options of the adapter, as in lmms_eval --model_args.")] = "",
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of KL versus k to this file (.png, .svg).")] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare the search with single runs first; the result says so."),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write KL by k to this file, for vtw-eval report --kl.")] = None,
) -> None:
    """Search the withdrawal layer k of VTW (Algorithm 1) in one pass per document.

    Exit status: 0; 1 if something could not be done, such as loading the dataset; 2 if the command cannot be carried
    out as it is written.
    """
    from vtw_eval.model_adapters.lmms.search import search_task
    from vtw_eval.report.search import divergence_plot, divergence_table, save_divergence
    from vtw_eval.sweep.check import device_problem

    with user_errors("search-k", (ValueError, OSError, RuntimeError)):
        for file in (plot, json):
            if file is not None:
                check_output(file)  # not after the search
        if plot is not None:
            _check_picture(plot)
        if problem := device_problem(device):
            raise ValueError(problem)
        result = search_task(
            adapter,
            model,
            task,
            samples,
            eta,
            start=start,
            direction=direction,
            model_args=model_args,
            device=device,
            verify=not no_verify,
        )
    typer.echo(divergence_table(result))
    typer.echo(f"\nk={result.k} (first mean KL below eta={result.eta}). {result.advice()}")
    typer.echo(f"Search {result.verified}.")
    with user_errors("search-k"):
        if json is not None:
            save_divergence(result, task, json)
        if plot is not None:
            divergence_plot(result, plot)


def _check_picture(plot: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if plot.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"--plot {plot}: the suffix is of no picture that can be written: {', '.join(known)}.")
