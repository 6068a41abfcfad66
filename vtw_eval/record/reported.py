"""Numbers among what lmms-eval reports of a task, in process or in its files."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any


def numbers_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of metrics that are numbers, finite or not, by ``metric,filter``."""
    found = {name: number_of(value) for name, value in reported(results).items()}
    return {name: number for name, number in found.items() if number is not None}


def reported(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of metrics among a task's results, by ``metric,filter``."""
    return {name: value for name, value in results.items() if "," in name and "_stderr" not in name}


def number_of(value: Any) -> float | None:
    """Return a number of Python, numpy or torch as a float, which may be infinite or not a number; None for others."""
    if hasattr(value, "item") and hasattr(value, "shape"):  # an array or a tensor, also of no dimensions
        value = value.item() if math.prod(value.shape) == 1 else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def label_of(name: str, filters: Sequence[str]) -> str:
    """Return how a cell calls a metric: without its filter where there is only one."""
    return name.rpartition(",")[0] if len(filters) == 1 else name
