"""Costs of a cell: means over its samples, by every convention that has a closed form for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vtw_eval.cost import Geometry, exact_prefill_flops, kv_cache_bytes, profiler_prefill_flops
from vtw_eval.record.cell import CellCosts, Sample
from vtw_eval.record.costs import mean_latency
from vtw_eval.record.metrics import mean


class CostModel:
    """What a token costs in a loaded model.

    Parameters
    ----------
    config
        The model's transformers config.
    dtype
        Of its weights and its KV cache.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self.bytes = dtype.itemsize
        self.config = config
        try:
            self.geometry: Geometry | None = Geometry.from_config(config)
        except ValueError:
            self.geometry = None  # remote code, say: Eq. 1 and the cache are still known

    def of(self, samples: Sequence[Sample], seconds: Sequence[float | None]) -> CellCosts | None:
        """Return the mean costs of the documents of a cell, None if there are none.

        Parameters
        ----------
        samples
            The documents.
        seconds
            Seconds of each document, None for those that have none of their own.
        """
        costs = [sample.costs for sample in samples if sample.costs is not None]
        if not costs or len(costs) < len(samples):
            return None
        tokens = np.array([cost.tokens_per_layer for cost in costs], dtype=np.float64)
        vision = np.array([cost.vision_per_layer for cost in costs], dtype=np.float64)
        updated = np.array([c.updated_per_layer or c.tokens_per_layer for c in costs], dtype=np.float64)
        flops = {"eq1": mean([cost.prefill_flops for cost in costs])}
        if self.geometry is not None:
            flops["profiler"] = mean(profiler_prefill_flops(tokens, self.geometry, updated=updated).tolist())
            flops["exact"] = mean(exact_prefill_flops(tokens, self.geometry, updated=updated).tolist())
        return CellCosts(
            prefill_flops=flops,
            kv_bytes=mean([self._cache(row) for row in tokens]),
            input_tokens=mean([cost.input_tokens for cost in costs]),
            vision_tokens=mean([cost.vision_tokens for cost in costs]),
            tokens_per_layer=tokens.mean(axis=0).tolist(),
            vision_per_layer=vision.mean(axis=0).tolist(),
            latency_s=mean_latency(seconds),
        )

    def _cache(self, tokens: np.ndarray) -> float:
        """Bytes of the KV cache after the prefill of one prompt alone."""
        if self.geometry is not None:
            return float(kv_cache_bytes(tokens, self.geometry, self.bytes).sum())
        text = getattr(self.config, "llm_config", None) or self.config.get_text_config(decoder=True)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return float(2 * heads * width * self.bytes * tokens.sum())
