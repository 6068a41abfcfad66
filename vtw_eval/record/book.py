"""The answer book: answers that are known before their cell is evaluated, journalled as they are made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vtw_eval.record.lease import owner_name
from vtw_eval.record.strict import Strict

_DIGEST = 16
"""Hexadecimal digits in front of each line."""


class Entry(Strict):
    """One answer, with what its costs follow from."""

    key: str
    """Digest of all that decides the answer: the model, the method, the code, the prompt and what it shows."""
    text: str
    output_tokens: int
    counts: dict[str, int | tuple[int, ...] | str]
    """Tokens of the prompt, as costs name them."""
    notes: tuple[str, ...] = ()
    """What encoding the prompt added to the notes on its media."""
    rows: int
    """Answers that were made together with it."""


class Book:
    """The answers in a folder: a file for each process that has written, a line for each answer.

    Lines begin with a digest of their content. One that does not match it, such as the last line of a process that was
    killed while it wrote, is as if it had not been written.

    Parameters
    ----------
    folder
        It need not exist before the first :meth:`add`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spoilt = 0
        """Lines that could not be believed."""
        self._entries: dict[str, Entry] = {}
        self._file: Path | None = None
        for file in sorted(folder.glob("*.jsonl")):
            self._read(file)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Entry | None:
        """Return the answer of a key, None if there is none."""
        return self._entries.get(key)

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep answers; they are on the disk when this returns.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        if not entries:
            return
        if self._file is None:  # of this process alone: appending by several is not safe on every file system
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f"{owner_name()}-", suffix=".jsonl", dir=self.folder)
            os.close(handle)
            self._file = Path(name)
            self._file.chmod(0o644)
        with self._file.open("ab") as out:
            out.write(b"".join(map(_line, entries)))
            out.flush()
            os.fsync(out.fileno())
        self._entries.update((entry.key, entry) for entry in entries)

    def _read(self, file: Path) -> None:
        for line in file.read_bytes().split(b"\n"):
            if not line:
                continue
            digest, _, content = line.partition(b" ")
            try:
                if digest != _digest(content):
                    raise ValueError("not what was written")
                entry = Entry.model_validate_json(content)
            except (ValidationError, ValueError):
                self.spoilt += 1
                continue
            self._entries[entry.key] = entry


@dataclass(frozen=True)
class Together:
    """What a cell is told of the others that are asked the same of the same checkpoint."""

    book: Book
    """Where their answers are, and go."""
    methods: Mapping[str, str]
    """The cell's own method and those of cells that are still to be done, by spec: a digest of what decides their
    answers beside the prompts. The cell's own comes first."""
    seed: int = 0
    """Of the cell: its documents may be asked otherwise than with another seed."""


def book_folder(root: Path, name: str) -> Path:
    """Return the folder of a book in that of a sweep."""
    return root / "books" / name


def remove_books(root: Path, keep: Collection[str]) -> None:
    """Remove the books in the folder of a sweep but for some."""
    for folder in (root / "books").glob("*"):
        if folder.name not in keep:
            shutil.rmtree(folder)
    if (root / "books").is_dir() and not any((root / "books").iterdir()):
        (root / "books").rmdir()


def key_of(*decides: object) -> str:
    """Return the key of an answer: a digest of all that decides it, as JSON."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _line(entry: Entry) -> bytes:
    content = json.dumps(entry.model_dump(mode="json"), ensure_ascii=True).encode()
    return _digest(content) + b" " + content + b"\n"


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:_DIGEST].encode()
