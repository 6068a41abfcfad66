"""Training on boards: packing and thinning are exact, interrupted runs end like uninterrupted ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtw_eval.shapes.boards.making.model import build_model
from vtw_eval.shapes.boards.making.optimiser import Muon, orthogonal
from vtw_eval.shapes.boards.making.recipe import (
    SIMPLE,
    Recipe,
    joint_batch,
    patch_labels,
    sample_questions,
    vision_batch,
)
from vtw_eval.shapes.boards.making.thinning import thin_logits
from vtw_eval.shapes.boards.making.train import Trainer, main
from vtw_eval.shapes.boards.processor import build_processor
from vtw_eval.shapes.boards.scenes import Item, Placed, Scene
from vtw_eval.shapes.making.model import TRAIN_ATTENTION, Size
from vtw_eval.shapes.making.packing import answer_logits, pack
from vtw_eval.shapes.making.staged import LOG_FILE, STATE_FILE, run

TINY = Recipe(
    vision_steps=3,
    vision_images=2,
    joint_steps=4,
    again_steps=0,
    joint_scenes=2,
    joint_questions=3,
    curriculum=(),
    simple_steps=1,
    thin=0.5,
    warmup=1,
    size=Size(width=32, heads=2, vision_layers=1, vision_mlp=16, layers=2, mlp=16),
)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_the_shipped_size():
    model = build_model(build_processor().tokenizer, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_062_784


def test_muon_makes_changes_orthogonal():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 8, 20, generator=generator, dtype=torch.float64)
    for given in (matrices, matrices.mT):
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        made = orthogonal(given).double()
        values = torch.linalg.svdvals(made)
        assert ((values > 0.6) & (values < 1.3)).all()
        inner = (u.mT @ made @ v.mT).abs()  # diagonal: the singular vectors stay
        assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).max() < 0.02


def test_muon_steps_with_matrices_of_one_shape_together_as_with_each():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(4, 6, generator=generator) for _ in range(2)]
    grads = [[torch.randn(4, 6, generator=generator) for _ in range(2)] for _ in range(3)]

    def stepped(numbers):
        parameters = [torch.nn.Parameter(starts[i].clone()) for i in numbers]
        optimiser = Muon(parameters, lr=0.1)
        for step in grads:
            for parameter, i in zip(parameters, numbers, strict=True):
                parameter.grad = step[i].clone()
            optimiser.step()
        return [parameter.detach() for parameter in parameters]

    torch.testing.assert_close(stepped([0, 1]), stepped([0]) + stepped([1]), atol=1e-5, rtol=1e-5)


def test_patch_labels():
    objects = [
        Placed(Item(0, "large", "green", "square", "3"), 16, 16, 12),
        Placed(Item(15, "small", "red", "circle"), 108, 108, 7),
    ]
    labels = {name: grid.reshape(16, 16) for name, grid in patch_labels([objects]).items()}
    expected = torch.full((16, 16), -1)
    expected[:4, :4] = 1  # centres 4, 12, 20, 28; 16 - 13 to 16 + 13
    expected[13, 13] = 0  # centres 100, 108, 116; 108 - 8 to 108 + 8, without the borders
    assert (labels["color"] == expected).all()
    assert labels["size"][0, 0] == 1
    assert labels["size"][13, 13] == 0
    assert (labels["row"][13, 13], labels["column"][13, 13], labels["row"][0, 3]) == (3, 3, 0)
    marks = torch.full((16, 16), -1)
    marks[:4, :4] = -2
    marks[1:3, 1:3] = 2  # centres 12 and 20
    assert (labels["mark"] == marks).all()


def test_batches_are_functions_of_seed_stage_and_step():
    for make in (joint_batch, vision_batch):
        first, again, next_step = make(TINY, 1)[0], make(TINY, 1)[0], make(TINY, 2)[0]
        assert torch.equal(first, again)
        assert not torch.equal(first, next_step)
        assert not torch.equal(first, make(dataclasses.replace(TINY, seed=1), 1)[0])


def test_rate_and_curriculum():
    recipe = Recipe(joint_steps=1000, warmup=50, cooldown=0.4)
    assert recipe.rate("joint", 0) == pytest.approx(1 / 50)
    assert [recipe.rate("joint", step) for step in (49, 300, 600)] == [1, 1, 1]
    assert recipe.rate("joint", 800) == pytest.approx(0.5)
    assert recipe.rate("joint", 1000 + recipe.again_steps) == 0
    assert recipe.rate("joint", 1100) == 0.5  # a second, lower rise
    assert [recipe.most_items(step) for step in (0, 59, 60, 149, 299, 300)] == [2, 2, 4, 4, 6, 9]
    assert recipe.shares(0).keys() == set(SIMPLE)
    assert [recipe.shares(step)["same"] for step in (999, 1000)] == [1, 6]
    assert [recipe.whole(step) for step in (749, 750, 999, 1000, 1001)] == [False, True, True, False, True]


def test_thinned_tokens_answer_as_with_the_others_masked(processor):
    pixels, rows, given = joint_batch(TINY, 0)
    assert given is not None
    assert joint_batch(TINY, 2)[2] is None
    model = build_model(processor.tokenizer, 1, TINY.size).double()
    model.set_attn_implementation(TRAIN_ATTENTION)
    batch = pack(processor.tokenizer, rows, 256)
    features = model.get_image_features(pixels.double()).pooler_output
    features = torch.stack(list(features))
    thin = thin_logits(model, features, batch, given)

    first = int((batch.input_ids[0] == model.config.image_token_id).nonzero()[0])
    hidden = torch.ones(len(rows), 256, dtype=torch.bool)
    for row, kept in enumerate(given):
        hidden[row, kept] = False
    mask = batch.attention_mask.clone()
    mask[..., first : first + 256] &= ~hidden[:, None, None]
    mask |= torch.eye(mask.shape[-1], dtype=torch.bool)  # hidden ones see themselves, as softmax needs one
    masked = answer_logits(model, pixels.double(), dataclasses.replace(batch, attention_mask=mask))
    torch.testing.assert_close(thin, masked, atol=1e-6, rtol=1e-6)


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.module.named_parameters()}


@pytest.mark.parametrize("stop", [("vision", 2), ("vision", 3), ("joint", 1), ("joint", 3)])
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
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    start = weights(Trainer(TINY))
    changed = {name for name in expected if not torch.equal(expected[name], start[name])}
    unread = {"class_embedding", "post_layernorm", "position_embedding"}  # the class token leads nowhere
    assert {name for name in set(expected) - changed if not any(part in name for part in unread)} == set()


def test_a_state_of_another_recipe_is_refused(tmp_path):
    Trainer(TINY).save(tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match="belongs to another run"):
        Trainer(dataclasses.replace(TINY, seed=7)).resume(tmp_path / STATE_FILE)


def test_command_line_trains_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "vtw_eval.shapes.boards.making.train.Recipe", lambda **given: dataclasses.replace(TINY, **given)
    )
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
    assert 0 <= entries[-1]["position"] <= 1
    assert "checkpoint in" in capsys.readouterr().out

    model, notes = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.dtype == torch.float32
    assert not any(notes.values()), notes
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        text="<s>USER: <image>\nWhat? ASSISTANT:", images=np.zeros((128, 128, 3), np.uint8), return_tensors="pt"
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 256
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_simple_questions_come_first_and_every_scene_allows_one():
    twins = Scene((Item(0, "small", "red", "circle"), Item(1, "small", "red", "circle")))
    asked = sample_questions(twins, np.random.default_rng(0), 4, dict.fromkeys(SIMPLE, 1.0))
    assert [question.type for question in asked] == ["exist"] * 4
    many = dataclasses.replace(TINY, joint_questions=30)
    assert {question.type for row in joint_batch(many, 0)[1] for question in row} <= set(SIMPLE)
    assert not {question.type for row in joint_batch(many, 1)[1] for question in row} <= set(SIMPLE)
