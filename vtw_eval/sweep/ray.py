"""The Ray executor: workers are actors on a cluster that shares the store's folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtw_eval.record.store import Store, StoreError, describe
from vtw_eval.sweep.bundles import Job
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import PlanError
from vtw_eval.sweep.schedule import Schedule, Watcher

_POLL = 1.0
"""Seconds between two looks at how far the actors are."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster in place of this machine."""

    address: str | None = None
    """As for ``ray.init``; None starts or finds one as Ray does."""
    num_gpus: float | None = None
    """GPUs per worker; None: one where the plan's device is a GPU."""
    retries: int = 2
    """How often a cell is tried again after its worker has died."""


class ActorBody:
    """What runs on a node: evaluates cells, keeps the last checkpoint.

    Parameters
    ----------
    root
        The store's folder, on a file system that all nodes share.
    settings
        Device and batch size.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        from vtw_eval.sweep.runner import CellRunner

        self.runner = CellRunner(Store(root), settings)

    def run(self, job: Job) -> None:
        """Evaluate a cell and keep it."""
        if not self.runner.store.index_file.is_file():
            raise StoreError(f"{self.runner.store.root} is not the sweep's folder on this node: it must be shared.")
        print(f"vtw-eval: process {os.getpid()} evaluates {describe(job.spec)}", flush=True)
        self.runner.run(job)


@dataclass
class _Worker:
    number: int
    actor: Any
    job: Job


def run_ray(
    jobs: Sequence[Job], store: Store, settings: Settings, workers: int, watcher: Watcher, cluster: Cluster
) -> None:
    """Evaluate cells on a Ray cluster and keep them in the store.

    Each worker is an actor that stays with a checkpoint as long as cells of it are left. A cell whose actor dies is
    tried again by another one.

    Parameters
    ----------
    jobs
        What to evaluate, in bundles.
    store
        Where it goes; the folder must be shared by all nodes.
    settings
        Device and batch size.
    workers
        Number of actors; those for which the cluster has no room wait.
    watcher
        Told what happens.
    cluster
        Address, GPUs per actor, retries.

    Raises
    ------
    PlanError
        If Ray is not installed, no cluster can be reached, or it lacks the GPUs.
    """
    try:
        import ray
    except ImportError:
        raise PlanError("--executor ray needs Ray: pip install 'vtw-eval[ray]'.") from None
    from vtw_eval.sweep.runner import failed_cell

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=cluster.address, log_to_driver=False)
        except ConnectionError as error:
            raise PlanError(f"no Ray cluster at {cluster.address}: {error}") from error
    try:
        if cluster.num_gpus is not None:
            gpus = cluster.num_gpus
        else:
            gpus = 0 if settings.device == "cpu" or not ray.cluster_resources().get("GPU") else 1
        room = ray.cluster_resources()
        if gpus > room.get("GPU", 0):
            raise PlanError(f"the cluster has {room.get('GPU', 0):g} GPUs, but a worker asks for {gpus:g}.")
        Body = ray.remote(num_cpus=1, num_gpus=gpus)(ActorBody)
        schedule = Schedule(jobs)
        tries: Counter[str] = Counter()
        running: dict[Any, _Worker] = {}
        root = store.root.resolve()

        def begin(worker: _Worker) -> None:
            tries[worker.job.spec.key] += 1
            watcher.started(worker.number, worker.job.spec, len(worker.job.others))
            running[worker.actor.run.remote(worker.job)] = worker

        def hire(number: int) -> None:
            job = schedule.take(None)
            if job is not None:
                begin(_Worker(number, Body.remote(root, settings), job))

        for number in range(workers):
            hire(number)
        while running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL)
            for reference in done:
                worker = running.pop(reference)
                spec = worker.job.spec
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    # Dead, or its folder is not ours. Either way another one takes the cell.
                    again = store.entry(spec).state != "done" and tries[spec.key] <= cluster.retries
                    schedule.lost(worker.job, again=again)
                    ray.kill(worker.actor)
                    if again:
                        reason = str(error).strip().splitlines()[0]
                        watcher.note(f"the worker of {describe(spec)} died: {reason}; again")
                    else:
                        if store.entry(spec).state != "done":
                            store.save(failed_cell(spec, f"{error}\n{tries[spec.key]} workers died at this cell"), [])
                        _report(store, worker, watcher)
                    hire(worker.number)
                    continue
                _report(store, worker, watcher)
                following = schedule.take(worker.job)
                if following is None:
                    ray.kill(worker.actor)
                else:
                    begin(_Worker(worker.number, worker.actor, following))
    finally:
        if ours:
            ray.shutdown()


def _report(store: Store, worker: _Worker, watcher: Watcher) -> None:
    entry = store.entry(worker.job.spec)
    if entry.cell is None:
        raise StoreError(
            f"{store.folder(worker.job.spec)} does not hold what the worker wrote ({entry.state}): is {store.root} "
            "shared by all nodes?"
        )
    watcher.finished(worker.number, entry.cell)
