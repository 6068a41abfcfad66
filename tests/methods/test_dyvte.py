"""DyVTE: decisions against a naive loop over gates by hand, and gates that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.support.families import make_inputs, make_model
from tests.support.gates import decided, fitted, random_gates
from tests.support.oracle import KINDS, models
from tests.support.shapes import encode
from vtw_eval import VTW, Baseline, Composite, DyVTE, FastV, parse_method
from vtw_eval.anatomy import find_anatomy
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.methods.dyvte.gates import Gates, final_norm, load_gates, same_weights, save_gates
from vtw_eval.methods.dyvte.method import exit_layers
from vtw_eval.shapes.data import held_out
from vtw_eval.verify.oracle import vision_positions

ROWS = [row for kind in ("single", "batch", "multi-image", "mixed") for row in KINDS[kind]]
ROWS += [["t2", "i", "t1"], ["t2", "I", "t2"], ["t3", "i", "t12", "i", "t8"]]


def naive_exit(weights: dict[str, Tensor], states: tuple[Tensor, ...], vision: Tensor) -> int:
    """Go through the layers of one row without padding until a gate says exit."""
    places = vision.nonzero().flatten().tolist()
    if not places:
        return -1
    for layer, state in enumerate(states[1:-1]):
        text = state[0, places[-1] + 1 :]
        mean = text[:-1].mean(dim=0) if len(text) > 1 else text[-1]
        inner = torch.cat([mean, text[-1]]).float() @ weights[f"after.{layer}.w1"].float()
        inner = inner / 2 * (1 + torch.erf(inner / math.sqrt(2)))
        keep, leave = (inner @ weights[f"after.{layer}.w2"].float()).softmax(dim=0).tolist()
        if leave > keep:
            return layer
    return len(states) - 2


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("first", [None, FastV(k=1, r=0.5)])
@torch.no_grad()
def test_each_row_exits_where_a_naive_loop_says(name: str, first: FastV | None) -> None:
    model, _ = models(name, "sdpa")
    seen = set()
    for seed in range(6):
        weights = load_file(random_gates(model, seed))
        method = fitted(Composite(parts=(first, DyVTE())) if first else DyVTE(), model, seed).bind(find_anatomy(model))
        expected = []
        for row in ROWS:
            inputs = make_inputs(name, model, [row])
            with (first or Baseline())(model):
                states = model(**inputs, output_hidden_states=True).hidden_states
            expected.append(naive_exit(weights, states, vision_positions(model, inputs["input_ids"])[0]))
            with method(model) as trace:
                model(**inputs)
            assert exit_layers(trace).tolist() == expected[-1:]
        for padding in ("left", "right"):
            with method(model) as trace:
                model(**make_inputs(name, model, ROWS, padding=padding))
            assert exit_layers(trace).tolist() == expected
        seen |= set(expected)
    assert len(seen) > 3, "the gates hardly differ"


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_generation_decides_once_from_the_prompt(use_cache: bool) -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, ROWS)
    dyvte = fitted(DyVTE(), model, 1)
    with dyvte(model) as trace:
        model(**inputs)
        expected = exit_layers(trace)
        model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache, num_beams=2)
        assert torch.equal(exit_layers(trace), expected.repeat_interleave(2))


def fixed_gates(model: torch.nn.Module, layer: int, path: Path) -> DyVTE:
    """Gates that all exit after one layer."""
    anatomy = find_anatomy(model)
    gates = Gates(anatomy.hidden_size, anatomy.num_layers, inner=4)
    for number, gate in enumerate(gates.after):
        decided(gate, number == layer)
    save_gates(gates, path)
    return DyVTE(gates=str(path))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@torch.no_grad()
def test_an_exit_after_layer_l_is_vtw_at_l_plus_1_and_after_the_last_nothing(layer: int, tmp_path: Path) -> None:
    model, _ = models("qwen2_vl", "sdpa")
    inputs = make_inputs("qwen2_vl", model, KINDS["mixed"])
    text = inputs["attention_mask"].bool() & ~vision_positions(model, inputs["input_ids"])
    with fixed_gates(model, layer, tmp_path / "gates.safetensors")(model) as trace:
        logits = model(**inputs).logits
    assert exit_layers(trace).tolist() == [layer, -1, layer]
    with VTW(k=layer + 1)(model):
        expected = model(**inputs).logits
    assert torch.equal(logits[text], expected[text])
    if layer == 3:
        assert torch.equal(logits, model(**inputs).logits)


@torch.no_grad()
def test_gates_see_only_rows_with_vision_and_only_until_they_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models("llava", "sdpa")
    asked = []
    original = Gates.exits

    def spy(self: Gates, layer: int, features: Tensor) -> Tensor:
        asked.append((layer, len(features)))
        return original(self, layer, features)

    monkeypatch.setattr(Gates, "exits", spy)
    with fitted(DyVTE(), model, 1)(model) as trace:
        model(**make_inputs("llava", model, ROWS))
    exits = exit_layers(trace)
    counts = [(layer, int((exits >= layer).sum())) for layer in range(3)]
    assert asked == [(layer, count) for layer, count in counts if count]


def test_gates_are_read_once_however_often_the_method_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models("llava", "sdpa")
    reads = []
    monkeypatch.setattr("vtw_eval.methods.dyvte.method.load_gates", lambda path: reads.append(path) or load_gates(path))
    anatomy = find_anatomy(model)
    for method in (fitted(DyVTE(), model), fitted(Composite(parts=(FastV(), DyVTE())), model)):
        reads.clear()
        bound = method.bind(anatomy)
        for _ in range(3):
            with bound(model):
                pass
        assert len(reads) == 1


def test_gates_do_not_stand_in_the_way_of_gradients() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, KINDS["batch"])
    with fitted(DyVTE(), model)(model):
        with torch.inference_mode():
            model(**inputs)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.get_input_embeddings().weight.grad is not None
    model.zero_grad()


def test_gates_come_back_from_their_file_in_half_precision(tmp_path: Path) -> None:
    gates = Gates(8, 3, inner=6, checkpoint="some-model").initialise(3)
    save_gates(gates, tmp_path / "deep" / "gates.safetensors")
    read = load_gates(tmp_path / "deep" / "gates.safetensors")
    assert (read.hidden_size, read.num_layers, read.inner, read.checkpoint) == (8, 3, 6, "some-model")
    for mine, theirs in zip(read.parameters(), gates.parameters(), strict=True):
        assert torch.equal(mine, theirs.half())
        assert not mine.requires_grad
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["gates.safetensors"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def newer(path: Path) -> None:
    about = {"format": "vtw-eval dyvte gates", "version": 2}
    save_file({"weight": torch.zeros(2)}, path, metadata={"about": json.dumps(about)})


def incomplete(path: Path) -> None:
    gates = Gates(32, 4, inner=4).initialise(0)
    del gates.after[1]
    save_gates(gates, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, ["there is no gates file", "vtw-eval train-dyvte"]),
        (truncate, ["damaged"]),
        (lambda path: path.write_text("gates"), ["damaged"]),
        (foreign, ["holds no gates", "vtw-eval train-dyvte"]),
        (newer, ["version 2", "reads 1"]),
        (incomplete, ["metadata"]),
        (lambda path: save_gates(Gates(48, 4).initialise(0), path), ["hidden size of 48", "has 32"]),
        (lambda path: save_gates(Gates(32, 5).initialise(0), path), ["decoder layers of 5", "has 4"]),
        (
            lambda path: save_gates(Gates(32, 4, checkpoint="llava-1.5-7b-hf").initialise(0), path),
            ["'llava-1.5-7b-hf'", "'tiny'", "check_name=false"],
        ),
        (
            lambda path: save_gates(Gates(32, 4, checkpoint="tiny", norm=torch.full([32], 3.0)).initialise(0), path),
            ["other weights", "'tiny'"],
        ),
    ],
)
def test_gates_that_do_not_fit_are_refused_in_one_line(
    spoil: Callable[[Path], object], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = models("llava", "sdpa")
    monkeypatch.setattr(model.config, "_name_or_path", "some/where/tiny")
    path = tmp_path / "gates.safetensors"
    save_gates(Gates(32, 4, inner=4, checkpoint="tiny").initialise(0), path)
    DyVTE(gates=str(path)).bind(find_anatomy(model))
    spoil(path)
    with pytest.raises(ValueError, match=r"\w") as caught:
        DyVTE(gates=str(path)).bind(find_anatomy(model))
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message
    if "check_name=false" in words:
        parse_method(f"dyvte,gates={path},check_name=false").bind(find_anatomy(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gates_know_their_model_in_any_precision(dtype: torch.dtype) -> None:
    trained = final_norm(find_anatomy(make_model("llava", dtype=torch.float32)).decoder)
    assert trained is not None
    assert trained.unique().numel() > 1
    assert same_weights(trained, final_norm(find_anatomy(make_model("llava", dtype=dtype)).decoder))
    assert not same_weights(trained, final_norm(find_anatomy(make_model("llava", dtype=dtype, seed=1)).decoder))


def test_without_a_file_the_gates_beside_the_weights_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models("llava", "sdpa")
    monkeypatch.setattr(model.config, "_name_or_path", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs gates trained for .*vtw-eval train-dyvte --model"):
        DyVTE().bind(find_anatomy(model))
    path = tmp_path / "dyvte.safetensors"
    path.write_bytes(Path(random_gates(model)).read_bytes())
    bound = DyVTE().bind(find_anatomy(model))
    assert str(bound) == "dyvte" and bound.network.num_layers == 4
    path.unlink()
    assert bound.bind(find_anatomy(model)) is bound  # read once


@torch.no_grad()
def test_the_shapes_model_comes_with_gates_that_tell_questions_apart() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    means = {}
    with DyVTE()(model) as trace:
        for kind in ("exist", "caption"):
            model(**encode(processor, held_out(kind, 24)))
            means[kind] = exit_layers(trace).float().mean()
    assert 1 < means["exist"] < means["caption"] - 1
