"""``vtw-eval sweep``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vtw_eval.cli.app import app, user_errors

if TYPE_CHECKING:
    from vtw_eval.sweep.plan import Plan
    from vtw_eval.sweep.ray import Cluster


@app.command(
    epilog="Example: vtw-eval sweep shapes --limit 40 -o runs/shapes; then vtw-eval sweep --status runs/shapes"
)
def sweep(
    plan: Annotated[str | None, typer.Argument(help="A plan (YAML), or a preset: shapes, vtw-table2, ...")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results; an unfinished sweep in it goes on.")
    ] = None,
    status: Annotated[Path | None, typer.Option(help="Show what the sweep in this folder has done, and end.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the cells with estimated FLOPs, check models, methods and device, and end."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="First documents of each task only.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Cells whose model, method, task or MODEL/METHOD/TASK matches this glob; repeatable."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time. Default: the plan's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ... Default: the plan's, or a GPU if there is one.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Documents per forward. Default: the plan's.")] = None,
    sharing: Annotated[
        Literal["auto", "off"] | None,
        typer.Option(
            help="auto: methods answer together while an image is at hand; off: each prompt is computed for itself, "
            "which takes longer and gives latencies. Default: the plan's, or auto.",
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes on this machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="With ray: the cluster, as for ray.init.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0, help="With ray: GPUs per worker.")] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare methods with masked attention first; the results say so."),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Do not run finished cells again that other code of this project made; they are named. Default: they "
            "run again, so that all results are of one code.",
        ),
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Replace the plan of the folder, though finished cells of it are none of this plan's. They stay on "
            "disk, and count again when a plan has them.",
        ),
    ] = False,
) -> None:
    """Evaluate models with methods on tasks; what is finished is not run again.

    Each cell (one model, method and task) is kept as soon as it is done. A cell that fails is kept with its traceback
    and tried again at the next start. A finished cell runs again if its checkpoint, its gates or its local data have
    changed since, or if other code of this project made it (see --keep); cells made with other versions of torch,
    transformers or the harness are named and kept.

    Exit status: 0 if every cell is done; 1 if a cell failed, or the folder cannot be used; 2 if the plan or the command
    line cannot be carried out as it is written; 130 after Ctrl-C.
    """
    from vtw_eval.importing import HarnessImportError
    from vtw_eval.record.curves import curve_folders
    from vtw_eval.record.store import Store, StoreError
    from vtw_eval.sweep.curves import curve_plans
    from vtw_eval.sweep.display import dry_run_table, status_table
    from vtw_eval.sweep.harness import Settings
    from vtw_eval.sweep.plan import PlanError, find_plan, read_plan, resolve, select
    from vtw_eval.sweep.ray import Cluster
    from vtw_eval.sweep.sweep import outdated_cells, refuse_hopeless

    with user_errors("sweep", (PlanError, StoreError, HarnessImportError, OSError)):
        if status is not None:
            typer.echo(status_table(Store(status)))
            for folder in curve_folders(status):
                typer.echo(f"\nCurve {folder.name}:\n{status_table(Store(folder))}")
            outdated_cells(Store(status).entries(), keep, lambda reason: typer.echo(f"next start: {reason}"))
            return
        if plan is None:
            raise PlanError("name a plan or a preset, or --status FOLDER; vtw-eval sweep --help shows an example.")
        changes: dict[str, Any] = {"limit": limit, "workers": workers, "device": device, "batch_size": batch_size}
        changes |= {"verify": False if no_verify else None, "sharing": sharing}
        chosen = read_plan(find_plan(plan)).changed(**{k: v for k, v in changes.items() if v is not None})
        if dry_run:
            resolved = resolve(chosen)
            cells = select(resolved.cells(), only or [])
            typer.echo(dry_run_table(cells))
            for name, curve in curve_plans(resolved).items():
                typer.echo(f"curve {name}: {len(curve.cells())} cells, answered at once: {', '.join(curve.tasks)}")
            for line in resolved.missed:
                typer.echo(f"not at its budget: {line}")
            settings, told = Settings(chosen.device, chosen.batch_size, chosen.verify), partial(typer.echo, err=True)
            refuse_hopeless(cells, settings, told, elsewhere=executor == "ray", planning=True)
            return
        if output is None:
            raise PlanError("where to? Give a folder with -o.")
        if executor == "local" and (address is not None or num_gpus is not None):
            raise PlanError("--address and --num-gpus belong to --executor ray.")
        cluster = Cluster(address, num_gpus) if executor == "ray" else None
        _run(chosen, output, cluster, only=only or [], take_over=take_over, keep=keep)


def _run(plan: Plan, output: Path, cluster: Cluster | None, **how: Any) -> None:
    from rich.console import Console

    from vtw_eval.record.store import describe
    from vtw_eval.sweep.curves import run_plan
    from vtw_eval.sweep.display import Display

    display = Display(Console(stderr=True))
    try:
        with display:
            entries = run_plan(plan, output, display, cluster=cluster, **how)
    except KeyboardInterrupt:
        typer.echo(f"vtw-eval sweep: interrupted; what is done stays in {output}, the same command goes on.", err=True)
        raise typer.Exit(130) from None
    bad = [entry for entry in entries if entry.state != "done"]
    typer.echo(f"{len(entries) - len(bad)} of {len(entries)} cells done, in {output}")
    causes: dict[tuple[str, str], list[str]] = {}
    for entry in bad:
        causes.setdefault((entry.state, entry.problem), []).append(describe(entry.spec))
    for (state, problem), cells in causes.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        typer.echo(f"{state}: {cells[0]}{more}: {problem}", err=True)
    if bad:
        raise typer.Exit(1)
