"""What the task files of moves ask for beside the benchmarks' own functions."""

from __future__ import annotations

from typing import Any

from vtw_eval.shapes.moves.data import dataset_path


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """Return the path of the document's video."""
    return [str(dataset_path(doc["test_set"]) / doc["path"])]
