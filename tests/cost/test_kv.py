"""KV-cache bytes against the real cache tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.families import make_inputs, make_model
from vtw_eval import VTW, Baseline, FastV, Method, ToMe
from vtw_eval.cost import PRESETS, Geometry, kv_cache_bytes
from vtw_eval.engine.calls import cache_of_output

ROWS = [["t3", "i", "t9"], ["t2", "i", "t2", "i", "t3"]]


@pytest.mark.parametrize("family", ["llava_gqa", "paligemma", "glm4v", "gemma3", "cohere2_vision"])
@pytest.mark.parametrize("method", [Baseline(), VTW(k=2), FastV(k=1), ToMe()], ids=lambda m: m.key)
def test_bytes_equal_those_of_the_cache(family: str, method: Method) -> None:
    model = make_model(family, attn="sdpa", dtype=torch.float32)
    inputs = make_inputs(family, model, ROWS)
    with torch.no_grad(), method(model) as trace:
        cache = cache_of_output(model(**inputs, use_cache=True))
    held = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    computed = kv_cache_bytes(trace.tokens_per_layer, Geometry.from_config(model.config), 4)
    assert computed.tolist() == held


def test_one_row_needs_no_batch_axis_and_windows_hold_one_less() -> None:
    geometry = replace(PRESETS["qwen2-vl-2b"], layers=2, windows=(None, 8))
    per_token = 2 * 2 * 128 * 2
    assert kv_cache_bytes([10, 10], geometry, 2).tolist() == [10 * per_token, 7 * per_token]
    assert kv_cache_bytes([[10, 10], [4, 3]], geometry, 2).tolist() == [20 * per_token, 14 * per_token]
    assert kv_cache_bytes([5.5, 5.5], geometry, 2).tolist() == [5.5 * per_token] * 2
