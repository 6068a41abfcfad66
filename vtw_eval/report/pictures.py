"""Pictures of documents, for examples: those of the embedded test sets, which are drawn again from their seeds.

Samples hold a digest of what a document shows, not the picture; one that does not fit its sample is not shown. They
hold which vision tokens entered which layers, too, so that this is drawn without a model.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from vtw_eval.checkpoints import EMBEDDED
from vtw_eval.media import BLANK
from vtw_eval.record.cell import CellSpec, Sample
from vtw_eval.record.kept import KeptSet
from vtw_eval.report.errors import ReportError
from vtw_eval.report.render.blocks import Kept, Picture
from vtw_eval.report.render.patches import drawn, overlay
from vtw_eval.shapes import data as shapes
from vtw_eval.shapes.boards import data as boards

MOST = 3
"""Pictures of what a method has left, of one document."""
_COLOURS = 64
"""That these have: their noise would make a page large."""

_MAKERS: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    **{f"shapes_{name}": maker for name, maker in shapes.TEST_SETS.items()},
    **{f"boards_{name}": maker for name, maker in boards.TEST_SETS.items()},
}


def picture_of(spec: CellSpec, sample: Sample) -> Picture | None:
    """Return the picture of a document, the question about it, and what the method has left of it.

    Parameters
    ----------
    spec
        Of the cell: its task, by its name in its harness, and its checkpoint.
    sample
        The document.

    Returns
    -------
    Picture or None
        None for tasks of others, and where the picture drawn is not the one that was shown.

    Raises
    ------
    ReportError
        If what the sample tells of the tokens that were kept contradicts itself.
    """
    maker = _MAKERS.get(spec.task.lower())
    if maker is None or not sample.doc_id.isdecimal():
        return None
    rows = _rows(maker)
    number = int(sample.doc_id)
    if number >= len(rows):
        return None
    row = rows[number]
    shown = row["image"]["bytes"]
    # As the harness's adapter names what documents show; samples of earlier versions of MME name their pairs instead.
    digest = hashlib.sha256(shown + b"\0").hexdigest()[:16]
    pair = f"{row.get('category')}/{row['question_id']}"
    if digest != sample.media and (sample.media or sample.group not in (digest, pair)):
        return None
    return Picture(shown, str(row["question"]), _kept(spec, sample, shown))


def _kept(spec: CellSpec, sample: Sample, shown: bytes) -> tuple[Kept, ...]:
    """Return what is left of a picture where it changes; nothing where it is not known where tokens stand.

    Those of the embedded checkpoints cover a square picture row by row if their number is a square.
    """
    costs = sample.costs
    if costs is None or spec.pretrained not in EMBEDDED or BLANK in costs.media:
        return ()
    try:
        sets = costs.kept_sets()
    except ValueError as error:
        raise ReportError(f"{spec.task}, document {sample.doc_id}, {spec.method}: {error}") from error
    pixels = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB"))
    side = math.isqrt(costs.vision_tokens)
    if sets is None or side**2 != costs.vision_tokens or pixels.shape[0] != pixels.shape[1]:
        return ()
    changed = [one for one in sets if not all(one.kept)]
    some = [one for one in changed if any(one.kept)]
    left_out = some[1 : len(some) - MOST + 1]
    return tuple(_drawn(one, pixels, side) for one in changed if one not in left_out)


def _drawn(one: KeptSet, pixels: np.ndarray[Any, np.dtype[np.uint8]], side: int) -> Kept:
    count = sum(one.kept)
    layers = f"layer {one.first}" if one.first == one.last else f"layers {one.first} to {one.last}"
    words = f"{layers}: {count or 'none'} of {len(one.kept)}"
    if not count:
        return Kept(words, None)
    present = np.array(one.kept, dtype=float).reshape(side, side)
    over = overlay(present, np.full((side, side), -1), *pixels.shape[:2])
    few = Image.fromarray(drawn(pixels, over)).quantize(
        _COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    return Kept(words, file.getvalue())


@lru_cache(maxsize=len(_MAKERS))
def _rows(maker: Callable[[], list[dict[str, Any]]]) -> list[Mapping[str, Any]]:
    return list(maker())
