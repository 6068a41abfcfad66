"""The papers' convention, on what the methods here really do."""

from __future__ import annotations

import pytest
import torch

from vtw_eval import parse_method
from vtw_eval.cost import PRESETS, profiler_prefill_flops, projector_flops, vision_tower_flops
from vtw_eval.cost.dry_run import tokens_per_layer

GEOMETRY = PRESETS["llava-1.5-7b"]


def test_it_is_linear_with_the_papers_dimensions() -> None:
    # 2 s [L (4 h^2 + 3 h m) + h vocab] of LLaVA-1.5-7B and 13B, per token
    assert profiler_prefill_flops([1.0] * 32, GEOMETRY) / 1e12 == pytest.approx(1.32142e-2, rel=1e-5)
    assert profiler_prefill_flops([1.0] * 40, PRESETS["llava-1.5-13b"]) / 1e12 == pytest.approx(2.57032e-2, rel=1e-5)


def test_it_is_the_average_of_profiles_of_the_unchanged_model() -> None:
    tokens = torch.tensor([[9.0] * 10 + [4.0] * 22, [7.5] * 32], dtype=torch.float64)
    whole = [2 * s * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000) for s in tokens.flatten().tolist()]
    expected = torch.tensor(whole).view(2, 32).mean(dim=1)
    torch.testing.assert_close(profiler_prefill_flops(tokens, GEOMETRY).float(), expected)


@pytest.mark.parametrize(
    ("spec", "tflops"),
    [
        ("baseline", 8.48),
        ("vtw,k=16", 4.60),
        ("fastv,k=2,r=0.5", 4.91),
        ("fastv,k=3,r=0.5", 5.03),
        ("pyramiddrop", 4.39),
    ],
)
def test_prefills_of_llava_with_the_head_on_the_tokens_left(spec: str, tflops: float) -> None:
    tokens = tokens_per_layer(parse_method(spec), 32, text=65.9, vision=576)
    assert f"{profiler_prefill_flops(tokens, GEOMETRY, head='left') / 1e12:.2f}" == f"{tflops:.2f}"


@pytest.mark.parametrize(
    ("preset", "spec", "tflops"),
    [
        ("llava-1.5-7b", "fastv", "4.91"),
        ("llava-1.5-7b", "rand", "4.68"),
        ("llava-1.5-13b", "vtw", "9.10"),
    ],
)
def test_the_methods_themselves_cost_what_table_2_prints(preset: str, spec: str, tflops: str) -> None:
    geometry = PRESETS[preset]
    assert geometry.vision_tokens is not None
    vision = geometry.vision_tokens
    tokens = tokens_per_layer(parse_method(spec), geometry.layers, text=65.9, vision=vision, name=preset)
    assert f"{profiler_prefill_flops(tokens, geometry) / 1e12:.2f}" == tflops


def test_tower_and_unknown_head() -> None:
    tokens = [10.0] * 32
    tower = profiler_prefill_flops(tokens, GEOMETRY, tower=True) - profiler_prefill_flops(tokens, GEOMETRY)
    assert tower.item() == pytest.approx(vision_tower_flops(GEOMETRY) + projector_flops(GEOMETRY))
    with pytest.raises(ValueError, match="'mean' or 'left'"):
        profiler_prefill_flops(tokens, GEOMETRY, head="last")  # type: ignore[arg-type]
