"""Training of gates: data, labels against separate runs, learning, resuming, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from vtw_eval import DyVTE
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cli import app
from vtw_eval.methods.dyvte.gates import Gates, gate_features, load_gates
from vtw_eval.methods.dyvte.method import exit_layers
from vtw_eval.methods.dyvte.train import (
    GateTrainer,
    TrainingSample,
    TrainingSettings,
    encode,
    exit_labels,
    features_and_labels,
    read_samples,
    state_path,
    train,
)
from vtw_eval.shapes.making.gate_data import write_data
from vtw_eval.shapes.making.model import Size, build_model
from vtw_eval.shapes.processor import build_processor
from vtw_eval.shapes.scenes import is_test_scene
from vtw_eval.verify.oracle import masked

LAYERS = 4
SIZE = Size(width=16, heads=2, vision_layers=1, vision_mlp=16, layers=LAYERS, mlp=16)


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    return build_model(processor.tokenizer, 0, SIZE).requires_grad_(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), scenes=6, questions=3)


@pytest.fixture(scope="module")
def samples(data: Path) -> list[TrainingSample]:
    return read_samples(data)[0]


# Data


def test_single_turns_with_one_image_are_read_and_all_others_counted(data: Path, tmp_path: Path) -> None:
    entries = json.loads(data.read_text())
    samples, skipped = read_samples(data.parent)
    assert skipped == 0
    assert len(samples) == len(entries) == 18
    assert samples[4].image == data.parent / entries[4]["image"]
    assert "<image>" not in samples[4].question
    assert entries[4]["conversations"][0]["value"] == f"<image>\n{samples[4].question}"

    first, second, third, fourth, *_ = entries
    del first["image"]
    second["conversations"] *= 2
    third["image"] = [third["image"]] * 2
    fourth["conversations"][0]["value"] = "What is <image> in <image>?"
    (tmp_path / "mixed.json").write_text(json.dumps(entries))
    rest, skipped = read_samples(tmp_path / "mixed.json", data.parent)
    assert skipped == 4
    assert rest == samples[4:]


def edited(change: Callable[[list[Any]], object]) -> Callable[[list[Any]], str]:
    def write(entries: list[Any]) -> str:
        change(entries)
        return json.dumps(entries)

    return write


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda entries: "[", ["not JSON"]),
        (lambda entries: "{}", ["holds dict", "list of conversations"]),
        (edited(lambda entries: entries[1].pop("conversations")), ["entry 1", '"conversations"']),
        (edited(lambda entries: entries[1]["conversations"][0].pop("value")), ["entry 1", "not of the form"]),
        (edited(lambda entries: entries[2].update(image="images/lost.png")), ["entry 2", "lost.png", "--image-folder"]),
        (edited(lambda entries: [entry.pop("image") for entry in entries]), ["no single-turn sample", "18 entries"]),
    ],
)
def test_wrong_data_are_refused_in_one_line(
    text: Callable[[list[Any]], str], words: list[str], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.json"
    file.write_text(text(json.loads(data.read_text())))
    with pytest.raises(ValueError, match=r"data\.json") as caught:
        read_samples(file, data.parent)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_folder_must_hold_one_file_and_an_image_must_be_one(tmp_path: Path, processor: Any) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        read_samples(tmp_path / "lost")
    with pytest.raises(ValueError, match="holds none"):
        read_samples(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json, b\.json"):
        read_samples(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.json"):
        encode(processor, [TrainingSample(tmp_path / "a.json", "?", "Yes")])


def test_gate_data_come_from_training_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    from vtw_eval.shapes.making import gate_data

    original = gate_data.render
    monkeypatch.setattr(gate_data, "render", lambda scene, rng: drawn.append(scene) or original(scene, rng))
    write_data(tmp_path, scenes=40, questions=1)
    assert len(drawn) == 40
    assert not any(map(is_test_scene, drawn))


# Labels


def full_sequence(processor: Any, sample: TrainingSample) -> tuple[dict[str, torch.Tensor], int]:
    """Tokenize one sample by hand."""
    text = f"<s>USER: <image>\n{sample.question} ASSISTANT:"
    with Image.open(sample.image) as image:
        inputs = dict(processor(text=text, images=image.convert("RGB"), return_tensors="pt"))
    ids = processor.tokenizer(sample.answer + "</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    return inputs, start


@torch.no_grad()
def test_labels_and_features_equal_those_of_two_separate_masked_runs(
    processor: Any, samples: list[TrainingSample]
) -> None:
    model = build_model(processor.tokenizer, 0, SIZE).double()
    anatomy = find_anatomy(model)
    seen = set()
    for layer in range(LAYERS - 1):
        batch = encode(processor, samples)
        batch.inputs["pixel_values"] = batch.inputs["pixel_values"].double()
        for alpha in (1.0, 1.03):
            features, labels = features_and_labels(anatomy, batch, layer, alpha)
            for row, sample in enumerate(samples):
                inputs, start = full_sequence(processor, sample)
                full = model(**inputs, output_hidden_states=True, use_cache=False)
                with masked(model, layer + 1):
                    exited = model(**inputs, use_cache=False).logits[0]
                answer = inputs["input_ids"][0, start:]
                normal, exited = full.logits[0, start - 1 : -1], exited[start - 1 : -1]
                same = bool((normal.argmax(-1) == exited.argmax(-1)).all())
                sure = bool(F.cross_entropy(exited, answer) < alpha * F.cross_entropy(normal, answer))
                assert int(labels[row]) == int(same and sure)
                seen.add((same, sure))
                state = full.hidden_states[layer + 1][0]
                first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
                expected = torch.cat([state[first : start - 1].mean(dim=0), state[start - 1]])
                torch.testing.assert_close(
                    features[row], expected, atol=1e-6, rtol=0
                )  # padding moves rotary angles, in float32
    assert {(True, True), (True, False), (False, True)} <= seen


def test_labels_by_hand() -> None:
    def label(normal: list[list[float]], exited: list[list[float]], counted: list[bool], alpha: float = 1.03) -> int:
        answers = torch.tensor([[0, 1]])
        logits = [torch.tensor([rows]).log() for rows in (normal, exited)]
        return int(exit_labels(*logits, answers, torch.tensor([counted]), alpha))

    both = [True, True]
    sure, less, wrong = [[0.9, 0.1], [0.2, 0.8]], [[0.85, 0.15], [0.2, 0.8]], [[0.4, 0.6], [0.01, 0.99]]
    assert label(sure, sure, both) == 1, "equal"
    assert label(less, sure, both) == 1, "surer"
    assert label(sure, less, both) == 0, "-ln .85 - ln .8 = .386 is above 1.03 * (-ln .9 - ln .8) = .338"
    assert label(sure, less, both, alpha=1.2) == 1
    assert label(less, wrong, both, alpha=9) == 0, "other tokens"
    assert label(wrong, wrong, both) == 1, "wrong, but the same"
    assert label(sure, [sure[0], [0.9, 0.1]], both, alpha=9) == 0
    assert label(sure, [sure[0], [0.9, 0.1]], [True, False], alpha=9) == 1, "padding does not count"


def test_features_of_a_last_token_alone() -> None:
    hidden = torch.arange(8.0).view(1, 4, 2)
    only = torch.tensor([[False, False, False, True]])
    assert gate_features(hidden, only, torch.tensor([3])).tolist() == [[6, 7, 6, 7]]
    two = torch.tensor([[False, True, True, True]])
    assert gate_features(hidden, two, torch.tensor([3])).tolist() == [[3, 4, 6, 7]]


# Training


def test_the_order_is_a_function_of_seed_and_step_and_uses_all_samples_equally() -> None:
    settings = TrainingSettings(steps=100, batch_size=4, seed=1)
    chosen = [settings.choose(step, 10) for step in range(5)]
    assert sorted(number for batch in chosen for number in batch) == sorted([*range(10), *range(10)])
    assert chosen == [settings.choose(step, 10) for step in range(5)]
    assert chosen != [TrainingSettings(steps=100, batch_size=4).choose(step, 10) for step in range(5)]
    layers = [settings.exit_layer(step, LAYERS) for step in range(100)]
    assert set(layers) == set(range(LAYERS - 1))
    assert layers == [settings.exit_layer(step, LAYERS) for step in range(100)]


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainingSettings(steps=200, lr=2.0)
    rates = [settings.rate(step) for step in range(201)]
    assert rates[5] == max(rates) == 2.0
    assert rates[0] == pytest.approx(2 / 6)
    assert rates[103] == pytest.approx(1, abs=0.01)
    assert rates[200] == pytest.approx(0)


def test_a_gate_learns_a_rule_and_the_others_stay(model: Any, processor: Any, samples: list[TrainingSample]) -> None:
    trainer = GateTrainer(model, processor, samples, TrainingSettings(steps=300, lr=1e-2, inner=32))
    before = [gate.w1.clone() for gate in trainer.gates.after]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        features = torch.randn(32, 32, generator=generator)
        trainer.learn(1, features, (features[:, 0] > features[:, 20]).long())
        trainer.step += 1
    features = torch.randn(1000, 32, generator=generator)
    right = trainer.gates.exits(1, features) == (features[:, 0] > features[:, 20])
    assert right.float().mean() > 0.95
    for number, (gate, weights) in enumerate(zip(trainer.gates.after, before, strict=True)):
        assert torch.equal(gate.w1, weights) == (number != 1)


def test_a_resumed_run_ends_in_the_same_file(
    model: Any, processor: Any, samples: list[TrainingSample], tmp_path: Path
) -> None:
    settings = TrainingSettings(steps=8, batch_size=4, lr=1e-2, inner=8)
    train(GateTrainer(model, processor, samples, settings), tmp_path / "once.safetensors", save_every=3)

    output = tmp_path / "twice.safetensors"
    interrupted = GateTrainer(model, processor, samples, settings)
    for _ in range(5):
        interrupted.advance()
    interrupted.save(state_path(output))
    resumed = GateTrainer(model, processor, samples, settings)
    train(resumed, output, save_every=3)
    assert resumed.step == 8
    assert output.read_bytes() == (tmp_path / "once.safetensors").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["once.safetensors", "twice.safetensors"]

    start = Gates(SIZE.width, LAYERS, 8).initialise(0).half()
    assert not torch.equal(load_gates(output).after[0].w1, start.after[0].w1)

    interrupted.save(state_path(output))
    other = GateTrainer(model, processor, samples[1:], settings)
    with pytest.raises(ValueError, match=r"twice\.state\.safetensors belongs to another run"):
        train(other, output, save_every=3)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"alpha": -1.0}, {"inner": 0}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*out of range"):
        TrainingSettings(**{"steps": 1, **wrong})


# The command


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train-dyvte", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_trains_gates_that_the_method_takes(model: Any, processor: Any, data: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    output = checkpoint / "dyvte.safetensors"
    options = ("--batch-size", 8, "--inner", 8, "--device", "cpu")
    done = command("--model", checkpoint, "--data", data, "-o", output, *options)
    assert done.exit_code == 0, done.output
    assert "3 steps of 8 samples out of 18 (0 skipped" in done.output
    gates = load_gates(output)
    assert (gates.hidden_size, gates.num_layers, gates.inner, gates.checkpoint) == (16, LAYERS, 8, "tiny")

    opened = type(model).from_pretrained(checkpoint)
    samples, _ = read_samples(data)
    for method in (DyVTE(), DyVTE(gates=str(output))):
        with method(opened) as trace, torch.no_grad():
            opened(**encode(processor, samples).inputs)
        assert exit_layers(trace).shape == (18,)


def test_the_command_says_what_is_wrong(data: Path, tmp_path: Path) -> None:
    text = command("--help").output
    for word in ("--model", "--data", "--image-folder", "6e-5", "4e-5", "1.03"):
        assert word in text
    assert command("--data", data).exit_code == 2
    for arguments, words in (
        (("--model", tmp_path, "--data", tmp_path / "lost"), "no file or folder"),
        (("--model", tmp_path / "lost", "--data", data), "cannot open the checkpoint"),
        (("--model", tmp_path, "--data", data, "--steps", 0), "steps=0 is out of range"),
        (("--model", tmp_path, "--data", data, "--batch-size", 0), "batch_size=0 is out of range"),
    ):
        done = command(*arguments, "-o", tmp_path / "gates.safetensors")
        assert done.exit_code == 2
        assert done.stderr.startswith("vtw-eval train-dyvte: error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
