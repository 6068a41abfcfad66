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


@app.command(
    epilog="Example: vtw-eval search-k --model llava-hf/llava-1.5-7b-hf --task scienceqa_img --samples 200 "
    "--plot results/search.png"
)
def search_k(
    model: Annotated[str, typer.Option(help="Checkpoint: Hub name or folder.")],
    task: Annotated[str, typer.Option(help="Task of lmms-eval whose first documents are used.")],
    adapter: Annotated[
        str, typer.Option(help="llava_vtw, qwen2vl_vtw, internvl_vtw or video_llava_vtw.")
    ] = "llava_vtw",
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
) -> None:
    """Search the withdrawal layer k of VTW (Algorithm 1) in one pass per document."""
    from vtw_eval.model_adapters.search_task import search_task
    from vtw_eval.report.search import divergence_plot, divergence_table

    try:
        result = search_task(
            adapter, model, task, samples, eta, start=start, direction=direction, model_args=model_args, device=device
        )
    except (ValueError, OSError, RuntimeError) as error:
        typer.echo(f"vtw-eval search-k: error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(divergence_table(result))
    typer.echo(f"\nk={result.k} (first mean KL below eta={result.eta}). {result.advice()}")
    if plot is not None:
        divergence_plot(result, plot)


@app.command(epilog="Example of use: lmms_eval --model llava_vtw --model_args pretrained=CKPT,method=vtw,k=16 ...")
def methods() -> None:
    """List the methods with their parameters, what they need of the model, and their sources."""
    from vtw_eval.methods import METHODS

    for key, cls in METHODS.items():
        defaults = {name: "auto" if value is None else value for name, value in cls().params().items()}
        typer.echo(", ".join([key, *(f"{name}={value}" for name, value in defaults.items())]))
        typer.echo(f"    {(cls.__doc__ or '').strip().splitlines()[0]}")
        typer.echo(f"    Needs {cls.needs}." + (f" {cls.paper}" if cls.paper else ""))


@app.command(
    epilog="Example: vtw-eval train-dyvte --model llava-hf/llava-1.5-7b-hf --data llava_v1_5_mix665k_1percent.json "
    "--image-folder images -o gates.safetensors"
)
def train_dyvte(
    model: Annotated[str, typer.Option(help="Checkpoint: Hub name or folder. It stays as it is.")],
    data: Annotated[Path, typer.Option(help="JSON file in LLaVA's conversation format, or a folder with one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Gates file (.safetensors) to write.")],
    image_folder: Annotated[Path | None, typer.Option(help="Of image paths. Default: folder of the JSON file.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: once through the data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per step; all share the step's exit layer.")] = 16,
    lr: Annotated[
        float, typer.Option(help="Peak learning rate. The published script has 6e-5, the paper 4e-5.")
    ] = 6e-5,
    alpha: Annotated[float, typer.Option(help="Bound on cross-entropy relative to the unchanged model's.")] = 1.03,
    inner: Annotated[int, typer.Option(help="Inner width of the gates.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of weights, sample order and exit layers.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between states; an interrupted run goes on from one.")] = 50,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1. Default: a GPU if there is one.")] = None,
) -> None:
    """Train the gates of DyVTE for a frozen model, on its single-turn samples with one image."""
    from vtw_eval.train_gates import run

    try:
        summary = run(
            model,
            data,
            output,
            image_folder=image_folder,
            steps=steps,
            save_every=save_every,
            device=device,
            batch_size=batch_size,
            lr=lr,
            alpha=alpha,
            inner=inner,
            seed=seed,
        )
    except (ValueError, OSError) as error:
        typer.echo(f"vtw-eval train-dyvte: error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(summary)
