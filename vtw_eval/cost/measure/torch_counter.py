"""torch's own counter of FLOPs, with the formulas that it lacks, and refused where one is still missing.

A :class:`torch.utils.flop_counter.FlopCounterMode` counts an operator without a formula as 0, without a word. That is
what torch before 2.15 did to the attention that every CPU runs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vtw_eval.versions import UpstreamChangedError

_ATTENTION = re.compile(r"attention|attn|sdpa", re.IGNORECASE)
"""Names of operators that compute attention: torch's own and those that other libraries register."""


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """FLOPs of attention, from the shapes: queries by keys and weights by values, all pairs, in each query head."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""Fused attention in aten that some release counts as 0; each takes query, key and value first."""


def missing_formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas for attention in this torch that its registry lacks."""
    found = [getattr(torch.ops.aten, name, None) for name in _FUSED]
    return {operator: _attention_flops for operator in found if operator is not None and operator not in flop_registry}


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of a block with torch's counter.

    Yields
    ------
    FlopCounterMode
        Ask it for ``get_total_flops()`` or ``get_flop_counts()``.

    Raises
    ------
    UpstreamChangedError
        If attention ran that the counter has no formula for.
    """
    counter = FlopCounterMode(display=False, custom_mapping=missing_formulas())
    with _Watch() as watch, counter:
        yield counter
    if missed := sorted(watch.attention - set(map(str, counter.flop_registry))):
        raise UpstreamChangedError(f"torch's FLOP counter counts {', '.join(missed)} as 0", "torch")


class _Watch(TorchDispatchMode):
    """Notes attention that runs; around the counter, so that it sees what the counter could not take apart."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.attention: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "overloadpacket", func))
        if _ATTENTION.search(name):
            self.attention.add(name)
        return func(*args, **(kwargs or {}))


@functools.cache
def check_counter(device: str, dtype: torch.dtype = torch.float32, head_dim: int = 64) -> None:
    """Count attention whose FLOPs are known, as models call it, on a device.

    Raises
    ------
    UpstreamChangedError
        If the count is not that of the closed form.
    """
    query, key = torch.zeros(1, 4, 6, head_dim), torch.zeros(1, 4, 10, head_dim)
    expected = _attention_flops(query.shape, key.shape, key.shape)
    query, key = query.to(device, dtype), key.to(device, dtype)
    mask = torch.ones(1, 1, 6, 10, dtype=torch.bool, device=device)
    for attn_mask in (None, mask):
        with torch.no_grad(), flop_counter() as counter:
            scaled_dot_product_attention(query, key, key, attn_mask=attn_mask)
        if counter.get_total_flops() != expected:
            operators = ", ".join(map(str, counter.get_flop_counts().get("Global", {}))) or "nothing"
            raise UpstreamChangedError(
                f"torch's FLOP counter finds {counter.get_total_flops()} FLOPs in an attention of {expected} on "
                f"{device} (it saw {operators})",
                "torch",
            )
