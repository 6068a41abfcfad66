"""Which cell comes next: workers stay with the checkpoint that they have loaded."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal, Protocol

from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.sweep.bundles import Job
from vtw_eval.sweep.harness import ModelKey


class Watcher(Protocol):
    """Told what happens while cells are evaluated."""

    def planned(self, cells: int, done: int) -> None:
        """Hear how many cells belong to the sweep, and how many of them are done already."""

    def started(self, worker: int, spec: CellSpec, others: int = 0) -> None:
        """Hear that a worker begins a cell, and for how many others it answers by the way."""

    def answered(self, worker: int, done: int, total: int) -> None:
        """Hear how many documents of its cell a worker has answered."""

    def finished(self, worker: int, cell: Cell) -> None:
        """Hear that a cell is in the store."""

    def note(self, message: str) -> None:
        """Hear something that a reader should know."""


class Schedule:
    """Hands out jobs, each cell once; a worker gets all cells of a bundle, one after the other.

    Parameters
    ----------
    jobs
        Bundles in the order of the plan, each as the job that comes first.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left: dict[ModelKey, deque[Job]] = {}
        for job in jobs:
            self._left.setdefault(ModelKey.of(job.spec), deque()).append(job)
        self._busy: Counter[ModelKey] = Counter()

    def __bool__(self) -> bool:
        return any(self._left.values())

    def take(self, last: Job | None) -> Job | None:
        """Return the next job for a worker, None if there is none.

        Parameters
        ----------
        last
            What the worker has done. Its checkpoint is left only when none of its cells is left.
        """
        if last is not None and (following := last.following):
            return following
        loaded = None if last is None else ModelKey.of(last.spec)
        if loaded is not None and self._left.get(loaded):
            return self._left[loaded].popleft()
        if loaded is not None:
            self._busy[loaded] -= 1
        waiting = [key for key, jobs in self._left.items() if jobs]
        if not waiting:
            return None
        key = max(waiting, key=lambda key: sum(job.cells for job in self._left[key]) / (1 + self._busy[key]))
        self._busy[key] += 1
        return self._left[key].popleft()

    def lost(self, job: Job, *, again: bool = False) -> None:
        """Count out a worker that has died at a job, and put back what it would have done next.

        Each of these cells is answered alone from now on, since what has killed the worker may be a method of another.

        Parameters
        ----------
        job
            What it was at.
        again
            Whether that cell comes back, too, first in its line.
        """
        key = ModelKey.of(job.spec)
        self._busy[key] -= 1
        back = (*((job.spec,) if again else ()), *job.others)
        self._left[key].extendleft(Job(spec, (), job.book) for spec in reversed(back))


def worker_count(asked: int | Literal["cores"], cells: int) -> int:
    """Return how many workers to start: as asked, but no more than there are cells."""
    return max(1, min(cells, cpu_cores() if asked == "cores" else asked))


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
