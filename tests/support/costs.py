"""Costs of an answer, for tests that need some."""

from __future__ import annotations

from vtw_eval.record.costs import TimedCosts

COSTS = TimedCosts(
    input_tokens=5,
    output_tokens=2,
    vision_tokens=3,
    tokens_per_layer=(5, 2),
    vision_per_layer=(3, 0),
    prefill_flops=1e3,
    method="vtw,k=1",
    asked="vtw,k=search",
    verified="verified",
    media=("turned",),
    latency_s=0.1,
    batch_rows=4,
)
