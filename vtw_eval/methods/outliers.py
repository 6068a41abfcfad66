"""Values that stand out, by quartiles."""

from __future__ import annotations

from torch import Tensor


def outliers(values: Tensor) -> Tensor:
    """Return which of ``[n]`` values are above the third quartile by more than 1.5 distances of first and third."""
    first, third = values.quantile(0.25), values.quantile(0.75)
    return values > third + 1.5 * (third - first)
