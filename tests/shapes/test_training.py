"""Training: packing is exact, data are a function of the step, interrupted runs end like uninterrupted ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtw_eval.shapes.making.model import TRAIN_ATTENTION, Size, build_model
from vtw_eval.shapes.making.packing import (
    CAPTION_WEIGHT,
    END_WEIGHT,
    answer_logits,
    answer_loss,
    answers_right,
    pack,
)
from vtw_eval.shapes.making.recipe import Recipe, joint_batch, patch_labels, vision_batch
from vtw_eval.shapes.making.staged import LOG_FILE, STATE_FILE, run
from vtw_eval.shapes.making.train import Trainer, main
from vtw_eval.shapes.processor import build_processor
from vtw_eval.shapes.questions import prompt
from vtw_eval.shapes.scenes import Item, Scene
from vtw_eval.state import save_state

TINY = Recipe(
    vision_steps=3,
    vision_images=2,
    joint_steps=4,
    joint_scenes=2,
    joint_questions=3,
    curriculum=(),
    size=Size(width=16, heads=2, vision_layers=1, vision_mlp=16, layers=2, mlp=16),
)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_the_shipped_size():
    model = build_model(build_processor().tokenizer, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_615_040


@pytest.mark.parametrize("attention", ["eager", TRAIN_ATTENTION])
def test_packed_loss_equals_that_of_separate_sequences(processor, attention):
    pixels, rows = joint_batch(TINY, 3)
    rows = [rows[0], rows[1][:2]]  # rows of different lengths
    model = build_model(processor.tokenizer, 1, TINY.size).double()
    pixels = pixels.double()
    expected, weights = 0.0, 0.0
    right = []
    for image, questions in zip(pixels, rows, strict=True):
        for question in questions:
            text = f"<s>USER: <image>\n{prompt(question)} ASSISTANT: "
            asked = processor(text=text, images=image, do_rescale=False, return_tensors="pt")["input_ids"]
            answer = processor.tokenizer(question.answer + "</s>", return_tensors="pt")["input_ids"]
            logits = model(input_ids=torch.cat([asked, answer], 1), pixel_values=image[None]).logits[0]
            logits = logits[asked.shape[1] - 1 : -1]
            weight = torch.full((answer.shape[1],), CAPTION_WEIGHT if question.type == "caption" else 1.0)
            weight[-1] = END_WEIGHT
            losses = torch.nn.functional.cross_entropy(logits, answer[0], reduction="none")
            expected += (losses * weight).sum().item()
            weights += weight.sum().item()
            right.append(bool((logits.argmax(-1) == answer[0]).all()))
    model.set_attn_implementation(attention)
    batch = pack(processor.tokenizer, rows, 64)
    logits = answer_logits(model, pixels, batch)
    assert answer_loss(logits, batch).item() == pytest.approx(expected / weights, rel=1e-6)
    assert answers_right(logits, batch).tolist() == right


def test_batches_are_functions_of_seed_stage_and_step():
    for make in (joint_batch, vision_batch):
        first, again, next_step = make(TINY, 5)[0], make(TINY, 5)[0], make(TINY, 6)[0]
        other_seed = make(dataclasses.replace(TINY, seed=1), 5)[0]
        assert torch.equal(first, again)
        assert not torch.equal(first, next_step)
        assert not torch.equal(first, other_seed)


def test_patch_labels():
    labels = patch_labels([Scene((Item(5, "green", "circle"),))], 8)
    grid = labels["shape"].reshape(8, 8)
    assert grid.sum() == 4
    assert (grid[2:4, 2:4] == 1).all()
    assert labels["color"].reshape(8, 8)[3, 3] == 2
    assert labels["row"].reshape(8, 8)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert labels["column"].reshape(8, 8)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_learning_rate_and_curriculum():
    recipe = Recipe()
    assert recipe.rate("joint", 0) == pytest.approx(recipe.joint_rate / recipe.warmup)
    assert recipe.rate("joint", recipe.warmup) == pytest.approx(recipe.joint_rate)
    assert recipe.rate("joint", recipe.joint_steps) == pytest.approx(0, abs=1e-12)
    assert [recipe.most_items(step) for step in (0, 99, 100, 300, 600, 2999)] == [1, 1, 2, 3, 5, 5]


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.module.named_parameters()}


@pytest.mark.parametrize("stop", [("vision", 2), ("vision", 3), ("joint", 2)])
def test_resumed_training_is_bit_for_bit_the_same(tmp_path, stop):
    whole = Trainer(TINY)
    run(whole, tmp_path, save_every=100, check_every=100)

    broken = Trainer(TINY)
    while (broken.stage, broken.step) != stop:
        if broken.stage == "vision" and broken.step == TINY.vision_steps:
            broken.start_stage("joint", 0)
        broken.advance()
    broken.save(tmp_path / "broken.safetensors")

    resumed = Trainer(TINY)
    resumed.resume(tmp_path / "broken.safetensors")
    assert (resumed.stage, resumed.step) == stop
    run(resumed, tmp_path, save_every=100, check_every=100)
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    start = weights(Trainer(TINY))
    assert any(not torch.equal(expected[name], start[name]) for name in expected)


def test_a_state_of_another_recipe_is_refused(tmp_path):
    Trainer(TINY).save(tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match="belongs to another run"):
        Trainer(dataclasses.replace(TINY, seed=7)).resume(tmp_path / STATE_FILE)


def test_a_failed_write_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / STATE_FILE
    trainer = Trainer(TINY)
    trainer.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vtw_eval.files.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(path, trainer.module, trainer.optimisers, {}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_command_line_trains_exports_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vtw_eval.shapes.making.train.Recipe", lambda **given: dataclasses.replace(TINY, **given))
    command = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--threads", "1"]
    command += ["--vision-steps", "2", "--joint-steps", "2", "--check-every", "1"]
    threads = torch.get_num_threads()
    try:
        main(command)
        main(command)  # nothing left to do but the export
    finally:
        torch.set_num_threads(threads)
    entries = [json.loads(line) for line in (tmp_path / "work" / LOG_FILE).read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in entries] == [
        ("vision", 1),
        ("vision", 2),
        ("joint", 1),
        ("joint", 2),
    ]
    assert 0 <= entries[-1]["exist"] <= 1
    with safe_open(tmp_path / "work" / STATE_FILE, "pt") as state:
        assert json.loads(state.metadata()["about"])["counters"]["stage"] == "joint"
    assert "checkpoint in" in capsys.readouterr().out

    model, notes = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.dtype == torch.float32
    assert not any(notes.values()), notes
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        text="<s>USER: <image>\nWhat? ASSISTANT:", images=np.zeros((64, 64, 3), np.uint8), return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]

    with pytest.raises(SystemExit) as stopped:
        main([*command, "--seed", "5"])
    assert stopped.value.code == 2
    assert "belongs to another run" in capsys.readouterr().err
