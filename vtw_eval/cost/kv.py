"""Size of the KV cache after a prefill."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vtw_eval.cost.exact import per_layer
from vtw_eval.cost.geometry import Geometry


def kv_cache_bytes(tokens_per_layer: ArrayLike | Tensor, geometry: Geometry, dtype_bytes: float) -> Tensor:
    """Bytes of keys and values that each layer holds.

    Parameters
    ----------
    tokens_per_layer
        Tokens that enter each layer, ``[layers]`` or ``[rows, layers]``. A batch is as wide as its longest row in that
        layer, because shorter rows are padded, as they are in the real cache (whose first layers hold the whole
        prompt with any padding that the caller has added on top). A layer with a sliding window of w holds w - 1
        tokens at most, as in transformers.
    geometry
        Sizes of the model.
    dtype_bytes
        Bytes per number, 2 for bfloat16.

    Returns
    -------
    Tensor
        float64 ``[layers]``; whole numbers for whole token counts.

    Raises
    ------
    ValueError
        For counts that do not fit the geometry.
    """
    counts = torch.atleast_2d(per_layer(tokens_per_layer, geometry))
    tokens = torch.minimum(counts.amax(dim=0), geometry.cache_limits - 1)
    return 2 * geometry.kv_heads * geometry.head_dim * dtype_bytes * len(counts) * tokens
