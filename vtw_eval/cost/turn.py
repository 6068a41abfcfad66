"""FLOPs of one turn of a conversation that goes on from a KV cache."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vtw_eval.cost.exact import exact_decode_flops, per_layer
from vtw_eval.cost.geometry import Geometry


def exact_chunk_flops(held: ArrayLike | Tensor, fresh: ArrayLike | Tensor, geometry: Geometry) -> Tensor:
    """FLOPs of all matrix products of a pass over new tokens behind those that a KV cache holds.

    With nothing held it is :func:`vtw_eval.cost.exact.exact_prefill_flops`: matrices on each new token, the products
    QK^T and AV over the full rectangle of new tokens and all tokens, the head on the last one.

    Parameters
    ----------
    held
        Tokens in each layer's cache before the pass, ``[layers]`` or ``[rows, layers]``. A layer with a sliding window
        holds what its window needs.
    fresh
        Tokens that enter each layer.
    geometry
        Sizes of the model.

    Returns
    -------
    Tensor
        float64, ``[]`` or ``[rows]``.

    Raises
    ------
    ValueError
        For counts that do not fit the geometry.
    """
    new = per_layer(fresh, geometry)
    before = torch.minimum(per_layer(held, geometry), geometry.cache_limits - 1)
    macs = new * geometry.layer_macs + 2 * new * (before + new) * geometry.heads * geometry.head_dim
    return 2 * (macs.sum(dim=-1) + geometry.head_macs)


def exact_answer_flops(held: ArrayLike | Tensor, tokens: int, geometry: Geometry) -> float:
    """FLOPs of all matrix products of the decode steps of an answer: of each token but the last, which does not run.

    Parameters
    ----------
    held
        Tokens in each layer's cache when the first of the answer's tokens has been chosen, ``[layers]``.
    tokens
        Of the answer.
    geometry
        Sizes of the model.
    """
    steps = torch.arange(1, max(tokens, 1), dtype=torch.float64)[:, None]
    return float(exact_decode_flops(per_layer(held, geometry) + steps, geometry).sum())
