"""Sizes from configs, presets and files; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig, Qwen2VLConfig

from vtw_eval.cost import PRESETS, Geometry, get_geometry


def test_llavas_preset_is_the_geometry_of_its_config() -> None:
    # The defaults of LlavaConfig are LLaVA-1.5-7B.
    assert replace(Geometry.from_config(LlavaConfig()), no_vision="", name="") == replace(
        PRESETS["llava-1.5-7b"], no_vision="", name=""
    )


def test_qwens_presets_are_the_geometries_of_their_configs() -> None:
    for name, heads, kv_heads in (("qwen2-vl-2b", 12, 2), ("qwen2-vl-7b", 28, 4)):
        preset = PRESETS[name]
        text = {
            "hidden_size": preset.hidden,
            "intermediate_size": preset.ffn,
            "num_hidden_layers": 28,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": preset.vocab,
        }
        found = Geometry.from_config(Qwen2VLConfig(text_config=text), name)
        assert found.vision is None and "qwen2_vl_vision" in found.no_vision
        assert replace(found, no_vision="") == replace(preset, no_vision="")


@pytest.mark.parametrize(
    ("name", "tied", "billions"),
    [
        ("llava-1.5-7b", False, 6.74),  # Vicuna-7B
        ("llava-1.5-13b", False, 13.02),
        ("qwen2-vl-2b", True, 1.54),  # Qwen2-1.5B
        ("qwen2-vl-7b", False, 7.62),
        ("internvl2-4b", False, 3.82),  # Phi-3-mini
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, tied: bool, billions: float) -> None:
    preset = PRESETS[name]
    parameters = preset.layers * preset.layer_macs + (1 if tied else 2) * preset.head_macs
    assert parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_presets_are_called_by_their_names() -> None:
    assert {name: preset.name for name, preset in PRESETS.items()} == {name: name for name in PRESETS}
    assert get_geometry("lisa-13b").layers == 40
    small = get_geometry("llava-0.5b")
    assert 0.3e9 < small.layers * small.layer_macs + 2 * small.head_macs < 0.6e9


@pytest.mark.parametrize(
    ("model_type", "gated", "kv_heads"),
    [("opt", False, 12), ("phi", False, 32), ("phi3", True, 32), ("qwen2", True, 32)],
)
def test_plain_fused_and_text_only_models(model_type: str, gated: bool, kv_heads: int) -> None:
    geometry = Geometry.from_config(AutoConfig.for_model(model_type))
    assert (geometry.gated, geometry.kv_heads) == (gated, kv_heads)
    assert geometry.vision is None and "no vision tower" in geometry.no_vision


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("mixtral", "mixture of experts (num_experts=8)"),
        ("qwen2_moe", "mixture of experts"),
        ("deepseek_v3", "mixture of experts"),
        ("qwen3_vl_moe", "mixture of experts"),
        ("llama4", "mixture of experts"),
        ("gemma3n", "differ from each other"),
        ("mllama", "differ from each other"),
        ("qwen3_5", "differ from each other"),
        ("falcon_h1", "no closed form"),
        ("mamba", "num_attention_heads"),
        ("t5", "T5Config"),
    ],
)
def test_models_without_closed_form_are_refused(model_type: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        Geometry.from_config(AutoConfig.for_model(model_type))
    message = str(caught.value)
    assert words in message and len(message) < 300


def test_siglip_with_a_pooling_head_is_left_out_with_the_reason() -> None:
    config: PreTrainedConfig = AutoConfig.for_model("llava_onevision")
    config.vision_config.vision_use_head = True
    geometry = Geometry.from_config(config)
    assert geometry.vision is None and "vision_use_head" in geometry.no_vision


def test_folders_and_files_are_read(tmp_path: Path) -> None:
    LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": 3}).save_pretrained(tmp_path / "my-llava")
    folder = get_geometry(tmp_path / "my-llava")
    assert (folder.name, folder.layers, folder.vision_tokens) == ("my-llava", 3, 576)
    file = get_geometry(tmp_path / "my-llava" / "config.json")
    assert replace(file, name="my-llava") == folder


def test_unknown_names_and_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'llava-1.5-7'; did you mean 'llava-1.5-7b'\?.*qwen2-vl-2b"):
        get_geometry("llava-1.5-7")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        get_geometry(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no config that transformers can read"):
        get_geometry(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat", "auto_map": {"AutoConfig": "a.B"}}')
    with pytest.raises(ValueError, match="no config that transformers can read"):
        get_geometry(tmp_path)
