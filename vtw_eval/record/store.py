"""Where cells are kept: one folder per cell, written at once or not at all, believed only when whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vtw_eval.files import write_atomically
from vtw_eval.record.cell import Cell, CellSpec, Sample
from vtw_eval.record.index import Index, index_of_plan, read_index, write_index
from vtw_eval.record.lease import HeldError, has_ended, leased, owner_name

_TEMPORARY = ".tmp-"
_ABANDONED = 3600.0
"""Seconds after which half-written files of another machine are nobody's: writing a cell takes moments."""
State = Literal["done", "failed", "missing", "corrupt"]


class StoreError(RuntimeError):
    """A folder that cannot be used as a store; the message says why."""


class CorruptError(StoreError):
    """Files of a cell that are not as they were written."""


@dataclass(frozen=True)
class Entry:
    """What the store holds for one cell of its index."""

    spec: CellSpec
    state: State
    cell: Cell | None = None
    """Of a cell that is done or failed."""
    problem: str = ""
    """Why a cell is failed or corrupt, in one line."""


class Store:
    """The folder of a sweep: ``index.json``, ``plan.yaml`` and ``cells/<key>/{cell.json,samples.jsonl}``.

    Parameters
    ----------
    root
        The folder; it need not exist before :meth:`create`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @property
    def index_file(self) -> Path:
        """Which cells belong to the sweep."""
        return self.root / "index.json"

    @property
    def plan_file(self) -> Path:
        """The plan as it was run, groups of tasks written out; for readers, and all there is of earlier versions."""
        return self.root / "plan.yaml"

    @property
    def listings(self) -> list[Path]:
        """Those files that there are that say what the folder holds; empty where it is none of a sweep."""
        return [file for file in (self.index_file, self.plan_file) if file.is_file()]

    @property
    def index(self) -> Index:
        """The cells of this sweep and what tables call things.

        Raises
        ------
        StoreError
            If the folder holds none, or none that can be read.
        """
        for file, read in ((self.index_file, read_index), (self.plan_file, index_of_plan)):
            if file.is_file():
                try:
                    return read(file.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise StoreError(f"{file}: {error}") from error
        raise StoreError(
            f"{self.root} holds no sweep: there is no {self.index_file.name} in it, nor {self.plan_file.name} of an "
            "earlier version."
        )

    def folder(self, spec: CellSpec) -> Path:
        """Return the folder of a cell."""
        return self.root / "cells" / spec.key

    def create(self, index: Index, plan: str = "", *, take_over: bool = False) -> None:
        """Make the folder, keep the index and the plan in it and remove what a killed process has left half-written.

        Parameters
        ----------
        index
            The cells.
        plan
            What asked for them, as text.
        take_over
            Whether they may take the place of others with finished cells that are none of theirs.

        Raises
        ------
        StoreError
            If the folder is that of another plan and may not be taken over, or cannot be written to.
        """
        if not take_over:
            self._check_index(index)
        cells = self.root / "cells"
        try:
            cells.mkdir(parents=True, exist_ok=True)
            for left in cells.glob(f"{_TEMPORARY}*"):
                if _abandoned(left):
                    shutil.rmtree(left)
            write_atomically(self.plan_file, plan)
            write_atomically(self.index_file, write_index(index))
        except OSError as error:
            raise self._unusable(error) from None

    def _check_index(self, index: Index) -> None:
        """Refuse to replace another plan whose results would then be out of sight."""
        advice = "give another folder with -o, or --take-over to replace it (its cells stay on disk)."
        there = self.listings
        if not there:
            return
        if not (self.root / "cells").is_dir():
            raise StoreError(f"{there[0]} is not of a sweep and would be replaced: {advice}")
        try:
            finished = [entry.spec for entry in self.entries() if entry.state == "done"]
        except StoreError as error:
            raise StoreError(f"{' '.join(str(error).split())} {advice[0].upper()}{advice[1:]}") from None
        own = {spec.key for spec in index.cells}
        others = [spec for spec in finished if spec.key not in own]
        if others:
            raise StoreError(
                f"{self.root} holds another plan, {self.index.title or self.plan_file}: {len(others)} of its "
                f"{len(finished)} finished cells are none of this plan's (such as {_told(others[0])}): {advice}"
            )

    @contextmanager
    def lock(self, note: Callable[[str], None] = lambda message: None) -> Iterator[None]:
        """Hold the folder for one sweep at a time; the lock of a killed process is gone with it.

        Two locks, because each knows what the other does not. ``flock`` goes with its process, whatever ends that, but
        some network file systems refuse it, or keep it to one machine; :func:`vtw_eval.record.lease.leased` needs no
        locks of the file system.

        Parameters
        ----------
        note
            Told when this will take a while.

        Raises
        ------
        StoreError
            If another sweep holds it, or the folder cannot be written to.
        """
        with ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.root / ".lock").open("a+"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    raise HeldError(file.read().strip() or "another process") from None
                except OSError as error:  # ENOLCK, ENOSYS, ...
                    note(
                        f"the file system of {self.root} refuses locks ({error.strerror}): another sweep is told "
                        "by the marker file .lease alone"
                    )
                stack.enter_context(leased(self.root / ".lease", note))
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            except HeldError as error:
                raise StoreError(
                    f"{self.root} is in use by {error}: wait for it, or give another folder with -o."
                ) from None
            except OSError as error:
                raise self._unusable(error) from None
            yield

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(f"{self.root} cannot be used: {error.strerror or error} ({error.filename or self.root}).")

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
        part = _temporary(final.parent)
        if keep:
            _write(part / "samples.jsonl", lines)
        # Not sorted: the first metric is the one that the task names first, and the order is the same in each run.
        text = json.dumps(cell.model_dump(mode="json"), indent=1, ensure_ascii=False)
        _write(part / "cell.json", text.encode() + b"\n")
        part.chmod(0o755)
        if final.exists():
            old = _temporary(final.parent)
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
        """Return what there is for each cell of the index, in its order."""
        return [self.entry(spec) for spec in self.index.cells]

    def cells(self) -> list[Cell]:
        """Return the cells of the index that are done, in its order: model, method, task."""
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
        """Return a line for each cell of the index that is failed, corrupt or missing."""
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


def _temporary(folder: Path) -> Path:
    """Make a folder for half-written files; its name tells whose they are."""
    return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{owner_name()}-", dir=folder))


def _abandoned(left: Path) -> bool:
    """Whether nobody writes to a folder by :func:`_temporary` any more; no lock is needed to know."""
    owner = left.name.removeprefix(_TEMPORARY).rpartition("-")[0]
    if has_ended(owner):
        return True
    if owner == owner_name():
        return False
    try:
        return time.time() - left.stat().st_mtime > _ABANDONED
    except OSError:  # its owner has just finished
        return False


def _told(spec: CellSpec) -> str:
    limit = "" if spec.limit is None else f" on {spec.limit} documents"
    return f"{describe(spec)}{limit}"


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
