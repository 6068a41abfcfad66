"""Writing files whole, whether a place can be written to, and where files of the user's cache belong."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def cache_home() -> Path:
    """Return the user's cache directory for this package (follows the XDG base directory convention)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtw-eval"


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield an empty file to write to, which becomes ``path`` when the block ends well and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp makes it private, and so does safetensors
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text in UTF-8."""
    with atomically(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, by name, into a folder, each whole or not at all."""
    for name, content in files.items():
        write_atomically(folder / name, content)


@contextmanager
def folder_atomically(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``path`` when the block ends well and is gone when it does not.

    Parameters
    ----------
    path
        The folder.
    replace
        Whether it takes the place of one that is there at the end; else that one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part = around / "new"
        part.mkdir()
        yield part
        if replace and path.exists():
            path.rename(around / "old")
        try:
            part.rename(path)
        except OSError:
            if replace or not path.is_dir():
                raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


def check_output(path: Path, *, folder: bool = False) -> None:
    """Check, before work that takes long, that a file or folder can be written.

    Parameters
    ----------
    path
        What will be written; it, and folders above it, may not exist yet.
    folder
        Whether it is a folder.

    Raises
    ------
    OSError
        If something is in the way, or the place cannot be written to; the message is one line.
    """
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"{path} is a folder: name a file in it.")
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file where a folder is needed: name another place.")
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {place} is a file.")
    try:
        with tempfile.TemporaryFile(dir=place):  # access rights alone do not tell of a full or a read-only disk
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error} ({place}).") from None
