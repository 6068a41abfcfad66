"""Names of checkpoints: folders, ids of the Hub, and ``shapes`` for the embedded one."""

from __future__ import annotations

import warnings
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "shapes" / "checkpoint"
"""Folder of the embedded checkpoint."""

EMBEDDED = "shapes"
"""What the embedded checkpoint is called wherever a checkpoint is named."""


def checkpoint(name: str) -> str:
    """Return what transformers opens for the name of a checkpoint.

    Parameters
    ----------
    name
        A folder or an id of the Hub, which stay as they are, or :data:`EMBEDDED`. A folder of that name in the working
        directory that holds a ``config.json`` is meant before the embedded checkpoint; a warning tells so.

    Returns
    -------
    str
        A folder or an id of the Hub.
    """
    if name != EMBEDDED:
        return name
    if (Path(EMBEDDED) / "config.json").is_file():
        warnings.warn(
            f"{EMBEDDED!r} is the checkpoint in the folder {Path(EMBEDDED).absolute()}, not vtw-eval's embedded one of "
            f"the same name, which is opened where no such folder holds a config.json, or as {CHECKPOINT}.",
            stacklevel=2,
        )
        return str(Path(EMBEDDED).absolute())
    return str(CHECKPOINT)
