"""What one answer cost, as it is written next to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SampleCosts:
    """Costs of one answer, from the trace of the forward that made it."""

    input_tokens: int
    """Tokens of the prompt, vision tokens included, padding left out."""
    output_tokens: int
    """Generated tokens, the one that ends the answer included."""
    vision_tokens: int
    """Vision tokens of the prompt."""
    tokens_per_layer: tuple[int, ...]
    """Prompt tokens that entered each decoder layer."""
    vision_per_layer: tuple[int, ...]
    """Vision tokens that entered each decoder layer."""
    prefill_flops: float
    """FLOPs of the prefill by :func:`vtw_eval.cost.eq1_prefill_flops`."""
    latency_s: float
    """Seconds of generation: those of the batch divided by its rows."""
    batch_rows: int
    """Rows of that batch; latencies compare between runs of the same batch size only."""
    method: str
    """The method with all its parameters, also those that were searched or depend on the model."""
    asked: str
    """The method before a search; the same if there was none."""
    verified: str
    """Whether the method was compared with masked attention on the installed packages, and on which."""
    media: tuple[str, ...] = ()
    """A short reason for each way in which the model was shown something else than a viewer shows of the media."""

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON types."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "vision_tokens": self.vision_tokens,
            "tokens_per_layer": list(self.tokens_per_layer),
            "vision_per_layer": list(self.vision_per_layer),
            "prefill_flops": self.prefill_flops,
            "latency_s": self.latency_s,
            "batch_rows": self.batch_rows,
            "method": self.method,
            "asked": self.asked,
            "verified": self.verified,
            "media": list(self.media),
        }


def mean_costs(costs: Sequence[SampleCosts]) -> dict[str, float]:
    """Return means over samples by name; ``layer_tokens`` and ``layer_vision_tokens`` are means over layers too.

    ``verified`` is the share of answers whose method was verified: a harness keeps means of numbers only.
    """
    if not costs:
        return {}
    n = len(costs)
    return {
        "input_tokens": sum(c.input_tokens for c in costs) / n,
        "vision_tokens": sum(c.vision_tokens for c in costs) / n,
        "layer_tokens": sum(sum(c.tokens_per_layer) / len(c.tokens_per_layer) for c in costs) / n,
        "layer_vision_tokens": sum(sum(c.vision_per_layer) / len(c.vision_per_layer) for c in costs) / n,
        "prefill_flops": sum(c.prefill_flops for c in costs) / n,
        "latency_s": sum(c.latency_s for c in costs) / n,
        "verified": sum(c.verified.startswith("verified") for c in costs) / n,
    }
