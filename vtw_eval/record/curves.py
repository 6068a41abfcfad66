"""Where the curves of a sweep are kept: each a store of its own in the sweep's folder."""

from __future__ import annotations

from pathlib import Path

from vtw_eval.record.store import Store

FOLDER = "curves"
"""Of the curves, in that of a sweep."""

DIVERGENCE = "kl"
"""Of the files with the divergence by k, one for each task, in that of a curve."""


def curve_folders(root: Path) -> list[Path]:
    """Return the folders of the curves of a sweep, in the order of their names."""
    return sorted(folder for folder in (root / FOLDER).glob("*") if Store(folder).listings)


def divergence_file(root: Path, task: str) -> Path:
    """Return the file that holds the divergence by k on a task."""
    return root / DIVERGENCE / f"{task}.json"
