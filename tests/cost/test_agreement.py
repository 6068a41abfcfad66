"""exact == fvcore == torch to the FLOP, KV bytes to the byte, and what a method computes itself by a formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.agreement_table import QWEN2_VL_7B, agree, agree_large
from tests.methods.examples import EXAMPLES
from tests.support.families import DENSE
from vtw_eval import VTW, FastV, Method
from vtw_eval.cost import PRESETS, Geometry


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("label", ["vtw", "fastv"])
def test_every_family(name: str, label: str) -> None:
    found = agree(name, label, "mixed")
    assert found.differences == []
    assert found.padding > 0


@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_vl", "mistral3_sliding"])
@pytest.mark.parametrize("label", [label for label in EXAMPLES if label not in ("vtw", "fastv")])
def test_every_method(name: str, label: str) -> None:
    assert agree(name, label, "mixed").differences == []


@pytest.mark.parametrize("label", ["vtw", "pyramiddrop", "tome"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_single_row_has_no_padding(label: str, attention: str) -> None:
    found = agree("llava_next", label, "single", attention)
    assert found.differences == []
    assert found.padding == 0


def test_a_multiply_add_more_is_a_difference() -> None:
    found = agree("llava", "fastv", "single")
    assert len(replace(found, exact=found.exact + 2).differences) == 2
    assert len(replace(found, decode=found.decode + 2).differences) == 2
    assert len(replace(found, choice={"scores": found.choice["scores"] - 2}).differences) == 2
    assert len(replace(found, kv=[0, *found.kv[1:]]).differences) == 1


@pytest.mark.parametrize(("name", "method"), [("llava-1.5-7b", FastV()), ("qwen2-vl-7b", VTW())])
def test_large_geometries(name: str, method: Method) -> None:
    assert [line for found in agree_large(name, [method]) for line in found.unexplained] == []


def test_the_preset_is_the_architecture() -> None:
    preset, config = PRESETS["qwen2-vl-7b"], Geometry.from_config(QWEN2_VL_7B)
    for size in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "gated", "vocab"):
        assert getattr(preset, size) == getattr(config, size), size
