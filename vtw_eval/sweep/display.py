"""What a reader sees while a sweep runs: bars on a terminal, one line per cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vtw_eval.papers.benchmarks import BENCHMARKS
from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.record.store import Entry, Store, describe
from vtw_eval.sweep.estimate import TEXT_TOKENS, estimate
from vtw_eval.tables import Table, plain


class Display:
    """A :class:`vtw_eval.sweep.schedule.Watcher` for people.

    Parameters
    ----------
    console
        Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.cells = 0
        self.done = 0
        self._fresh = 0
        self._ahead: dict[int, int] = {}
        """By worker: cells that it has answered for, and that come next."""
        self._at: dict[int, int] = {}
        """By worker: cells that it is answering for."""
        self._start = time.monotonic()
        self._bars: dict[int, TaskID] = {}
        self._told: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("cells", total=None)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def planned(self, cells: int, done: int) -> None:
        """Show how much there is to do."""
        self.cells, self.done = cells, done
        self._start = time.monotonic()
        self._progress.reset(self._all, total=cells, completed=done)
        if done:
            self._print(f"{done} of {cells} cells are done already")

    def started(self, worker: int, spec: CellSpec, others: int = 0) -> None:
        """Show what a worker is at."""
        if worker not in self._bars:
            self._bars[worker] = self._progress.add_task("", total=None)
        served = self._ahead.get(worker, 0) == others + 1
        self._at[worker] = 0 if served else 1 + others
        self._ahead[worker] = others
        more = "" if served or not others else f" and {others} more methods"
        self._progress.reset(self._bars[worker], description=describe(spec) + more, total=None)

    def answered(self, worker: int, done: int, total: int) -> None:
        """Show how far it is."""
        self._progress.update(self._bars[worker], completed=done, total=total)

    def finished(self, worker: int, cell: Cell) -> None:
        """Print the outcome of a cell."""
        self.done += 1
        self._fresh += self._at.pop(worker, 1)
        self._progress.update(self._all, completed=self.done)
        ahead = sum(self._ahead.values())
        left = (time.monotonic() - self._start) / max(self._fresh, 1) * max(self.cells - self.done - ahead, 0)
        eta = "" if self.console.is_terminal or not self.cells - self.done else f"; {left:.0f} s left"
        if cell.status == "failed":
            lines = cell.error.strip().splitlines() or ["no message"]
            again = lines[-1] in self._told  # once is enough, a cause may cost many cells
            outcome = "[red]failed[/red]" + (", as above" if again else f": {escape(lines[-1])}")
            self._told.add(lines[-1])
        else:
            outcome = escape(headline(cell))
        self._print(
            f"\\[{self.done}/{self.cells}] {escape(describe(cell.spec))}: {outcome} ({cell.seconds:.1f} s{eta})"
        )
        if noted := cell.environment.get("media"):
            self.note(f"media: {noted}")

    def note(self, message: str) -> None:
        """Print a warning."""
        self._print(f"[yellow]note[/yellow]: {escape(message)}")

    def _print(self, markup: str) -> None:
        self.console.print(markup, highlight=False, soft_wrap=True)


def main_metric(cell: Cell) -> str:
    """Return the metric that the papers print of a cell's task; the first one of other tasks."""
    task = cell.spec.task.removeprefix("shapes_").removeprefix("boards_")
    scores = [score for benchmark in BENCHMARKS for score in (benchmark.lmms, benchmark.kit) if score]
    printed = [name for score in scores if score.name == task for name in score.metrics if name in cell.metrics]
    return printed[0] if printed else next(iter(cell.metrics), "")


def headline(cell: Cell) -> str:
    """Return the metrics of a cell in one line, shares in percent; those without a value are named."""
    told = [f"{name} {value:.2f}" for name, metric in cell.metrics.items() for value in [metric.shown]]
    return ", ".join([*told, *(f"{name} undefined ({instead})" for name, instead in cell.undefined.items())])


def dry_run_table(cells: Sequence[CellSpec]) -> str:
    """Return a table of cells, one line per model and method, with estimated FLOPs of a document's prefill."""
    rows = []
    for (model, pretrained, method), own in _by_method(cells).items():
        cost = estimate(own[0])
        flops, share = ("unknown", "") if cost is None else (_flops(cost.flops), f"{cost.share:.1%}")
        rows.append([model, pretrained, method, str(len(own)), flops, share])
    first = cells[0]
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    table = plain(Table(["model", "checkpoint", "method", "cells", "FLOPs", "of baseline"], rows, words=3))
    documents = "all documents" if first.limit is None else f"the first {first.limit} documents"
    return (
        f"{table}\n\n{len(cells)} cells on {len(tasks)} tasks ({first.harness}, {documents} each): {', '.join(tasks)}\n"
        f"FLOPs: prefill of a prompt with one image (or video) and {TEXT_TOKENS} text tokens (embedded models: as many "
        "as in their tasks), as the papers count them (`vtw-eval cost --help`)."
    )


def status_table(store: Store) -> str:
    """Return a table of what a store holds: the first metric of each cell, or why there is none."""
    index = store.index
    entries = {entry.spec.key: entry for entry in store.entries()}
    specs = [entry.spec for entry in entries.values()]
    tasks = list(dict.fromkeys(spec.task for spec in specs))
    rows = []
    for (model, _, method), own in _by_method(specs).items():
        by_task = {spec.task: entries[spec.key] for spec in own}
        rows.append([model, method, *(_short(by_task[task]) if task in by_task else "" for task in tasks)])
    counts = {
        state: sum(entry.state == state for entry in entries.values())
        for state in ("done", "failed", "corrupt", "missing")
    }
    lines = [
        plain(Table(["model", "method", *tasks], rows, words=2)),
        "",
        f"{index.title or store.root}: {len(entries)} cells, "
        + ", ".join(f"{number} {state}" for state, number in counts.items() if number),
    ]
    wrong = [entry for entry in entries.values() if entry.state in ("failed", "corrupt")]
    lines += [f"{entry.state}: {describe(entry.spec)}: {entry.problem}" for entry in wrong]
    return "\n".join(lines)


def _by_method(cells: Sequence[CellSpec]) -> dict[tuple[str, str, str], list[CellSpec]]:
    found: dict[tuple[str, str, str], list[CellSpec]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.pretrained, cell.method), []).append(cell)
    return found


def _short(entry: Entry) -> str:
    if entry.cell is None or not entry.cell.metrics:
        return {"missing": "-", "done": "undefined"}.get(entry.state, entry.state)
    metric = entry.cell.metrics[main_metric(entry.cell)]
    return f"{metric.shown:.2f}"


def _flops(value: float) -> str:
    return f"{value / 1e12:.2f} T" if value >= 1e10 else f"{value / 1e9:.3f} G"
