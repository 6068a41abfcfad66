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
_EMBEDDED = {
    "shapes": (25, None),
    "boards": (17, None),
    "boards_qwen2_vl": (23, 64),
    "boards_internvl": (20, 320),
    "moves_video_llava": (19, 136),
}
"""Mean text tokens of prompts of the embedded models' tasks, and vision tokens where their sizes alone do not tell."""


@dataclass(frozen=True)
class Estimate:
    """Prefill FLOPs of one document, by the profiler's convention."""

    flops: float
    share: float
    """Of the unchanged model's."""


def estimate(spec: CellSpec) -> Estimate | None:
    """Return what a document of a cell will cost, None where that is not known without the checkpoint.

    Unknown are models whose sizes are neither a preset of :mod:`vtw_eval.cost` nor in a folder, models whose number of
    vision tokens depends on what is shown (but embedded ones), and methods that decide by the model (``dyvte``,
    ``k=search``).

    Parameters
    ----------
    spec
        The cell.
    """
    return _estimate(spec.pretrained, spec.method)


@cache
def _estimate(pretrained: str, method: str) -> Estimate | None:
    geometry = geometry_of(pretrained)
    if geometry is None:
        return None
    text, shown = usual_prompt(pretrained)
    vision = geometry.vision_tokens if shown is None else shown
    if vision is None:
        return None

    def flops(spec: str) -> float:
        run = dry_run(parse_method(spec), geometry.layers, text=text, vision=vision, name=pretrained)
        return float(profiler_prefill_flops(run.tokens, geometry, updated=run.updated).mean())

    try:
        own, full = flops(method), flops("baseline")
    except ValueError:
        return None
    return Estimate(own, own / full)


def usual_prompt(pretrained: str) -> tuple[int, int | None]:
    """Return text tokens of a usual prompt of a checkpoint, and its vision tokens where its sizes do not tell them."""
    return _EMBEDDED.get(pretrained, (TEXT_TOKENS, None))


@cache
def geometry_of(pretrained: str) -> Geometry | None:
    """Return the sizes of a checkpoint, None where they are not known without it."""
    entry = known(pretrained)
    try:
        return get_geometry(pretrained if entry is None else entry.geometry)
    except ValueError:
        return None
