"""Which cell comes next: workers stay with the checkpoint that they have loaded."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal, Protocol

from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.sweep.harness import ModelKey


class Watcher(Protocol):
    """Told what happens while cells are evaluated."""

    def planned(self, cells: int, done: int) -> None:
        """Hear how many cells belong to the sweep, and how many of them are done already."""

    def started(self, worker: int, spec: CellSpec) -> None:
        """Hear that a worker begins a cell."""

    def answered(self, worker: int, done: int, total: int) -> None:
        """Hear how many documents of its cell a worker has answered."""

    def finished(self, worker: int, cell: Cell) -> None:
        """Hear that a cell is in the store."""

    def note(self, message: str) -> None:
        """Hear something that a reader should know."""


class Schedule:
    """Hands out cells, each once.

    Parameters
    ----------
    cells
        The cells in the order of the plan.
    """

    def __init__(self, cells: Sequence[CellSpec]) -> None:
        self._left: dict[ModelKey, deque[CellSpec]] = {}
        for spec in cells:
            self._left.setdefault(ModelKey.of(spec), deque()).append(spec)
        self._busy: Counter[ModelKey] = Counter()

    def __bool__(self) -> bool:
        return any(self._left.values())

    def take(self, loaded: ModelKey | None) -> CellSpec | None:
        """Return the next cell for a worker, None if there is none.

        Parameters
        ----------
        loaded
            The checkpoint that the worker has; it is left only when none of its cells is left.
        """
        if loaded is not None and self._left.get(loaded):
            return self._left[loaded].popleft()
        if loaded is not None:
            self._busy[loaded] -= 1
        waiting = [key for key, cells in self._left.items() if cells]
        if not waiting:
            return None
        key = max(waiting, key=lambda key: len(self._left[key]) / (1 + self._busy[key]))
        self._busy[key] += 1
        return self._left[key].popleft()

    def lost(self, loaded: ModelKey) -> None:
        """Count out a worker that has died with this checkpoint."""
        self._busy[loaded] -= 1

    def again(self, spec: CellSpec) -> None:
        """Put a cell back, first in its line."""
        self._left[ModelKey.of(spec)].appendleft(spec)


def worker_count(asked: int | Literal["cores"], cells: int) -> int:
    """Return how many workers to start: as asked, but no more than there are cells."""
    return max(1, min(cells, cpu_cores() if asked == "cores" else asked))


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
