"""Pictures of documents, for examples: those of the embedded test sets, which are drawn again from their seeds.

Samples hold a digest of what a document shows, not the picture; one that does not fit its sample is not shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from vtw_eval.record.cell import Sample
from vtw_eval.report.render.blocks import Picture
from vtw_eval.shapes import data as shapes
from vtw_eval.shapes.boards import data as boards

_MAKERS: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    **{f"shapes_{name}": maker for name, maker in shapes.TEST_SETS.items()},
    **{f"boards_{name}": maker for name, maker in boards.TEST_SETS.items()},
}


def picture_of(task: str, sample: Sample) -> Picture | None:
    """Return the picture of a document and the question about it.

    Parameters
    ----------
    task
        Its name in its harness.
    sample
        The document.

    Returns
    -------
    Picture or None
        None for tasks of others, and where the picture drawn is not the one that was shown.
    """
    maker = _MAKERS.get(task.lower())
    if maker is None or not sample.doc_id.isdecimal():
        return None
    rows = _rows(maker)
    number = int(sample.doc_id)
    if number >= len(rows):
        return None
    row = rows[number]
    png = row["image"]["bytes"]
    # As the harness's adapter names what documents show; MME names its pairs instead.
    digest = hashlib.sha256(png + b"\0").hexdigest()[:16]
    pair = f"{row.get('category')}/{row['question_id']}"
    return Picture(png, str(row["question"])) if sample.group in (digest, pair) else None


@lru_cache(maxsize=len(_MAKERS))
def _rows(maker: Callable[[], list[dict[str, Any]]]) -> list[Mapping[str, Any]]:
    return list(maker())
