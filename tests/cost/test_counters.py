"""Counters that a release of torch, fvcore or transformers no longer feeds: refused, and never a smaller number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from tests.support.families import make_inputs, make_model
from tests.support.oracle import KINDS
from vtw_eval.cost.bench import memory
from vtw_eval.cost.measure import fvcore_trace, torch_counter
from vtw_eval.cost.measure.flops import fvcore_flops, torch_flops
from vtw_eval.versions import UpstreamChangedError


@pytest.fixture(autouse=True)
def _unchecked() -> Any:
    """Let each test make the checks anew."""
    checks = (torch_counter.check_counter, fvcore_trace.check_fvcore, memory.check_profiler)
    for check in checks:
        check.cache_clear()
    yield
    for check in checks:
        check.cache_clear()


# --- torch's counter


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_counted(device: str, dtype: torch.dtype) -> None:
    torch_counter.check_counter(device, dtype)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_cpu_is_the_closed_form(kv_heads: int, masked: bool) -> None:
    query, key, value = torch.zeros(2, 4, 5, 8), torch.zeros(2, kv_heads, 7, 8), torch.zeros(2, kv_heads, 7, 8)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool) if masked else None
    with torch_counter.flop_counter() as counter, torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=kv_heads < 4)
    assert counter.get_total_flops() == 2 * 2 * 4 * 5 * 7 * (8 + 8)


def test_only_formulas_that_torch_lacks_are_ours() -> None:
    assert not set(torch_counter.missing_formulas()) & set(flop_registry)
    known = {*torch_counter.missing_formulas(), *flop_registry}
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in known


@pytest.fixture
def without_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away torch's formula for a CPU's attention, and ours: torch before 2.15, or an operator of a new name."""
    monkeypatch.setattr(torch_counter, "_FUSED", ())
    monkeypatch.delitem(flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, raising=False)


@pytest.mark.usefixtures("without_formula")
def test_attention_without_formula_is_refused() -> None:
    with pytest.raises(UpstreamChangedError, match=r"flash_attention_for_cpu as 0.*torch .* is installed"):
        torch_counter.check_counter("cpu")
    model = make_model("llava", attn="sdpa")
    with pytest.raises(UpstreamChangedError, match="flash_attention_for_cpu"):
        torch_flops(model, make_inputs("llava", model, KINDS["single"]))


@pytest.mark.usefixtures("without_formula")
def test_attention_without_formula_is_noticed_where_it_runs() -> None:
    query = torch.zeros(1, 2, 3, 8)
    refused = pytest.raises(UpstreamChangedError, match="flash_attention_for_cpu")
    with refused, torch_counter.flop_counter(), torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(query, query, query)


def test_a_formula_that_counts_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.setattr(torch_counter, "missing_formulas", lambda: {operator: lambda *_, **__: 7})
    with pytest.raises(UpstreamChangedError, match=r"finds 7 FLOPs in an attention of 61440 on cpu"):
        torch_counter.check_counter("cpu")


# --- fvcore


def test_fvcore_counts_this_torchs_traces() -> None:
    fvcore_trace.check_fvcore()


def _broken_state() -> Any:
    raise AttributeError("module 'torch._C' has no attribute '_get_tracing_state'")


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("torch._C._get_tracing_state", _broken_state, "cannot read a trace of this torch .AttributeError"),
        ("vtw_eval.cost.measure.fvcore_trace._trace_into", lambda state: None, "instead of 204 multiply-adds"),
        ("vtw_eval.cost.measure.fvcore_trace.HANDLES", {}, "instead of 204 multiply-adds"),
    ],
)
def test_a_trace_that_fvcore_cannot_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: Callable[..., Any], message: str
) -> None:
    model = make_model("llava")
    inputs = make_inputs("llava", model, KINDS["single"])
    monkeypatch.setattr(name, replacement)
    with pytest.raises(UpstreamChangedError, match=rf"(?s){message}.*fvcore .* is installed.*torch .* is installed"):
        fvcore_flops(model, inputs)


# --- parts of a model


@pytest.mark.parametrize("count", [fvcore_flops, torch_flops])
@pytest.mark.parametrize(("part", "missing"), [("_TOWERS", "vision_tower"), ("_PROJECTORS", "multi_modal_projector")])
def test_a_part_of_another_name_is_told(count: Any, part: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava")
    inputs = make_inputs("llava", model, KINDS["single"])
    model(**inputs)  # transformers leaves hooks of its own
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    monkeypatch.setattr(f"vtw_eval.cost.measure.flops.{part}", frozenset())
    with pytest.raises(UpstreamChangedError, match=rf"{missing}.* of LlavaForConditionalGeneration belongs to no part"):
        count(model, inputs)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_products_between_the_parts_are_told() -> None:
    model = make_model("llava")
    inputs = make_inputs("llava", model, KINDS["single"])

    def call(**given: Any) -> None:
        model(**given)
        torch.zeros(100, 100) @ torch.zeros(100, 100)

    with pytest.raises(UpstreamChangedError, match="2000000 FLOPs after head that belong to no part of Llava"):
        torch_flops(model, inputs, call=call)


# --- memory of a CPU


def test_the_profiler_tells_of_memory() -> None:
    memory.check_profiler()
    assert 4_000_000 <= memory.peak_bytes(lambda: torch.empty(1_000_000), torch.device("cpu")) < 4_001_000


def test_a_profiler_that_tells_of_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_EVENT", "[renamed]")
    with pytest.raises(UpstreamChangedError, match=r"saw a peak of 0 bytes.*torch .* is installed"):
        memory.peak_bytes(lambda: torch.empty(1_000_000), torch.device("cpu"))


def test_a_profiler_without_its_events_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_changes", lambda recorded: recorded.no_such_attribute)
    with pytest.raises(UpstreamChangedError, match=r"does not tell of allocations.*no_such_attribute"):
        memory.check_profiler()
