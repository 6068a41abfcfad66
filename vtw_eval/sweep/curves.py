"""Curves of a plan: VTW at every k as a sweep of its own in the folder of the sweep, in one process for each."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vtw_eval.checkpoints import checkpoint
from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.record.curves import FOLDER
from vtw_eval.record.store import Entry, Store, describe
from vtw_eval.sweep.curve_entry import CurveEntry
from vtw_eval.sweep.harness import Settings, find_harness
from vtw_eval.sweep.local import cause_of, end_with_parent, output_to
from vtw_eval.sweep.plan import Plan, PlanError, parse_plan, resolve
from vtw_eval.sweep.ray import Cluster
from vtw_eval.sweep.runner import failed_cell
from vtw_eval.sweep.schedule import Watcher
from vtw_eval.sweep.sweep import run_sweep

_REPORT_EVERY = 0.2
"""Seconds between two messages about documents."""


@runtime_checkable
class CurveHarness(Protocol):
    """A harness that can ask for all k at once."""

    def execute_curve(self, cells: Sequence[CellSpec], store: Store, settings: Settings, watcher: Watcher) -> None:
        """Evaluate cells of one checkpoint, the unchanged model and VTW at several k, in this process; keep them."""


def run_plan(
    plan: Plan,
    root: Path,
    watcher: Watcher,
    *,
    only: Sequence[str] = (),
    cluster: Cluster | None = None,
    take_over: bool = False,
    keep: bool = False,
) -> list[Entry]:
    """Evaluate the cells of a plan, and then its curves; parameters as of :func:`vtw_eval.sweep.sweep.run_sweep`.

    Curves run on this machine, one after another, each in a process of its own; with ``only`` they are left out.

    Returns
    -------
    list of Entry
        What the stores hold of the plan's cells, then of each curve's.

    Raises
    ------
    PlanError
        For a plan that cannot be carried out, its curves too; nothing is written then.
    StoreError
        If the folder is in use, is that of another plan, or cannot be written to.
    """
    curves = curve_plans(resolve(plan)) if plan.curves and not only else {}
    entries = run_sweep(plan, root, watcher, only=only, cluster=cluster, take_over=take_over, keep=keep)
    if plan.curves and only:
        watcher.note("the curves of the plan are left out: --only names cells")
    if curves and cluster is not None:
        watcher.note("curves run on this machine, not on the cluster")
    for name, curve in curves.items():
        execute = partial(execute_apart, plan.harness)
        entries += run_sweep(curve, root / FOLDER / name, watcher, take_over=take_over, keep=keep, execute=execute)
    return entries


def curve_plans(plan: Plan) -> dict[str, Plan]:
    """Return the plan of each curve by the name of its folder.

    Parameters
    ----------
    plan
        With single tasks, see :func:`vtw_eval.sweep.plan.resolve`.

    Raises
    ------
    PlanError
        If the harness knows no curves, or a k is impossible.
    """
    if plan.curves and not isinstance(find_harness(plan.harness), CurveHarness):
        raise PlanError(f"curves: {plan.harness} cannot ask for all k at once; lmms-eval can.")
    return {_folder(entry.model): _plan_of(plan, entry) for entry in plan.curves}


def _plan_of(plan: Plan, entry: CurveEntry) -> Plan:
    model = next(model for model in plan.models if model.name == entry.model)
    tasks = plan.tasks if entry.tasks is None else find_harness(plan.harness).expand(entry.tasks)
    try:
        return curve_plan_of(
            {**model.model_dump(), "methods": None},
            tasks,
            entry.k,
            harness=plan.harness,
            limit=plan.limit,
            batch_size=plan.batch_size,
            verify=plan.verify,
            sharing=plan.sharing,
            device=plan.device,
            dtype=plan.dtype,
        )
    except PlanError as error:
        raise PlanError(f"curves, {entry.model}: {error}") from None


def curve_plan_of(model: Mapping[str, Any], tasks: Sequence[str], ks: Sequence[int] | None, **options: Any) -> Plan:
    """Return the plan of a curve: the unchanged model and VTW at each k.

    Parameters
    ----------
    model
        Entry of a plan.
    tasks
        Tasks.
    ks
        Numbers of layers that see the image; None takes all below the number of layers.
    options
        Further keys of the plan.

    Raises
    ------
    PlanError
        If something of it is not possible.
    """
    layers = num_layers(str(model["pretrained"]), model["args"])
    chosen = sorted(set(range(layers) if ks is None else ks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= layers:
        raise PlanError(
            f"k={','.join(map(str, chosen))}: k is a number of layers from 0 to {layers - 1}; the unchanged "
            f"model, which is k={layers} here, is there in any case."
        )
    content = {
        "title": f"VTW by k on {', '.join(tasks)}",
        "models": [dict(model)],
        "methods": ["baseline", *(f"vtw,k={k}" for k in chosen)],
        "tasks": list(tasks),
        **options,
    }
    return parse_plan(content, "curve")


def num_layers(pretrained: str, args: Mapping[str, Any]) -> int:
    """Return the number of decoder layers of a checkpoint, by its config.

    Parameters
    ----------
    pretrained
        Hub id or folder, or ``shapes``.
    args
        Options of the adapter.

    Raises
    ------
    PlanError
        If it has no config that can be read.
    """
    from transformers import AutoConfig

    revision, trusted = str(args.get("revision", "main")), args.get("trust_remote_code") in (True, "True", "true")
    try:
        config = AutoConfig.from_pretrained(checkpoint(pretrained), revision=revision, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise PlanError(f"{pretrained} has no config that can be read: {' '.join(str(error).split())}") from None
    text = getattr(config, "llm_config", None) or config.get_text_config(decoder=True)
    return int(text.num_hidden_layers)


def execute_apart(harness: str, cells: Sequence[CellSpec], store: Store, settings: Settings, watcher: Watcher) -> None:
    """Evaluate cells of a curve in a process of their own, and tell a watcher here what it tells there.

    Parameters
    ----------
    harness
        Name of a :class:`CurveHarness`.
    cells, store, settings, watcher
        See :data:`vtw_eval.sweep.sweep.Execute`. If the process dies, cells that it has not finished are kept as
        failed.
    """
    log = store.root / "logs" / "curve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    given = (theirs, harness, list(cells), store.root, settings, log)
    process = context.Process(target=_work, args=given, name="vtw-eval sweep curve")
    process.start()
    theirs.close()
    try:
        while True:
            try:
                name, given_ = ours.recv()
            except (EOFError, OSError):
                break
            getattr(watcher, name)(*given_)
        process.join()
    finally:
        process.terminate()
        process.join(5)
        process.kill()
        process.join()
    if process.exitcode:
        for spec in cells:
            if store.entry(spec).state not in ("done", "failed"):
                watcher.finished(0, store.save(failed_cell(spec, cause_of(process.exitcode, log)), []))


class _Piped:
    """A watcher that hands on what it hears."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last = 0.0

    def planned(self, cells: int, done: int) -> None:
        self._pipe.send(("planned", (cells, done)))

    def started(self, worker: int, spec: CellSpec, others: int = 0) -> None:
        self._pipe.send(("started", (worker, spec, others)))

    def answered(self, worker: int, done: int, total: int) -> None:
        if (now := time.monotonic()) - self._last >= _REPORT_EVERY or done == total:
            self._last = now
            self._pipe.send(("answered", (worker, done, total)))

    def finished(self, worker: int, cell: Cell) -> None:
        self._pipe.send(("finished", (worker, cell)))

    def note(self, message: str) -> None:
        self._pipe.send(("note", (message,)))


def _work(pipe: Connection, harness: str, cells: Sequence[CellSpec], root: Path, settings: Settings, log: Path) -> None:
    """Body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    threading.Thread(target=end_with_parent, daemon=True).start()
    output_to(log)
    plug = find_harness(harness)
    assert isinstance(plug, CurveHarness)
    print(f"--- curve of {describe(cells[0])} and {len(cells) - 1} more cells", flush=True)
    plug.execute_curve(cells, Store(root), settings, _Piped(pipe))


def _folder(model: str) -> str:
    """Return a name that a folder can have; a hash follows where it is another one than the model's."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")[:60]
    return plain if plain == model else f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:6]}".lstrip("-")
