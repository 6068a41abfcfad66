"""What one answer cost, from the trace of its forward to the sample that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtw_eval.record.kept import KeptSet, unpack
from vtw_eval.record.strict import Strict


class SampleCosts(Strict):
    """Costs of one answer that belong to the result: equal results have equal costs."""

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
    updated_per_layer: tuple[int, ...] = ()
    """Prompt tokens that each decoder layer updated; empty where these are all that entered it."""
    kept: str = ""
    """Which vision tokens entered which layers, see :mod:`vtw_eval.record.kept`; empty where all did that entered any
    layer, or where an earlier version did not write it."""
    prefill_flops: float
    """FLOPs of the prefill by :func:`vtw_eval.cost.eq1_prefill_flops`."""
    method: str
    """The method with all its parameters, also those that were searched or depend on the model."""
    asked: str = ""
    """The method before a search; the same if there was none. Empty where an earlier version did not write it."""
    method_code: str = ""
    """Hash of the files of a method that is not of this project; empty for ours."""
    verified: str = "not verified"
    """Whether the method was compared with masked attention on the installed packages, and on which."""
    media: tuple[str, ...] = ()
    """A short reason for each way in which the model was shown something else than a viewer shows of the media."""

    def kept_sets(self) -> list[KeptSet] | None:
        """Return which vision tokens entered which layers, None where it is not known.

        Raises
        ------
        ValueError
            If what was written does not fit the numbers of tokens.
        """
        return unpack(self.kept, self.vision_tokens, self.vision_per_layer)


class TimedCosts(SampleCosts):
    """Costs of an answer as it was made, with what belongs to the run alone."""

    latency_s: float | None
    """Seconds of generation: those of the batch divided by its rows. None where prompts shared what they have in
    common: no part of the time is that of one answer."""
    batch_rows: int
    """Answers made together; latencies compare between runs of the same batch size only."""

    def untimed(self) -> SampleCosts:
        """Return what belongs to the result."""
        return SampleCosts(**{name: getattr(self, name) for name in SampleCosts.model_fields})

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON types."""
        return self.model_dump(mode="json")


def mean_costs(costs: Sequence[TimedCosts]) -> dict[str, float]:
    """Return means over samples by name; ``layer_tokens`` and ``layer_vision_tokens`` are means over layers too.

    ``verified`` is the share of answers whose method was verified: a harness keeps means of numbers only.
    ``latency_s`` is missing unless every answer has one.
    """
    if not costs:
        return {}
    n = len(costs)
    latency = mean_latency([cost.latency_s for cost in costs])
    return {
        "input_tokens": sum(c.input_tokens for c in costs) / n,
        "vision_tokens": sum(c.vision_tokens for c in costs) / n,
        "layer_tokens": sum(sum(c.tokens_per_layer) / len(c.tokens_per_layer) for c in costs) / n,
        "layer_vision_tokens": sum(sum(c.vision_per_layer) / len(c.vision_per_layer) for c in costs) / n,
        "prefill_flops": sum(c.prefill_flops for c in costs) / n,
        "verified": sum(c.verified.startswith("verified") for c in costs) / n,
        **({} if latency is None else {"latency_s": latency}),
    }


def mean_latency(seconds: Sequence[float | None]) -> float | None:
    """Return the mean latency, None where an answer has none of its own, or there are none."""
    known = [value for value in seconds if value is not None]
    return sum(known) / len(known) if known and len(known) == len(seconds) else None
