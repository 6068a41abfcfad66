"""The costs of several methods on one geometry and prompt, by every convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtw_eval.cost.dry_run import DryRun, dry_run
from vtw_eval.cost.eq1 import eq1_prefill_flops
from vtw_eval.cost.exact import exact_decode_flops, exact_prefill_flops
from vtw_eval.cost.geometry import Geometry
from vtw_eval.cost.kv import kv_cache_bytes
from vtw_eval.cost.profiler import profiler_prefill_flops
from vtw_eval.methods import Baseline, Method

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8": 1,
    "int8": 1,
    "int4": 0.5,
}
"""Bytes per number of a KV cache."""


@dataclass(frozen=True, kw_only=True)
class MethodCosts:
    """Costs of one method, FLOPs unless said otherwise; means over its draws where it draws a layer."""

    method: str
    """With all its parameters."""
    tokens_per_layer: tuple[float, ...]
    vision_per_layer: tuple[float, ...]
    eq1: float
    profiler: float
    exact: float
    decode_step: float
    """The first decode step, by ``exact``."""
    answer: float | None
    """Prefill and all decode steps of an answer, by ``exact``; None if no length was given."""
    kv_bytes: float
    """KV cache after the prefill, in bytes."""
    nominal: bool = False
    """Whether these are the costs of what the method is asked for; what it keeps of a video depends on the video."""

    def to_dict(self, baseline: MethodCosts) -> dict[str, Any]:
        """Return the costs as JSON types, with their shares of the baseline's."""
        numbers = {name: getattr(self, name) for name in ("eq1", "profiler", "exact", "decode_step", "answer")}
        numbers = {name: value for name, value in numbers.items() if value is not None}
        return {
            "method": self.method,
            "tokens_per_layer": list(self.tokens_per_layer),
            "vision_per_layer": list(self.vision_per_layer),
            "flops": numbers,
            "kv_bytes": self.kv_bytes,
            **({"nominal": True} if self.nominal else {}),
            "share_of_baseline": {
                **{name: value / getattr(baseline, name) for name, value in numbers.items()},
                "kv_bytes": self.kv_bytes / baseline.kv_bytes,
            },
        }


def compare_costs(
    geometry: Geometry,
    methods: Sequence[Method],
    *,
    text: float,
    vision: float,
    output_tokens: int | None = None,
    dtype: str = "bfloat16",
    tower: bool = False,
    frames: int | None = None,
) -> list[MethodCosts]:
    """Return the costs of the unchanged model and of each method, in that order.

    Parameters
    ----------
    geometry
        Sizes of the model.
    methods
        Methods; the baseline among them is not repeated.
    text, vision
        Text and vision tokens of the prompt; means over a benchmark are allowed.
    output_tokens
        Length of the answer, 1 or more, the token that the prefill gives included.
    dtype
        Of the KV cache, a key of :data:`DTYPE_BYTES`.
    tower
        Add vision tower and projector to ``profiler`` and ``exact``.
    frames
        The vision tokens are those of a video of so many frames; None for one image.

    Raises
    ------
    ValueError
        For impossible values; see also :func:`~vtw_eval.cost.dry_run.dry_run`.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}. Valid: {', '.join(DTYPE_BYTES)}.")
    if output_tokens is not None and output_tokens < 1:
        raise ValueError(f"output_tokens={output_tokens} is out of range: an answer has 1 or more tokens.")
    runs = [
        dry_run(method, geometry.layers, text=text, vision=vision, name=geometry.name, frames=frames)
        for method in (Baseline(), *(m for m in methods if not isinstance(m, Baseline)))
    ]
    return [_costs(geometry, run, output_tokens, dtype, tower) for run in runs]


def _costs(geometry: Geometry, run: DryRun, output_tokens: int | None, dtype: str, tower: bool) -> MethodCosts:
    """Return the mean costs over the draws of a dry run."""
    exact = float(exact_prefill_flops(run.tokens, geometry, updated=run.updated, tower=tower).mean())
    answer = None
    if output_tokens is not None:
        # The prefill gives the first token; decode step i sees i generated tokens.
        answer = exact + sum(
            float(exact_decode_flops(run.tokens + step, geometry).mean()) for step in range(1, output_tokens)
        )
    return MethodCosts(
        method=str(run.method),
        tokens_per_layer=tuple(run.tokens.mean(dim=0).tolist()),
        vision_per_layer=tuple(run.vision.mean(dim=0).tolist()),
        eq1=float(eq1_prefill_flops(run.tokens, geometry.hidden, run.updated).mean()),
        profiler=float(profiler_prefill_flops(run.tokens, geometry, updated=run.updated, tower=tower).mean()),
        exact=exact,
        decode_step=float(exact_decode_flops(run.tokens + 1, geometry).mean()),
        answer=answer,
        kv_bytes=sum(float(kv_cache_bytes(row, geometry, DTYPE_BYTES[dtype]).sum()) for row in run.tokens)
        / len(run.tokens),
        nominal=run.nominal,
    )
