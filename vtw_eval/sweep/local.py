"""The local executor: worker processes on this machine, each with one checkpoint at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vtw_eval.record.store import Store, StoreError
from vtw_eval.sweep.bundles import Job
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.schedule import Schedule, Watcher, cpu_cores

_REPORT_EVERY = 0.2
"""Seconds between two messages of a worker about its documents."""


@dataclass
class _Worker:
    number: int
    process: Any
    pipe: Connection
    job: Job


def run_local(jobs: Sequence[Job], store: Store, settings: Settings, workers: int, watcher: Watcher) -> None:
    """Evaluate cells in worker processes and keep them in the store.

    A worker that dies fails the cell that it was at; another takes its place. The workers' output goes to
    ``logs/worker-N.log`` in the store's folder.

    Parameters
    ----------
    jobs
        What to evaluate, in bundles.
    store
        Where it goes.
    settings
        Device and batch size.
    workers
        Number of processes.
    watcher
        Told what happens.
    """
    schedule = Schedule(jobs)
    with _Pool(store, settings, workers) as pool:
        for number in range(workers):
            _start(pool, schedule, number, watcher)
        while pool.workers:
            ready = wait([worker.pipe for worker in pool.workers.values()])
            for worker in [w for w in pool.workers.values() if w.pipe in ready]:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    _died(pool, schedule, worker, watcher)
                    continue
                if isinstance(message, tuple):
                    watcher.answered(worker.number, *message)
                else:
                    _report(store, worker, watcher)
                    _next(pool, schedule, worker, watcher)


def _start(pool: _Pool, schedule: Schedule, number: int, watcher: Watcher) -> None:
    job = schedule.take(None)
    if job is not None:
        pool.start(number, job)
        watcher.started(number, job.spec, len(job.others))


def _next(pool: _Pool, schedule: Schedule, worker: _Worker, watcher: Watcher) -> None:
    job = schedule.take(worker.job)
    if job is None:
        pool.dismiss(worker)
        return
    worker.job = job
    watcher.started(worker.number, job.spec, len(job.others))
    try:
        worker.pipe.send(job)
    except OSError:
        _died(pool, schedule, worker, watcher)


def _died(pool: _Pool, schedule: Schedule, worker: _Worker, watcher: Watcher) -> None:
    from vtw_eval.sweep.runner import failed_cell

    pool.dismiss(worker)
    spec = worker.job.spec
    if pool.store.entry(spec).state != "done":
        pool.store.save(failed_cell(spec, cause_of(worker.process.exitcode, pool.log(worker.number))), [])
    _report(pool.store, worker, watcher)
    schedule.lost(worker.job)
    _start(pool, schedule, worker.number, watcher)


def _report(store: Store, worker: _Worker, watcher: Watcher) -> None:
    entry = store.entry(worker.job.spec)
    if entry.cell is None:
        raise StoreError(f"{store.folder(worker.job.spec)} vanished or changed while the sweep ran: {entry.problem}")
    watcher.finished(worker.number, entry.cell)


def cause_of(code: int | None, log: Path) -> str:
    """Return what is told of a worker process that has ended at a cell with an exit code."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (memory ran out, or somebody killed it)" if -code == signal.SIGKILL else ""
        return f"the worker process was ended by {name}{hint} while it evaluated this cell; see {log}"
    return f"the worker process left with status {code} while it evaluated this cell; see {log}"


class _Pool:
    """Worker processes that end with this block, whatever ends it."""

    def __init__(self, store: Store, settings: Settings, size: int) -> None:
        self.store = store
        self.settings = settings
        self.threads = max(1, cpu_cores() // size)
        self.size = size
        self.workers: dict[int, _Worker] = {}
        self._context = multiprocessing.get_context("spawn")
        (store.root / "logs").mkdir(parents=True, exist_ok=True)

    def log(self, number: int) -> Path:
        """Return the file that holds a worker's output."""
        return self.store.root / "logs" / f"worker-{number}.log"

    def start(self, number: int, job: Job) -> None:
        """Start a worker with its first job."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, self.store.root, self.settings, number, self.size, self.threads, self.log(number)),
            name=f"vtw-eval sweep worker {number}",
        )
        process.start()
        theirs.close()
        ours.send(job)
        self.workers[number] = _Worker(number, process, ours, job)

    def dismiss(self, worker: _Worker) -> None:
        """Take leave of a worker that is dead or has nothing more to do."""
        worker.pipe.close()
        worker.process.join()
        del self.workers[worker.number]

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers.values():
            worker.process.terminate()
        for worker in self.workers.values():
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, root: Path, settings: Settings, number: int, size: int, threads: int, log: Path) -> None:
    """Body of a worker: do the jobs that come through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    threading.Thread(target=end_with_parent, daemon=True).start()
    output_to(log)
    import torch

    from vtw_eval.sweep.runner import CellRunner

    torch.set_num_threads(min(torch.get_num_threads(), threads))
    if size > 1 and settings.device in (None, "cuda") and torch.cuda.is_available():
        settings = replace(settings, device=f"cuda:{number % torch.cuda.device_count()}")
    runner = CellRunner(Store(root), settings)
    last = 0.0

    def progress(answered: int, of: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _REPORT_EVERY or answered == of:
            last = now
            pipe.send((answered, of))

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        print(f"--- {job.spec.model} {job.spec.method} {job.spec.task}", flush=True)
        runner.run(job, progress)
        pipe.send("finished")


def end_with_parent() -> None:
    """Leave as soon as the parent is gone, so that a killed sweep writes nothing more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def output_to(log: Path) -> None:
    """Send what this process prints, also from C code, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
