"""Writing files whole, and where files of the user's cache belong."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """Return the user's cache directory for this package (follows the XDG base directory convention)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtw-eval"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.chmod(0o644)  # mkstemp makes it private
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
