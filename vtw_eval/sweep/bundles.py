"""Cells that differ in their method only: one of them answers for all while an image is at hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vtw_eval.record.book import Book, Together, book_folder
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.store import Store
from vtw_eval.sweep.harness import Settings, find_harness
from vtw_eval.sweep.provenance import fingerprint


@dataclass(frozen=True)
class Job:
    """A cell to evaluate, and those of its bundle that come after it."""

    spec: CellSpec
    others: tuple[CellSpec, ...] = ()
    """What the worker does next; their answers are made with those of this cell, where that can be."""
    book: str = ""
    """Name of the bundle's answer book; empty for a cell that is evaluated for itself."""

    @property
    def cells(self) -> int:
        """Number of cells that are to be done."""
        return 1 + len(self.others)

    @property
    def following(self) -> Job | None:
        """What comes next."""
        return Job(self.others[0], self.others[1:], self.book) if self.others else None


def book_name(spec: CellSpec) -> str:
    """Return the name of a cell's bundle: a hash of what it is but for its method, its seed and what tables call it.

    Cells of other seeds belong to it, since answers are found by what is asked, not by the number of a document.
    """
    about = spec.model_dump(mode="json", exclude={"model", "method", "seed"})
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(
    cells: Sequence[CellSpec], todo: Sequence[CellSpec], settings: Settings, workers: int, note: Callable[[str], None]
) -> list[Job]:
    """Return cells in bundles.

    Parameters
    ----------
    cells
        All cells of the sweep. Whether a cell belongs to a bundle does not depend on which of them are done already,
        so that results of an interrupted sweep are the same.
    todo
        Those to evaluate.
    settings
        ``sharing="off"``: each for itself.
    workers
        How many of them will work at a time; bundles are divided where there would be too few.
    note
        Told which harness cannot answer for several methods, and why.
    """
    sizes: dict[str, int] = {}
    for spec in cells:
        sizes[book_name(spec)] = sizes.get(book_name(spec), 0) + 1
    apart = {name: why_apart(name) for name in dict.fromkeys(spec.harness for spec in cells)}
    jobs: list[Job] = []
    bundles: dict[str, list[CellSpec]] = {}
    for spec in todo:
        shares = settings.sharing == "auto" and spec.model_args.get("sharing", "auto") == "auto"
        name = book_name(spec) if shares and not apart[spec.harness] and sizes[book_name(spec)] > 1 else ""
        bundles.setdefault(name or spec.key, []).append(spec)
    parts = math.ceil(workers / len(bundles)) if bundles else 1
    for name, own in bundles.items():
        size = math.ceil(len(own) / parts)
        for start in range(0, len(own), size):
            first, *others = own[start : start + size]
            jobs.append(Job(first, tuple(others), "" if name == first.key else name))
    for name, reason in apart.items():
        if reason and settings.sharing == "auto" and any(sizes[book_name(s)] > 1 for s in todo if s.harness == name):
            note(f"each cell is evaluated for itself: {reason}")
    return jobs


def why_apart(harness: str) -> str:
    """Return why a harness cannot answer for several methods at once; empty if it can."""
    # Plugs that were made before there were bundles do not say anything.
    return str(getattr(find_harness(harness), "apart", f"{harness} asks for one method at a time"))


def together(job: Job, store: Store, read: Mapping[str, str], known: Book | None) -> Together | None:
    """Return what a cell is told of its bundle, None if it is evaluated for itself.

    Parameters
    ----------
    job
        The cell.
    store
        Where its book is.
    read
        Digest of the checkpoint as it was opened.
    known
        The book of the last cell, which need not be read again if it is the same.
    """
    if not job.book:
        return None
    folder = book_folder(store.root, job.book)
    book = known if known is not None and known.folder == folder else Book(folder)
    methods = {job.spec.method: fingerprint(job.spec, read)}
    for spec in job.others:
        with suppress(ValueError, OSError):  # its own cell tells what is wrong with a method
            methods.setdefault(spec.method, fingerprint(spec, read))
    return Together(book, methods, job.spec.seed)
