"""What cells will cost, before any checkpoint is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vtw_eval.checkpoints import known
from vtw_eval.cost import Geometry, get_geometry
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.cost.profiler import profiler_prefill_flops
from vtw_eval.methods import parse_method
from vtw_eval.record.cell import CellSpec

TEXT_TOKENS = 66
"""Of a prompt: the mean of LLaVA-1.5 on MME (VTW, Table 2)."""
_EMBEDDED_TEXT = {"shapes": 25, "boards": 17}
"""The embedded models have no system prompt."""


@dataclass(frozen=True)
class Estimate:
    """Prefill FLOPs of one document, by the profiler's convention."""

    flops: float
    share: float
    """Of the unchanged model's."""


def estimate(spec: CellSpec) -> Estimate | None:
    """Return what a document of a cell will cost, None where that is not known without the checkpoint.

    Unknown are models whose sizes are neither a preset of :mod:`vtw_eval.cost` nor in a folder, models whose number of
    vision tokens depends on the image, and methods that decide by the model (``dyvte``, ``k=search``).

    Parameters
    ----------
    spec
        The cell.
    """
    return _estimate(spec.pretrained, spec.method)


@cache
def _estimate(pretrained: str, method: str) -> Estimate | None:
    geometry = geometry_of(pretrained)
    if geometry is None or geometry.vision_tokens is None:
        return None
    text = text_tokens(pretrained)

    def flops(spec: str) -> float:
        assert geometry is not None and geometry.vision_tokens is not None
        run = dry_run(parse_method(spec), geometry.layers, text=text, vision=geometry.vision_tokens, name=pretrained)
        return float(profiler_prefill_flops(run.tokens, geometry, updated=run.updated).mean())

    try:
        own, full = flops(method), flops("baseline")
    except ValueError:
        return None
    return Estimate(own, own / full)


def text_tokens(pretrained: str) -> int:
    """Return how many text tokens a usual prompt of a checkpoint has."""
    return _EMBEDDED_TEXT.get(pretrained, TEXT_TOKENS)


@cache
def geometry_of(pretrained: str) -> Geometry | None:
    """Return the sizes of a checkpoint, None where they are not known without it."""
    entry = known(pretrained)
    try:
        return get_geometry(pretrained if entry is None else entry.geometry)
    except ValueError:
        return None
