"""``vtw-eval train-dyvte``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.files import check_output


@app.command(
    epilog="Example: vtw-eval train-dyvte --model llava-hf/llava-1.5-7b-hf --data llava_v1_5_mix665k_1percent.json "
    "--image-folder images -o gates.safetensors"
)
def train_dyvte(
    model: Annotated[str, typer.Option(help="Checkpoint: Hub name or folder, or shapes. It stays as it is.")],
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
    """Train the gates of DyVTE for a frozen model, on its single-turn samples with one image.

    Exit status: 0; 1 if something could not be done, such as writing a file; 2 if the command cannot be carried out as
    it is written.
    """
    from safetensors import SafetensorError

    from vtw_eval.methods.dyvte.train import run
    from vtw_eval.sweep.check import device_problem

    with user_errors("train-dyvte", (ValueError, OSError, SafetensorError)):  # the last also for a full disk
        check_output(output)
        if problem := device_problem(device):
            raise ValueError(problem)
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
    typer.echo(summary)
