"""A sweep from its plan to the last cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.local import run_local
from vtw_eval.sweep.plan import Plan, select
from vtw_eval.sweep.schedule import Watcher, worker_count
from vtw_eval.sweep.store import Entry, Store, describe
from vtw_eval.sweep.tasks import resolve


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster in place of this machine."""

    address: str | None = None
    """As for ``ray.init``; None starts or finds one as Ray does."""
    num_gpus: float | None = None
    """GPUs per worker; None: one where the plan's device is a GPU."""
    retries: int = 2
    """How often a cell is tried again after its worker has died."""


def run_sweep(
    plan: Plan,
    root: Path,
    watcher: Watcher,
    *,
    only: Sequence[str] = (),
    cluster: Cluster | None = None,
    take_over: bool = False,
) -> list[Entry]:
    """Evaluate the cells of a plan that are not done yet, and return what the store then holds for them.

    Parameters
    ----------
    plan
        The plan.
    root
        Folder of the store.
    watcher
        Told what happens.
    only
        See :func:`vtw_eval.sweep.plan.select`.
    cluster
        Where to run, if not on this machine.
    take_over
        Whether the folder may hold another plan, see :meth:`vtw_eval.sweep.store.Store.create`.

    Raises
    ------
    PlanError
        For a plan that cannot be carried out.
    StoreError
        If the folder is in use, is that of another plan, or cannot be written to.
    """
    plan = resolve(plan)
    cells = select(plan.cells(), only)
    store = Store(root)
    with store.lock(watcher.note):
        store.create(plan, take_over=take_over)
        entries = [store.entry(spec) for spec in cells]
        for entry in entries:
            if entry.state in ("corrupt", "failed"):
                watcher.note(f"{describe(entry.spec)} is {entry.state} and runs again: {entry.problem}")
        todo = [entry.spec for entry in entries if entry.state != "done"]
        watcher.planned(len(cells), len(cells) - len(todo))
        if todo:
            settings = Settings(plan.device, plan.batch_size, plan.verify)
            workers = worker_count(plan.workers, len(todo))
            if cluster is None:
                run_local(todo, store, settings, workers, watcher)
            else:
                from vtw_eval.sweep.ray import run_ray

                run_ray(todo, store, settings, workers, watcher, cluster)
        return [store.entry(spec) for spec in cells]
