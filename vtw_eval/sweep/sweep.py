"""A sweep from its plan to the last cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vtw_eval.record.book import remove_books
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.store import Entry, Store, describe
from vtw_eval.sweep.bundles import book_name, jobs_of
from vtw_eval.sweep.check import check_cells
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.local import run_local
from vtw_eval.sweep.plan import Plan, PlanError, resolve, select
from vtw_eval.sweep.provenance import code_changed, inputs_changed, packages_changed
from vtw_eval.sweep.ray import Cluster, run_ray
from vtw_eval.sweep.schedule import Watcher, worker_count

Execute = Callable[[Sequence[CellSpec], Store, Settings, Watcher], None]
"""Evaluates cells and keeps them in a store."""


def run_sweep(
    plan: Plan,
    root: Path,
    watcher: Watcher,
    *,
    only: Sequence[str] = (),
    cluster: Cluster | None = None,
    take_over: bool = False,
    keep: bool = False,
    execute: Execute | None = None,
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
        Whether the folder may hold another plan, see :meth:`vtw_eval.record.store.Store.create`.
    keep
        Whether finished cells that other code of this project made stay as they are. Those whose checkpoint, gates or
        local data have changed run again in any case.
    execute
        Evaluates the cells that are left, in place of worker processes on this machine.

    Raises
    ------
    PlanError
        For a plan that cannot be carried out; nothing is written then.
    StoreError
        If the folder is in use, is that of another plan, or cannot be written to.
    """
    plan = resolve(plan)
    cells = select(plan.cells(), only)
    store = Store(root)
    settings = Settings(plan.device, plan.batch_size, plan.verify, plan.sharing)
    for line in plan.missed:
        watcher.note(f"not at its budget: {line}")
    with store.lock(watcher.note):
        entries = [store.entry(spec) for spec in cells]
        for entry in entries:
            if entry.state in ("corrupt", "failed"):
                watcher.note(f"{describe(entry.spec)} is {entry.state} and runs again: {entry.problem}")
        outdated = outdated_cells(entries, keep, watcher.note)
        todo = [entry.spec for entry in entries if entry.state != "done" or entry.spec.key in outdated]
        refuse_hopeless(todo, settings, watcher.note, elsewhere=cluster is not None)
        store.create(plan.index(), plan.text(), take_over=take_over)
        watcher.planned(len(cells), len(cells) - len(todo))
        if todo:
            workers = worker_count(plan.workers, len(todo))
            jobs = [] if execute is not None else jobs_of(cells, todo, settings, workers, watcher.note)
            if execute is not None:
                execute(todo, store, settings, watcher)
            elif cluster is None:
                run_local(jobs, store, settings, workers, watcher)
            else:
                run_ray(jobs, store, settings, workers, watcher, cluster)
        found = {spec.key: store.entry(spec) for spec in plan.cells()}
        remove_books(root, {book_name(entry.spec) for entry in found.values() if entry.state != "done"})
        return [found[spec.key] for spec in cells]


def refuse_hopeless(
    cells: Sequence[CellSpec],
    settings: Settings,
    note: Callable[[str], None],
    *,
    elsewhere: bool = False,
    planning: bool = False,
) -> None:
    """Raise ``PlanError`` with one line per reason for which cells cannot be evaluated, see :mod:`.check`.

    Parameters
    ----------
    cells
        Those to evaluate.
    settings
        Device.
    note
        Told what cannot be looked at from here.
    elsewhere, planning
        See :func:`vtw_eval.sweep.check.check_cells`.

    Raises
    ------
    PlanError
        If there is one.
    """
    found = check_cells(cells, settings, elsewhere=elsewhere, planning=planning)
    for finding in found:
        if not finding.fatal:
            note(f"not checked: {finding}")
    if fatal := [str(finding) for finding in found if finding.fatal]:
        raise PlanError("the plan cannot be carried out.\n" + "\n".join(fatal))


def outdated_cells(entries: Sequence[Entry], keep: bool, note: Callable[[str], None]) -> set[str]:
    """Return the keys of finished cells that must run again, and tell why; one line per reason.

    Parameters
    ----------
    entries
        What a store holds.
    keep
        See :func:`run_sweep`.
    note
        Told the reasons, also of cells that stay.
    """
    reasons: dict[tuple[str, bool], list[CellSpec]] = {}
    for cell in (entry.cell for entry in entries if entry.state == "done" and entry.cell is not None):
        if inputs := inputs_changed(cell):
            reasons.setdefault((f"what they read has changed ({', '.join(inputs)})", True), []).append(cell.spec)
        elif code := code_changed(cell):
            reasons.setdefault((f"made by other code: {', '.join(code)}", not keep), []).append(cell.spec)
        elif packages := packages_changed(cell):
            reasons.setdefault((f"made with {', '.join(packages)}", False), []).append(cell.spec)
    for (reason, again), specs in reasons.items():
        more = f" and {len(specs) - 1} more" if len(specs) > 1 else ""
        note(f"{describe(specs[0])}{more}: {reason}; {'run again' if again else 'kept as finished'}")
    return {spec.key for (_, again), specs in reasons.items() if again for spec in specs}
