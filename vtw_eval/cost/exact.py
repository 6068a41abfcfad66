"""FLOPs of every matrix product, as a counter on the running model finds them."""

from __future__ import annotations

from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vtw_eval.cost.geometry import Geometry, VisionGeometry

Head = Literal["last", "all", "none"]


def per_layer(tokens: ArrayLike | Tensor, geometry: Geometry) -> Tensor:
    """Return token counts as float64 ``[..., layers]``, checked.

    Raises
    ------
    ValueError
        If the last axis is not the geometry's layers, or a count is negative or not finite.
    """
    counts = torch.as_tensor(tokens, dtype=torch.float64)
    if counts.ndim == 0 or counts.shape[-1] != geometry.layers:
        raise ValueError(
            f"token counts of shape {list(counts.shape)} do not fit {geometry.name}: it has {geometry.layers} layers."
        )
    if not bool((counts.isfinite() & (counts >= 0)).all()):
        raise ValueError("token counts must be finite and not negative.")
    return counts


def updated_per_layer(tokens: Tensor, updated: ArrayLike | Tensor | None, geometry: Geometry) -> Tensor:
    """Return how many of its tokens each layer updates, float64 ``[..., layers]``, checked.

    Parameters
    ----------
    tokens
        Of :func:`per_layer`.
    updated
        None for all of them.
    geometry
        Sizes of the model.

    Raises
    ------
    ValueError
        If they are of another shape, or more than there are.
    """
    if updated is None:
        return tokens
    found = per_layer(updated, geometry)
    if found.shape != tokens.shape or bool((found > tokens).any()):
        raise ValueError("updated tokens must be a number of each layer's tokens, in each row.")
    return found


def exact_prefill_flops(
    tokens_per_layer: ArrayLike | Tensor,
    geometry: Geometry,
    *,
    updated: ArrayLike | Tensor | None = None,
    head: Head = "last",
    tower: bool = False,
) -> Tensor:
    """FLOPs of all matrix products of a prefill: two per multiply-add.

    A layer on ``s`` tokens: q, k, v, o and FFN matrices on each token, and the products QK^T and AV over the full
    ``s x s`` rectangle. That is what SDPA's flop formula, fvcore and eager attention count; a causal kernel can skip
    up to half of the rectangle, and padding of a batch comes on top. Norms, rotary embedding, softmax, activations and
    the choice of tokens itself are not matrix products of the model and not counted.

    Parameters
    ----------
    tokens_per_layer
        Tokens that enter each layer, ``[layers]`` or ``[rows, layers]``; means such as 65.9 are allowed (the
        quadratic part is then that of the mean).
    geometry
        Sizes of the model.
    updated
        Of those tokens, the ones that each layer updates, of the same shape; None for all. The others only give keys
        and values: k and v matrices, and no query in the products (:attr:`vtw_eval.engine.Trace.updated_per_layer`).
    head
        Tokens on which the language-model head runs: the "last" one (as in ``generate``), "all" that leave the last
        layer, or "none".
    tower
        Whether to add :func:`vision_tower_flops` and :func:`projector_flops`.

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
    if head not in ("last", "all", "none"):
        raise ValueError(f"head={head!r} is unknown: choose 'last', 'all' or 'none'.")
    positions = {"last": torch.ones_like(s[..., -1]), "all": s[..., -1], "none": torch.zeros_like(s[..., -1])}[head]
    matrices = u * geometry.layer_macs + (s - u) * geometry.key_macs
    macs = (matrices + 2 * u * s * geometry.heads * geometry.head_dim).sum(dim=-1)
    flops = 2 * (macs + positions * geometry.head_macs)
    return flops + vision_tower_flops(geometry) + projector_flops(geometry) if tower else flops


def exact_decode_flops(keys_per_layer: ArrayLike | Tensor, geometry: Geometry) -> Tensor:
    """FLOPs of all matrix products of one decode step, the head included.

    Parameters
    ----------
    keys_per_layer
        Tokens in each layer's KV cache, the new one included; ``[layers]`` or ``[rows, layers]``. A layer with a
        sliding window looks at its window only.
    geometry
        Sizes of the model.

    Returns
    -------
    Tensor
        float64, ``[]`` or ``[rows]``.
    """
    keys = torch.minimum(per_layer(keys_per_layer, geometry), geometry.cache_limits)
    macs = (geometry.layer_macs + 2 * keys * geometry.heads * geometry.head_dim).sum(dim=-1)
    return 2 * (macs + geometry.head_macs)


def vision_tower_flops(geometry: Geometry) -> float:
    """FLOPs of the vision tower on the geometry's images, attention products and patch embedding included.

    Raises
    ------
    ValueError
        If the tower has no closed form.
    """
    tower = _tower(geometry, "vision tower")
    matrices = 4 * tower.hidden**2 + (3 if tower.gated else 2) * tower.hidden * tower.ffn
    layer = tower.tokens * matrices + 2 * tower.tokens**2 * tower.hidden
    patches = tower.patches * tower.patch_dim * tower.hidden
    return 2.0 * tower.images * (tower.layers * layer + patches)


def projector_flops(geometry: Geometry) -> float:
    """FLOPs of the projector on the features of the geometry's images.

    Raises
    ------
    ValueError
        If the tower has no closed form.
    """
    tower = _tower(geometry, "projector")
    return 2.0 * tower.images * tower.features * sum(inputs * outputs for inputs, outputs in geometry.projector)


def _tower(geometry: Geometry, what: str) -> VisionGeometry:
    if geometry.vision is None:
        raise ValueError(f"no closed form for the {what} of {geometry.name}: {geometry.no_vision}.")
    return geometry.vision
