"""Test sets of boards and moves that are quick to make."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtw_eval.shapes.boards import data as boards
from vtw_eval.shapes.moves import data as moves


def few_scenes(patch: pytest.MonkeyPatch, folder: Path, count: int) -> None:
    """Let test sets have a number of scenes, in a cache and a data folder of VLMEvalKit of their own.

    Parameters
    ----------
    patch
        Undoes it.
    folder
        An empty one.
    count
        Scenes of a test set, of MME's for each of its kinds.
    """
    (folder / "LMUData").mkdir()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("LMUData", str(folder / "LMUData"))
    for data in (boards, moves):
        every = data.generators
        patch.setattr(data, "generators", lambda seed, name, _, every=every: every(seed, name, count))
