"""The convention behind every TFLOPs figure that the VTW and DyVTE papers print."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike
from torch import Tensor

from vtw_eval.cost.exact import per_layer, projector_flops, updated_per_layer, vision_tower_flops
from vtw_eval.cost.geometry import Geometry


def profile_flops(tokens: Tensor, geometry: Geometry) -> Tensor:
    """FLOPs that the profiler of the VTW paper reports for the unchanged language model, one by one.

    Two per multiply-add of every matrix, the head at *all* positions included: linear in the number of tokens. The
    attention products are missing, because that profiler (calflops) does not see into SDPA.

    Parameters
    ----------
    tokens
        Prompt lengths, of any shape.
    geometry
        Sizes of the model.
    """
    return 2 * tokens * (geometry.layers * geometry.layer_macs + geometry.head_macs)


def profiler_prefill_flops(
    tokens_per_layer: ArrayLike | Tensor,
    geometry: Geometry,
    *,
    updated: ArrayLike | Tensor | None = None,
    head: Literal["mean", "left"] = "mean",
    tower: bool = False,
) -> Tensor:
    """FLOPs of a prefill as the papers count them: matrices only, no attention products.

    The VTW paper averages profiles of the unchanged model over the layers: a model that sees 642 tokens in half of its
    layers and 66 in the other half is charged the mean of two whole profiles, and so the head on the mean number of
    tokens. The DyVTE paper profiles the reduced model: the head runs on the tokens that are left, and vision tower and
    projector are in. The VTW author names the profiler (https://github.com/lzhxmu/VTW/issues/7); the rest follows from
    the printed numbers (``vtw-eval cost --paper all``).

    Parameters
    ----------
    tokens_per_layer
        Tokens that enter each layer, ``[layers]`` or ``[rows, layers]``.
    geometry
        Sizes of the model.
    updated
        Of those tokens, the ones that each layer updates; None for all. The others cost k and v matrices.
    head
        Tokens that the head is charged for: the "mean" over the layers (VTW), or those "left" in the last one (DyVTE).
    tower
        Add vision tower (attention products included) and projector (DyVTE).

    Returns
    -------
    Tensor
        float64, ``[]`` or ``[rows]``.

    Raises
    ------
    ValueError
        For counts that do not fit the geometry, or a tower without closed form.
    """
    s = per_layer(tokens_per_layer, geometry)
    u = updated_per_layer(s, updated, geometry)
    if head not in ("mean", "left"):
        raise ValueError(f"head={head!r} is unknown: choose 'mean' or 'left'.")
    positions = s.mean(dim=-1) if head == "mean" else s[..., -1]
    matrices = u.sum(dim=-1) * geometry.layer_macs + (s - u).sum(dim=-1) * geometry.key_macs
    flops = 2 * (matrices + positions * geometry.head_macs)
    return flops + vision_tower_flops(geometry) + projector_flops(geometry) if tower else flops
