"""``vtw-eval curve``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.cli.layers import numbers_of_layers
from vtw_eval.files import write_files
from vtw_eval.models.adapters import ADAPTERS


@app.command(
    epilog="Examples: vtw-eval curve --model-args pretrained=shapes --task shapes_vqa -o runs/curve; "
    "vtw-eval curve --model llava_vtw --model-args pretrained=llava-hf/llava-1.5-7b-hf --task pope --k 4,8,12,16 "
    "--limit 500 -o runs/pope"
)
def curve(
    model_args: Annotated[
        str, typer.Option(help="Options of the adapter, as in lmms_eval --model_args; pretrained=... among them.")
    ],
    task: Annotated[list[str], typer.Option(help="Task of lmms-eval, or of ours. Repeatable.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; an unfinished curve in it goes on.")
    ],
    model: Annotated[str, typer.Option(help=f"One of {', '.join(ADAPTERS)}.")] = "llava_vtw",
    k: Annotated[
        str | None, typer.Option(help="Numbers of layers that see the image, such as 0,4,8. Default: all.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First documents of each task only.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time, with all their questions. Halved when memory runs out.")
    ] = 8,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare VTW with masked attention first; the results say so."),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Do not run finished cells again that other code of this project made.")
    ] = False,
) -> None:
    """Score VTW at every k, for about the price of one evaluation: what is common to all k is computed once.

    The answers are those of one run per k. Each k is scored by the task's own metric, with intervals and paired
    differences to the unchanged model, beside the KL of the first word; the folder holds curve.md, curve.csv,
    curve.png and curve.svg, and the cells of a sweep, which vtw-eval report and choose read.

    Where a model does not allow it (FlashAttention, sliding windows, remote code, a repetition penalty) each k is run
    for itself, and a note says so.

    Exit status: 0 if every k is done; 1 if one failed, or the folder cannot be used; 2 if the command cannot be carried
    out as it is written; 130 after Ctrl-C.
    """
    from rich.console import Console

    from vtw_eval.importing import HarnessImportError
    from vtw_eval.model_adapters.lmms.curve import curve_plan, run_curve
    from vtw_eval.record.store import StoreError, describe
    from vtw_eval.report.curve import NAME, curve_files
    from vtw_eval.report.errors import ReportError
    from vtw_eval.sweep.display import Display
    from vtw_eval.sweep.plan import PlanError, resolve
    from vtw_eval.versions import UpstreamChangedError

    kinds = (PlanError, StoreError, HarnessImportError, UpstreamChangedError, ReportError, OSError, ValueError)
    with user_errors("curve", kinds):
        ks, verify = numbers_of_layers(k), not no_verify
        plan = resolve(
            curve_plan(model, model_args, task, ks, limit=limit, batch_size=batch_size, device=device, verify=verify)
        )
        log = output / "logs" / "curve.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _output_to(log) as terminal, Display(Console(file=terminal)) as display:
                entries = run_curve(plan, output, display, keep=keep)
        except KeyboardInterrupt:
            typer.echo(f"vtw-eval curve: interrupted; the same command goes on in {output}.", err=True)
            raise typer.Exit(130) from None
    bad = [entry for entry in entries if entry.state != "done"]
    for entry in bad:
        typer.echo(f"{entry.state}: {describe(entry.spec)}: {entry.problem}", err=True)
    if len(bad) < len(entries):
        with user_errors("curve", kinds):
            made = curve_files(output, shlex.join(["vtw-eval", *sys.argv[1:]]))
            write_files(output, made)
            typer.echo(next(part for part in made[f"{NAME}.md"].decode().split("\n\n") if part.startswith("|")))
            typer.echo(f"\nIn {output}: {', '.join(made)}")
    if bad:
        raise typer.Exit(1)


@contextmanager
def _output_to(log: Path) -> Iterator[TextIO]:
    """Send what is printed within, also from C code, to a file; yield what still writes to the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with os.fdopen(os.dup(before[1]), "w") as terminal:
            yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), before, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
