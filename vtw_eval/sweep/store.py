"""Where cells are kept: one folder per cell, written at once or not at all, believed only when whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vtw_eval.sweep.cell import Cell, CellSpec, Sample
from vtw_eval.sweep.plan import Plan, PlanError, read_plan, write_plan

_TEMPORARY = ".tmp-"
State = Literal["done", "failed", "missing", "corrupt"]


class StoreError(RuntimeError):
    """A folder that cannot be used as a store; the message says why."""


class CorruptError(StoreError):
    """Files of a cell that are not as they were written."""


@dataclass(frozen=True)
class Entry:
    """What the store holds for one cell of the plan."""

    spec: CellSpec
    state: State
    cell: Cell | None = None
    """Of a cell that is done or failed."""
    problem: str = ""
    """Why a cell is failed or corrupt, in one line."""


class Store:
    """The folder of a sweep: ``plan.yaml`` and ``cells/<key>/{cell.json,samples.jsonl}``.

    Parameters
    ----------
    root
        The folder; it need not exist before :meth:`create`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @property
    def plan_file(self) -> Path:
        """The plan as it was run, groups of tasks written out."""
        return self.root / "plan.yaml"

    @property
    def plan(self) -> Plan:
        """The plan of this sweep.

        Raises
        ------
        StoreError
            If the folder holds none, or none that can be read.
        """
        if not self.plan_file.is_file():
            raise StoreError(f"{self.root} holds no sweep: there is no {self.plan_file.name} in it.")
        try:
            return read_plan(self.plan_file)
        except PlanError as error:
            raise StoreError(str(error)) from error

    def folder(self, spec: CellSpec) -> Path:
        """Return the folder of a cell."""
        return self.root / "cells" / spec.key

    def create(self, plan: Plan) -> None:
        """Make the folder, keep the plan in it and remove what a killed process has left half-written."""
        cells = self.root / "cells"
        cells.mkdir(parents=True, exist_ok=True)
        for left in cells.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left)
        write_plan(plan, self.plan_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one sweep at a time; the lock of a killed process is gone with it.

        Raises
        ------
        StoreError
            If another sweep holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise StoreError(
                    f"{self.root} is in use by {holder}: wait for it, or give another folder with -o."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def save(self, cell: Cell, samples: Sequence[Sample]) -> Cell:
        """Write a cell with its samples, in place of an older one; a reader sees all of it or nothing.

        A failed cell has the samples of the documents that were answered, if any; they have no scores.

        Returns
        -------
        Cell
            The cell with the digest of its samples.
        """
        lines = "".join(_json_line(sample.model_dump(mode="json")) for sample in samples).encode()
        keep = cell.status == "done" or len(samples) > 0
        if keep:
            cell = cell.model_copy(update={"samples_sha256": hashlib.sha256(lines).hexdigest()})
        final = self.folder(cell.spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=final.parent))
        if keep:
            _write(part / "samples.jsonl", lines)
        # Not sorted: the first metric is the one that the task names first, and the order is the same in each run.
        text = json.dumps(cell.model_dump(mode="json"), indent=1, ensure_ascii=False)
        _write(part / "cell.json", text.encode() + b"\n")
        part.chmod(0o755)
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=final.parent))
            final.rename(old / "cell")
            part.rename(final)
            shutil.rmtree(old)
        else:
            part.rename(final)
        return cell

    def entry(self, spec: CellSpec) -> Entry:
        """Return what there is for a cell; a done cell's samples are checked against their digest."""
        folder = self.folder(spec)
        if not (folder / "cell.json").is_file():
            return Entry(spec, "missing")
        try:
            cell = self._read_cell(folder, spec)
            if cell.status == "failed":
                lines = cell.error.strip().splitlines() or ["no message"]
                return Entry(spec, "failed", cell, lines[-1])
            self._sample_lines(cell)
        except CorruptError as error:
            return Entry(spec, "corrupt", problem=str(error))
        return Entry(spec, "done", cell)

    def entries(self) -> list[Entry]:
        """Return what there is for each cell of the plan, in the order of the plan."""
        return [self.entry(spec) for spec in self.plan.cells()]

    def cells(self) -> list[Cell]:
        """Return the cells of the plan that are done, in the order of the plan: model, method, task."""
        return [entry.cell for entry in self.entries() if entry.state == "done" and entry.cell is not None]

    def samples(self, cell: Cell) -> list[Sample]:
        """Return the samples of a cell, in the order of the documents.

        Raises
        ------
        CorruptError
            If they are not those that were written with the cell.
        """
        try:
            return [Sample.model_validate_json(line) for line in self._sample_lines(cell).splitlines()]
        except ValidationError as error:
            raise CorruptError(f"{self.folder(cell.spec) / 'samples.jsonl'}: {error}") from error

    def problems(self) -> list[str]:
        """Return a line for each cell of the plan that is failed, corrupt or missing."""
        return [
            f"{describe(entry.spec)}: {entry.state}{': ' + entry.problem if entry.problem else ''}"
            for entry in self.entries()
            if entry.state != "done"
        ]

    @staticmethod
    def _read_cell(folder: Path, spec: CellSpec) -> Cell:
        file = folder / "cell.json"
        try:
            cell = Cell.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise CorruptError(f"{file}: {place + ': ' if place else ''}{first['msg']}") from error
        if cell.spec != spec:
            raise CorruptError(f"{file} is of another cell, {describe(cell.spec)}")
        return cell

    def _sample_lines(self, cell: Cell) -> bytes:
        file = self.folder(cell.spec) / "samples.jsonl"
        try:
            lines = file.read_bytes()
        except OSError as error:
            raise CorruptError(f"{file}: {error.strerror}") from error
        if hashlib.sha256(lines).hexdigest() != cell.samples_sha256:
            raise CorruptError(f"{file} is not what was written with the cell (its digest differs)")
        return lines


def describe(spec: CellSpec) -> str:
    """Return how messages call a cell: model, method and task."""
    return f"{spec.model} / {spec.method} / {spec.task}"


def _json_line(value: object) -> str:
    # ASCII only: str.splitlines and editors break lines at more characters than "\n".
    return json.dumps(value, sort_keys=True, ensure_ascii=True) + "\n"


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
