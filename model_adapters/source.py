"""Which of our source evaluates cells on a harness's side."""

from __future__ import annotations

import functools
from pathlib import Path

from vtw_eval.versions import source_hash


@functools.cache
def code_of(folder: str) -> dict[str, str]:
    """Return hashes of a harness's adapters with what all harnesses share, and of our tasks with their data.

    Parameters
    ----------
    folder
        Of the harness, beside this file.
    """
    import vtw_eval.shapes
    import vtw_eval.tasks

    adapters = Path(__file__).parent
    (tasks,) = map(Path, vtw_eval.tasks.__path__)
    (shapes,) = map(Path, vtw_eval.shapes.__path__)
    return {
        "adapter": source_hash([*adapters.glob("*.py"), *(adapters / folder).rglob("*.py")]),
        "task": source_hash(
            [
                *tasks.rglob("*.py"),
                *tasks.rglob("*.yaml"),
                *shapes.glob("*.py"),
                *shapes.glob("boards/*.py"),
                *shapes.glob("moves/*.py"),
            ]
        ),
    }
