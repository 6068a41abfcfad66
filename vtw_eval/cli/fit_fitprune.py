"""``vtw-eval fit-fitprune``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.cli.model_args import adapter_arguments
from vtw_eval.cli.progress import progress_bar
from vtw_eval.files import check_output, write_atomically
from vtw_eval.models.adapters import ADAPTERS


@app.command(
    epilog="Example: vtw-eval fit-fitprune --model-args pretrained=llava-hf/llava-1.5-7b-hf --task gqa -o recipe.json; "
    "then lmms_eval ... --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=fitprune,recipe=recipe.json"
)
def fit_fitprune(
    task: Annotated[list[str], typer.Option(help="Task of lmms-eval, or of ours, on whose questions. Repeatable.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Recipe to write (.json).")],
    model: Annotated[str, typer.Option(help=f"Adapter: one of {', '.join(ADAPTERS)}.")] = "llava_vtw",
    model_args: Annotated[
        str, typer.Option(help="Options of the adapter, as in lmms_eval --model_args; pretrained=... among them.")
    ] = "",
    samples: Annotated[int, typer.Option(min=1, help="First documents of each task. 66 as the authors take.")] = 66,
    reduction: Annotated[
        float, typer.Option(help="Share of what vision tokens cost in the decoder that shall go, above 0 and below 1.")
    ] = 0.6,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
) -> None:
    """Fit FitPrune's recipe, how many vision tokens leave after each layer, to a checkpoint's attention on a task.

    One pass of the unchanged model for each document; its prompts must have one number of vision tokens. Fit it on
    documents on which you do not evaluate.

    Exit status: 0; 1 if something could not be done, such as loading the dataset; 2 if the command cannot be carried
    out as it is written.
    """
    from vtw_eval.methods.fitprune import FitPrune
    from vtw_eval.methods.fitprune_fit import check_reduction
    from vtw_eval.model_adapters.lmms.collect import collect
    from vtw_eval.models.fitting import fit_recipe
    from vtw_eval.sweep.check import device_problem

    with user_errors("fit-fitprune", (ValueError, OSError, RuntimeError)):
        check_output(output)  # not after the fit
        check_reduction(reduction)
        if problem := device_problem(device):
            raise ValueError(problem)
        arguments = adapter_arguments("fit-fitprune", model_args, device, verify=False)
        runner, requests = collect(model, arguments, task, samples)
        with progress_bar() as progress:
            bar = progress.add_task("documents", total=len(requests))
            command = shlex.join(["vtw-eval", *sys.argv[1:]])
            recipe = fit_recipe(runner, requests, reduction, command=command, advance=lambda: progress.advance(bar))
        write_atomically(output, recipe.model_dump_json(indent=1) + "\n")
    typer.echo(
        f"{sum(recipe.deleted)} of {recipe.vision} vision tokens leave, {recipe.reduction:.1%} of what they cost, at "
        f"alpha={recipe.alpha:.3f}: {'-'.join(map(str, recipe.deleted))}\n"
        f"Use: {FitPrune(recipe=str(output))}"
    )
