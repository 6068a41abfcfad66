from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, StaticCache

from tests.methods.examples import EXAMPLES
from tests.support.families import make_inputs, make_model
from tests.support.gates import fitted
from tests.support.oracle import KINDS
from vtw_eval import VTW, Baseline, DyVTE, FastV, PyramidDrop
from vtw_eval.cost import (
    PRESETS,
    Geometry,
    exact_decode_flops,
    exact_prefill_flops,
    kv_cache_bytes,
    projector_flops,
    vision_tower_flops,
)
from vtw_eval.cost.bench.subject import llava_config
from vtw_eval.cost.choice import choice_flops, read_flops, slots_per_layer
from vtw_eval.cost.dry_run import tokens_per_layer
from vtw_eval.cost.measure.flops import cache_bytes, fvcore_flops, torch_flops
from vtw_eval.cost.measure.fvcore_trace import HANDLES
from vtw_eval.cost.measure.meta import meta_method, meta_model
from vtw_eval.cost.measure.torch_counter import flop_counter
from vtw_eval.engine import Reads
from vtw_eval.engine.calls import cache_of_output, with_cache
from vtw_eval.methods.composite import parts_of

# --- counters


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.matmul, [(3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),  # broadcast: fvcore's own handle counts one of the two
        (torch.matmul, [(2, 3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        # 12582912: numpy, which fvcore asks, prints four digits
        (lambda q, k: torch.einsum("bghd,bgkd->bghk", q, k), [(2, 3, 4, 64), (2, 3, 8192, 64)], 2 * 3 * 4 * 64 * 8192),
        (lambda x, w: nn.functional.conv2d(x, w, padding="valid"), [(2, 3, 8, 8), (5, 3, 2, 2)], 2 * 5 * 49 * 12),
        (nn.functional.scaled_dot_product_attention, [(2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8)], 2 * 3 * 4 * 6 * 16),
    ],
)
def test_handles_count_what_torch_counts(function: Any, shapes: list[tuple[int, ...]], expected: int) -> None:
    tensors = tuple(torch.zeros(shape) for shape in shapes)
    with flop_counter() as counter:
        function(*tensors)
    analysis = FlopCountAnalysis(_Call(function), tensors).clear_op_handles().set_op_handle(**HANDLES)
    assert analysis.unsupported_ops_warnings(False).total() == expected
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize("count", [fvcore_flops, torch_flops])
@pytest.mark.parametrize("name", ["llava", "vipllava", "paligemma"])
def test_tower_and_projector_are_those_of_the_closed_form(name: str, count: Any) -> None:
    model = make_model(name)
    geometry = Geometry.from_config(model.config)
    inputs = make_inputs(name, model, KINDS["single"])
    found = count(model, inputs)
    assert found.vision == vision_tower_flops(geometry)
    assert found.projector == projector_flops(geometry)
    assert found.total == found.vision + found.projector + found.decoder
    alone = count(model, {"pixel_values": inputs["pixel_values"]}, call=model.get_image_features)
    assert (alone.vision, alone.projector, alone.decoder) == (found.vision, found.projector, 0)


def test_fvcore_names_what_it_does_not_count() -> None:
    model = make_model("llava", attn="eager")
    found = fvcore_flops(model, make_inputs("llava", model, KINDS["single"]))
    assert {"aten::softmax", "aten::layer_norm", "aten::silu"} <= set(found.uncounted)
    assert sum(found.operators.values()) == found.total


@pytest.mark.parametrize("count", [fvcore_flops, torch_flops])
@torch.no_grad()
def test_nothing_is_left_behind(count: Any) -> None:
    model = make_model("qwen2_vl")
    inputs = make_inputs("qwen2_vl", model, KINDS["single"])
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    before = model(**inputs).logits
    with VTW(k=2)(model):
        cache = cache_of_output(model(**inputs))
        held = cache_bytes(cache)
        position = torch.full((3, 1, 1), inputs["input_ids"].shape[1])
        step = with_cache(model, {"input_ids": torch.tensor([[20]]), "position_ids": position}, cache)
        first = count(model, step)
        assert cache_bytes(cache) == held
        assert count(model, step) == first
    assert torch.equal(model(**inputs).logits, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@torch.no_grad()
def test_a_generation_is_its_prefill_and_its_steps() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, KINDS["single"])
    geometry = Geometry.from_config(model.config)
    options = {"max_new_tokens": 3, "do_sample": False}
    with FastV(k=2)(model) as trace:
        found = torch_flops(model, {**inputs, **options}, call=model.generate)
    slots = slots_per_layer(trace)
    steps = sum(float(exact_decode_flops(slots + n, geometry)) for n in (1, 2))
    assert found.decoder == float(exact_prefill_flops(slots, geometry)) + steps
    assert found.method == choice_flops(trace, geometry)["scores"]


def test_a_failing_pass_leaves_no_hooks() -> None:
    model = make_model("llava")
    for count in (fvcore_flops, torch_flops):
        with pytest.raises(TypeError):
            count(model, {"input_ids": "no tensor"})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch._C._get_tracing_state() is None


@pytest.mark.parametrize("count", [fvcore_flops, torch_flops])
def test_a_model_that_hides_its_head_is_refused(count: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(ValueError, match="head"):
        count(model, make_inputs("llava", model, KINDS["single"]))


@pytest.mark.parametrize("count", [fvcore_flops, torch_flops])
def test_scores_that_change_nothing_are_counted_too(count: Any) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, KINDS["batch"])
    with PyramidDrop(r=0)(model) as trace:
        found = count(model, inputs)
    closed = choice_flops(trace, Geometry.from_config(model.config))
    assert found.method == closed["scores"] > 0


# --- traces


@pytest.mark.parametrize("label", ["vtw", "rand", "tome", "dyvte", "fastv+vtw"])
@torch.no_grad()
def test_slots_are_the_widths_that_the_layers_see(label: str) -> None:
    model = make_model("llava")
    widths: dict[int, int] = {}
    with fitted(EXAMPLES[label], model)(model) as trace:
        for i, layer in enumerate(model.model.language_model.layers):
            layer.self_attn.o_proj.register_forward_hook(lambda m, args, out, i=i: widths.update({i: out.shape[1]}))
        model(**make_inputs("llava", model, KINDS["mixed"]))
    assert slots_per_layer(trace).tolist() == [[widths[i] for i in range(4)]] * 3


def test_a_trace_that_has_not_run_has_no_slots() -> None:
    with Baseline()(make_model("llava")) as trace, pytest.raises(RuntimeError, match="run the model"):
        slots_per_layer(trace)


# --- KV cache


@pytest.mark.parametrize("label", ["baseline", "vtw", "tome"])
@pytest.mark.parametrize("name", ["llava_gqa", "mistral3_sliding", "gemma3_full_first", "cohere2_vision"])
@torch.no_grad()
def test_bytes_after_generation(name: str, label: str) -> None:
    model = make_model(name, dtype=torch.float32)
    geometry = Geometry.from_config(model.config)
    with EXAMPLES[label](model) as trace:
        output = model.generate(
            **make_inputs(name, model, KINDS["mixed"]), max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
    held = slots_per_layer(trace) + 3  # the last token is not fed back
    assert cache_bytes(cache_of_output(output)) == kv_cache_bytes(held, geometry, 4).tolist()


@torch.no_grad()
def test_a_static_cache_holds_its_buffer() -> None:
    model = make_model("llava_gqa", dtype=torch.float32)
    cache = StaticCache(model.config.text_config, max_cache_len=64)
    assert cache_bytes(cache) == [0] * 4
    model(**with_cache(model, make_inputs("llava_gqa", model, KINDS["single"]), cache))
    assert cache_bytes(cache) == [2 * 64 * 2 * 8 * 4] * 4


# --- meta device


SMALL = Geometry(name="small", layers=4, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, gated=True, vocab=64)


@pytest.mark.parametrize("label", [label for label, m in EXAMPLES.items() if not any(p.adaptive for p in parts_of(m))])
@torch.no_grad()
def test_a_replay_is_the_real_run(label: str) -> None:
    """The same model and prompt with values: counts are equal but for what is computed from scores."""
    method = EXAMPLES[label]
    with meta_method(method, model := meta_model(SMALL), text=9, vision=16, seed=1) as (trace, inputs):
        found = torch_flops(model, inputs)
        kept, closed, looks = trace.tokens_per_layer, read_flops(trace, SMALL), list(trace.looks)
    ids = torch.randint(63, (1, 25), generator=torch.Generator().manual_seed(1))
    vision = torch.zeros_like(ids, dtype=torch.bool)
    vision[:, 4:20] = True
    real = AutoModelForImageTextToText.from_config(llava_config(SMALL), attn_implementation="sdpa").eval()
    given = {**inputs, "inputs_embeds": real.get_input_embeddings()(ids)}
    if Reads.TOWER in method.reads:  # pixels go with ids; here what the tower's embeddings would give
        real.model.vision_tower.embeddings.forward = lambda pixel_values, **_: pixel_values
        given |= {"inputs_embeds": None, "input_ids": ids.masked_fill(vision, 63), "pixel_values": torch.rand(1, 17, 8)}
    with method(real, vision_mask=vision, prompt_ids=ids) as real_trace:
        expected = torch_flops(real, given)
    read, chosen = read_flops(real_trace, SMALL), choice_flops(real_trace, SMALL)
    assert (found.layers, found.head, found.method) == (expected.layers, expected.head, sum(closed.values()))
    assert expected.method == sum(chosen.values())
    if label.startswith("sparsevlm"):  # with how many queries it reads depends on the model
        assert [replace(look, queries=0) for look in looks] == [replace(look, queries=0) for look in real_trace.looks]
    else:
        assert closed == read
    assert torch.equal(kept, real_trace.tokens_per_layer)


@torch.no_grad()
def test_a_7b_model_without_memory() -> None:
    model = meta_model(PRESETS["llava-1.5-7b"])
    assert sum(parameter.numel() for parameter in model.parameters()) > 7e9
    for method in (VTW(), FastV()):
        with meta_method(method, model, text=66, vision=576) as (trace, inputs):
            cache = cache_of_output(model(**inputs))
        tokens = tokens_per_layer(method, 32, text=66, vision=576, name="llava-1.5-7b")
        assert trace.tokens_per_layer[0].tolist() == tokens.tolist()
        assert cache_bytes(cache) == [2 * 2 * 4096 * n for n in tokens.tolist()]


def test_what_the_meta_device_cannot_do() -> None:
    model = meta_model(SMALL)
    for text, vision in ((1, 5), (5, -1)):
        with pytest.raises(ValueError, match="a prompt needs"), meta_method(VTW(), model, text=text, vision=vision):
            pass
    with pytest.raises(ValueError, match="gates"), meta_method(DyVTE(), model, text=5, vision=5):
        pass
