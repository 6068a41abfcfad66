"""Families that answer about boards: packed questions are those that a harness asks, and checkpoints load as usual."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtw_eval import VTW
from vtw_eval.shapes import check
from vtw_eval.shapes.boards.making.check import hidden_from
from vtw_eval.shapes.boards.making.families import qwen2_vl
from vtw_eval.shapes.boards.making.families.family import UNKNOWABLE
from vtw_eval.shapes.boards.making.families.images import Form, sample_part
from vtw_eval.shapes.boards.making.families.internvl import InternVL
from vtw_eval.shapes.boards.making.families.qwen2_vl import Qwen2VL, TokenForm
from vtw_eval.shapes.boards.making.families.train import FamilyTrainer
from vtw_eval.shapes.boards.making.thinning import thin_pass, thinned
from vtw_eval.shapes.boards.scenes import CELL, Item, Placed, is_test_scene
from vtw_eval.shapes.making.model import TRAIN_ATTENTION, Size
from vtw_eval.shapes.making.staged import run
from vtw_eval.shapes.questions import prompt

FAMILIES = {"qwen2_vl": Qwen2VL, "internvl": InternVL}
PARAMETERS = {"qwen2_vl": 2_400_384, "internvl": 2_044_544}
SIZE = Size(width=64, heads=2, vision_layers=1, vision_mlp=64, layers=3, mlp=16)
TINY = {
    "vision_steps": 2,
    "vision_images": 2,
    "joint_steps": 3,
    "again_steps": 1,
    "joint_scenes": 2,
    "joint_questions": 3,
    "curriculum": (),
    "simple_steps": 1,
    "thin": 0.5,
    "warmup": 1,
    "size": SIZE,
}


def tiny(name):
    family = FAMILIES[name]()
    return family, dataclasses.replace(family.recipe, **TINY)


def random_biases(model):
    """Give biases that begin as zero something to say."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_questions_are_answered_as_each_alone_through_the_processor(name, monkeypatch):
    family, recipe = tiny(name)
    model = family.build(recipe).double()
    random_biases(model)
    images = []
    made = family.media
    monkeypatch.setattr(family, "media", lambda shown, form: images.extend(shown) or made(shown, form))
    monkeypatch.setattr("vtw_eval.shapes.boards.making.families.qwen2_vl.compressed", Image.fromarray)
    for step in range(12):  # until a form that is not square has been met
        images.clear()
        shown, given = family.joint_step(recipe, step)
        if images[0].shape[0] != images[0].shape[1] or len(family.forms) == 1:
            break
    given = torch.arange(shown.tokens).expand(len(given), -1)
    batch = family.pack(model, shown)
    model.set_attn_implementation(TRAIN_ATTENTION)
    with torch.no_grad():
        features = family.features(
            model, {k: v.double() if v.is_floating_point() else v for k, v in shown.media.items()}
        )
        packed, _ = thin_pass(model, features, batch, given, family.placeholder)
    model.set_attn_implementation("eager")
    at = 0
    for row, (image, questions) in enumerate(zip(images, shown.questions, strict=True)):
        picture = Image.fromarray(image)
        if name == "qwen2_vl":
            height, width = (14 * side for side in shown.media["image_grid_thw"][row, 1:].tolist())
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": prompt(question)}]
            text = family.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            bounds = {"size": {"shortest_edge": 3136, "longest_edge": 10**6}} if name == "qwen2_vl" else {}
            inputs = family.processor(
                text=text + " " + question.answer, images=picture, return_tensors="pt", images_kwargs=bounds
            )
            assert (inputs["input_ids"] == family.placeholder).sum() == shown.tokens
            inputs["pixel_values"] = inputs["pixel_values"].double()
            with torch.no_grad():
                alone = model(**inputs).logits[0]
            words = int((batch.owners == batch.owners[at]).sum())
            torch.testing.assert_close(packed[at : at + words], alone[-words:], atol=1e-5, rtol=1e-5)
            at += words
    assert at == len(packed)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shipped_size(name):
    family = FAMILIES[name]()
    model = family.build(family.recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_trains_resumes_and_exports(name, tmp_path):
    family, recipe = tiny(name)
    trainer = FamilyTrainer(recipe, family=family)
    begun = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    while trainer.step < recipe.vision_steps:
        trainer.advance()
    trainer.save(tmp_path / "state.safetensors")
    run(trainer, tmp_path, save_every=100, check_every=100)
    ended = dict(trainer.module.named_parameters())
    assert all(not torch.equal(begun[n], p) for n, p in ended.items() if "layers" in n or "heads" in n)

    again = FamilyTrainer(recipe, family=family)
    again.resume(tmp_path / "state.safetensors")
    run(again, tmp_path, save_every=100, check_every=100)
    assert all(torch.equal(p, ended[n]) for n, p in again.module.named_parameters())
    with pytest.raises(ValueError, match="belongs to another run"):
        FamilyTrainer(dataclasses.replace(recipe, seed=7), family=family).resume(tmp_path / "state.safetensors")

    again.export(tmp_path / "out")
    model, notes = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.dtype == torch.float32
    assert not any(notes.values()), notes
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    content = [{"type": "image"}, {"type": "text", "text": "Is there a red circle in the image?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=np.zeros((128, 128, 3), np.uint8), return_tensors="pt")
    tokens = family.held_out(np.random.default_rng(0), 1).tokens
    whole = f"{family.opening(tokens)}Is there a red circle in the image? ASSISTANT:"
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(whole)["input_ids"]
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"]
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Qwen2VL, "recipe", dataclasses.replace(Qwen2VL.recipe, **TINY))
    threads = torch.get_num_threads()
    try:
        command = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--threads", "1"]
        qwen2_vl.main([*command, "--vision-steps", "1", "--joint-steps", "1"])
        check.main([str(tmp_path / "out"), "--shown", "16", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "checkpoint in" in printed
    assert [line.split(" | ")[0] for line in printed.splitlines()[-4:]] == ["| 3", "| 2", "| 1", "| 0"]
    with pytest.raises(SystemExit):
        check.main([str(tmp_path / "work")])
    assert "no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("k", [0, 2])
def test_hidden_tokens_are_withdrawn_ones(k, monkeypatch):
    family, recipe = tiny("qwen2_vl")
    model = family.build(recipe)
    model.set_attn_implementation("eager")
    images = []
    made = family.media
    monkeypatch.setattr(family, "media", lambda shown, form: images.extend(shown) or made(shown, form))
    monkeypatch.setattr(qwen2_vl, "compressed", Image.fromarray)
    shown = family.held_out(np.random.default_rng(0), 1)
    shown = dataclasses.replace(shown, questions=[shown.questions[0][:1]])
    batch = family.pack(model, shown)
    given = torch.arange(shown.tokens)[None]
    with hidden_from(model, k, batch.input_ids == family.placeholder), torch.no_grad():
        hidden = thin_pass(model, family.features(model, shown.media), batch, given, family.placeholder)[0][0]
    content = [{"type": "image"}, {"type": "text", "text": prompt(shown.questions[0][0])}]
    text = family.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.fromarray(images[0]).resize((224, 224), Image.Resampling.BICUBIC)
    inputs = family.processor(text=text, images=picture, return_tensors="pt")
    with VTW(k=k)(model), torch.no_grad():
        withdrawn = model(**inputs).logits[0, -1]
    torch.testing.assert_close(hidden, withdrawn, atol=1e-4, rtol=1e-4)


def lit(name, form, spots):
    """Return by how much each vision token changes where some pixels of a black picture of a form become white."""
    family = FAMILIES[name]()
    model = family.build(dataclasses.replace(family.recipe, **TINY))
    tower = model.model.visual if name == "qwen2_vl" else model.model.vision_tower
    for block in tower.modules():  # without attention a patch's features tell of the patch alone
        if hasattr(block, "qkv") or hasattr(block, "projection_layer"):
            output = block.proj if hasattr(block, "qkv") else block.projection_layer
            torch.nn.init.zeros_(output.weight)
    black = np.full((CELL * form.rows, CELL * form.columns, 3), 10, np.uint8)
    white = black.copy()
    for y, x in spots:
        white[y, x] = 254
    with torch.no_grad():
        a, b = (family.features(model, family.media([image], form))[0] for image in (black, white))
    return (a - b).abs().sum(-1)


@pytest.mark.parametrize(("name", "number"), [("qwen2_vl", 0), ("qwen2_vl", 2), ("qwen2_vl", 6), ("internvl", 0)])
def test_labels_stand_where_the_tower_sees_the_object(name, number):
    form = FAMILIES[name].forms[number]
    objects = [Placed(Item(6 if form.rows > 1 else 2, "large", "red", "square", "2"), 80.0, 48.0, 13.0)]
    labels = FAMILIES[name]().labels([objects], form)["color"][0]
    changed = lit(name, form, [(48, 80), (38, 70), (58, 90)])
    touched = changed > 0.05 * changed.max()
    assert touched.any()
    assert (labels[touched] == 0).all()


def test_internvl_reads_digits_in_tiles_and_places_in_the_thumbnail():
    objects = [Placed(Item(7, "large", "red", "square", "2"), 112.0, 48.0, 13.0)]
    labels = {key: value[0] for key, value in InternVL().labels([objects], Form()).items()}
    for place in ("row", "column"):
        assert ((labels[place][:256] == UNKNOWABLE) == (labels["color"][:256] == 0)).all()
        assert set(labels[place][:256].tolist()) == {-1, UNKNOWABLE}
    assert set(labels["row"][256:].tolist()) == {-1, 1}
    assert set(labels["column"][256:].tolist()) == {-1, 3}
    assert set(labels["mark"][:256].tolist()) == {-1, -2, 1}
    assert set(labels["mark"][256:].tolist()) == {-1, -2}
    assert (labels["color"][:64] == -1).all()  # the tile at the top left; the object is in that at the top right
    assert (labels["color"][64:128] == 0).any()


def test_a_place_that_cannot_be_known_costs_least_where_all_are_alike():
    family, recipe = tiny("internvl")
    trainer = FamilyTrainer(recipe, family=family)
    states = torch.randn(1, 3, SIZE.width, requires_grad=True)
    labels = {"row": torch.tensor([[2, UNKNOWABLE, -1]]), "column": torch.tensor([[0, -1, -1]])}
    losses = trainer.place_losses(states, labels)
    assert len(losses) == 3
    with torch.no_grad():
        guess = trainer.heads["row"](states[0, 1]).softmax(-1)
    apart = sum(-0.25 * float(share.log()) for share in guess)
    assert losses[1].item() == pytest.approx(0.5 * apart, rel=1e-5)
    assert losses[1].item() > 0.5 * np.log(4)
    (slope,) = torch.autograd.grad(losses[1], states)
    assert (slope[0].abs().sum(-1) > 0).tolist() == [False, True, False]
    with torch.no_grad():
        trainer.heads["row"].weight.zero_()
    alike = trainer.place_losses(states, labels)
    assert alike[1].item() == pytest.approx(0.5 * np.log(4))


def test_internvl_begins_with_the_thumbnail_and_leaves_the_tower_as_it_is():
    family, recipe = tiny("internvl")
    recipe = dataclasses.replace(recipe, joint_questions=40)
    for step, first in ((0, 256), (1, 0)):
        shown, given = family.joint_step(recipe, step)
        assert first <= given.min() < first + 256
        objects = (shown.labels["color"] >= 0).nonzero()
        missing = {tuple(at) for at in objects.tolist() if at[1] not in given[at[0]]}
        assert all(token < first for _, token in missing)
        assert ("open_mark" in {question.type for row in shown.questions for question in row}) == (step == 1)
    trainer = FamilyTrainer(recipe, family=family)
    trainer.start_stage("joint", 2)
    begun = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    trainer.advance()
    same = {n for n, p in trainer.module.named_parameters() if torch.equal(p, begun[n])}
    assert same == {n for n in begun if "vision_tower" in n or n.startswith("heads")}


def test_qwen_knows_rows_and_columns_of_cells_everywhere():
    labels = Qwen2VL().labels([[]], TokenForm(3, 4, 6, 8))
    assert labels["row"].reshape(6, 8)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert labels["column"].reshape(6, 8)[3].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(labels["color"].flatten().tolist()) == {-1}


def test_smaller_boards_stay_on_their_side_of_the_split():
    rng = np.random.default_rng(0)
    for test in (False, True):
        scenes = [sample_part(rng, Form(2, 3), 1, 9, test=test) for _ in range(100)]
        assert {is_test_scene(scene) for scene in scenes} == {test}
        assert all(item.row < 2 and item.column < 3 for scene in scenes for item in scene.items)
        assert all(scene.items for scene in scenes)


def test_thinning_gives_all_that_show_an_object():
    shown = torch.zeros(2, 20, dtype=torch.bool)
    shown[0, [3, 7, 9]] = shown[1, 19] = True
    given = thinned(shown, np.random.default_rng(0), (2, 2), every=False)
    assert given.shape == (2, 5)
    assert {3, 7, 9} <= set(given[0].tolist())
    assert 19 in given[1]
    assert (given.diff() > 0).all()
    assert thinned(shown, np.random.default_rng(0), (2, 2), every=True).tolist() == [list(range(20))] * 2


def test_heights_and_widths_turn_fast_enough_to_be_told_apart():
    family, recipe = tiny("qwen2_vl")
    frequencies = family.build(recipe).model.language_model.rotary_emb.inv_freq
    usual = 1e8 ** (-torch.arange(16) / 16)
    changed = [4, 5, 10, 11]  # the first two of height and of width
    torch.testing.assert_close(frequencies[changed], torch.tensor([0.3, 0.1, 0.3, 0.1]))
    rest = [i for i in range(16) if i not in changed]
    torch.testing.assert_close(frequencies[rest], usual[rest])
