"""The exact convention against loops over single matrix products, real matrices and torch's counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.families import DENSE, make_inputs, make_model
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost import (
    PRESETS,
    Geometry,
    exact_decode_flops,
    exact_prefill_flops,
    projector_flops,
    vision_tower_flops,
)
from vtw_eval.cost.measure.torch_counter import flop_counter

GROUPED = Geometry(name="grouped", layers=3, hidden=10, heads=4, kv_heads=2, head_dim=6, ffn=14, gated=True, vocab=50)


def product(rows: int, inner: int, columns: int) -> int:
    """FLOPs of one matrix product."""
    return 2 * rows * inner * columns


def one_layer(queries: int, keys: int, g: Geometry) -> int:
    total = product(queries, g.hidden, g.heads * g.head_dim)  # q
    total += 2 * product(queries, g.hidden, g.kv_heads * g.head_dim)  # k, v
    for _ in range(g.heads):
        total += product(queries, g.head_dim, keys) + product(queries, keys, g.head_dim)
    total += product(queries, g.heads * g.head_dim, g.hidden)  # o
    for _ in range(2 if g.gated else 1):
        total += product(queries, g.hidden, g.ffn)
    return total + product(queries, g.ffn, g.hidden)


@pytest.mark.parametrize("geometry", [GROUPED, replace(GROUPED, gated=False, kv_heads=4, layers=1)])
def test_prefill_and_decode_equal_the_sum_over_matrix_products(geometry: Geometry) -> None:
    tokens = [7, 7, 3][: geometry.layers]
    layers = sum(one_layer(s, s, geometry) for s in tokens)
    assert exact_prefill_flops(tokens, geometry, head="none") == layers
    assert exact_prefill_flops(tokens, geometry) == layers + product(1, geometry.hidden, geometry.vocab)
    last = product(tokens[-1], geometry.hidden, geometry.vocab)
    assert exact_prefill_flops(tokens, geometry, head="all") == layers + last
    step = sum(one_layer(1, s + 1, geometry) for s in tokens) + product(1, geometry.hidden, geometry.vocab)
    assert exact_decode_flops([s + 1 for s in tokens], geometry) == step


def test_a_prompt_of_one_token_costs_a_decode_step() -> None:
    assert exact_prefill_flops([1, 1, 1], GROUPED) == exact_decode_flops([1, 1, 1], GROUPED)


def test_rows_are_counted_apart_and_lengths_may_be_means() -> None:
    rows = torch.tensor([[5, 5, 2], [9, 4, 4]])
    both = exact_prefill_flops(rows, GROUPED)
    assert both.tolist() == [float(exact_prefill_flops(row, GROUPED)) for row in rows]
    linear = exact_prefill_flops([65.9] * 3, GROUPED, head="none") - 3 * 4 * 65.9**2 * 24
    assert linear.item() == pytest.approx(3 * 2 * 65.9 * GROUPED.layer_macs)


@pytest.mark.parametrize("tokens", [[1, 2], [1, 2, -3], [1, 2, float("nan")], 5])
def test_counts_that_do_not_fit_are_refused(tokens: object) -> None:
    with pytest.raises(ValueError, match=r"3 layers|finite and not negative"):
        exact_prefill_flops(tokens, GROUPED)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"3 layers|finite and not negative"):
        exact_decode_flops(tokens, GROUPED)  # type: ignore[arg-type]


def test_unknown_head_and_towers_without_closed_form_are_refused() -> None:
    with pytest.raises(ValueError, match="'last', 'all' or 'none'"):
        exact_prefill_flops([1, 1, 1], GROUPED, head="first")  # type: ignore[arg-type]
    for call in (vision_tower_flops, projector_flops, lambda g: exact_prefill_flops([1] * g.layers, g, tower=True)):
        with pytest.raises(ValueError, match="native resolution"):
            call(PRESETS["qwen2-vl-2b"])


def test_a_decode_step_of_a_sliding_layer_looks_at_its_window() -> None:
    sliding = replace(GROUPED, windows=(None, 4, 4))
    assert exact_decode_flops([9, 9, 2], sliding) == exact_decode_flops([9, 4, 2], GROUPED)


@pytest.mark.parametrize("family", DENSE)
def test_the_geometry_of_every_family_has_the_weights_of_its_decoder(family: str) -> None:
    model = make_model(family, dtype=torch.float32)
    geometry = Geometry.from_config(model.config)
    layers = find_anatomy(model).layers
    weights = [m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
    assert geometry.layers * geometry.layer_macs == sum(weights)
    assert geometry.head_macs == model.get_output_embeddings().weight.numel()
    attention = layers[0].self_attn  # type: ignore[union-attr]
    assert geometry.heads * geometry.head_dim == attention.o_proj.in_features  # type: ignore[union-attr]
    assert geometry.head_dim == attention.head_dim  # type: ignore[union-attr]
    assert 2 * geometry.kv_heads * geometry.head_dim == sum(
        getattr(attention, name).out_features for name in ("k_proj", "v_proj")
    )


@pytest.mark.parametrize("family", ["llava", "vipllava", "llava_next", "llava_onevision", "video_llava", "paligemma"])
def test_tower_and_projector_equal_torchs_counter(family: str) -> None:
    model = make_model(family, dtype=torch.float32)
    geometry = Geometry.from_config(model.config)
    inputs = make_inputs(family, model, [["t3", "i", "t4"]])
    features = {key: value for key, value in inputs.items() if key.startswith(("pixel_values", "image_sizes"))}
    pixels = next(value for key, value in features.items() if key.startswith("pixel_values"))
    assert geometry.vision is not None
    images = pixels.flatten(end_dim=-4).shape[0]
    geometry = replace(geometry, vision=replace(geometry.vision, images=images))
    with flop_counter() as counter, torch.no_grad():
        model.model.get_image_features(**features)
    assert counter.get_total_flops() == vision_tower_flops(geometry) + projector_flops(geometry)


def test_the_tower_of_llava_is_what_dyvtes_tables_hold() -> None:
    # ViT-L/14-336: 0.3485 TFLOPs in matrices, 0.0327 in attention, 0.0007 in the patches; projector 0.0242 and 0.0362.
    assert vision_tower_flops(PRESETS["llava-1.5-7b"]) / 1e12 == pytest.approx(0.3485 + 0.0327 + 0.0007, abs=2e-4)
    assert projector_flops(PRESETS["llava-1.5-7b"]) / 1e12 == pytest.approx(0.0242, abs=5e-5)
    assert projector_flops(PRESETS["llava-1.5-13b"]) / 1e12 == pytest.approx(0.0362, abs=5e-5)
