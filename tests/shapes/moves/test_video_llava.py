"""The Video-LLaVA for moves: packed questions are those that the harness asks, and its checkpoint loads as usual."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

from tests.shapes.boards.families.test_families import TINY, random_biases
from vtw_eval.models.video_llava import VideoLlava as Adapter
from vtw_eval.shapes.boards.making.families.train import FamilyTrainer
from vtw_eval.shapes.boards.making.mimetic import place_directions
from vtw_eval.shapes.boards.making.recipe import sample_questions
from vtw_eval.shapes.boards.making.thinning import thin_pass
from vtw_eval.shapes.making.model import TRAIN_ATTENTION
from vtw_eval.shapes.making.staged import run
from vtw_eval.shapes.moves import scenes
from vtw_eval.shapes.moves.making import video_llava
from vtw_eval.shapes.moves.making.video_llava import SIMPLE, VideoLlava
from vtw_eval.shapes.moves.questions import TYPES, ask
from vtw_eval.shapes.moves.scenes import is_test_scene
from vtw_eval.shapes.questions import prompt


@pytest.fixture
def family():
    return VideoLlava()


def test_the_shipped_size(family):
    model = family.build(family.recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_292_096


def test_packed_questions_are_answered_as_each_alone_in_the_harness(family, monkeypatch):
    model = family.build(dataclasses.replace(family.recipe, **TINY)).double()
    random_biases(model)
    videos = []
    monkeypatch.setattr(video_llava, "render", lambda *given: videos.append(scenes.render(*given)) or videos[-1])
    shown, given = family.joint_step(dataclasses.replace(family.recipe, **TINY), 0)
    batch = family.pack(model, shown)
    given = torch.arange(shown.tokens).expand(len(given), -1)
    media = {key: value.double() for key, value in shown.media.items()}
    model.set_attn_implementation(TRAIN_ATTENTION)
    with torch.no_grad():
        packed, _ = thin_pass(model, family.features(model, media), batch, given, family.placeholder)
    model.set_attn_implementation("eager")
    at = 0
    for video, questions in zip(videos, shown.questions, strict=True):
        for question in questions:
            parts = [{"type": "video"}, {"type": "text", "text": prompt(question)}]
            text = Adapter.render(None, [{"role": "user", "content": parts}])
            inputs = family.processor(text=f"{text} {question.answer}", videos=[video], return_tensors="pt")
            assert (inputs["input_ids"] == family.placeholder).sum() == shown.tokens == 8 * 17
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].double()
            with torch.no_grad():
                alone = model(**inputs).logits[0]
            words = int((batch.owners == batch.owners[at]).sum())
            torch.testing.assert_close(packed[at : at + words], alone[-words:], atol=1e-5, rtol=1e-5)
            at += words
    assert at == len(packed)


def test_trains_exports_and_answers_about_videos_and_images(family, tmp_path):
    recipe = dataclasses.replace(family.recipe, **TINY)
    trainer = FamilyTrainer(recipe, family=family)
    begun = {name: parameter.detach().clone() for name, parameter in trainer.module.named_parameters()}
    run(trainer, tmp_path, save_every=100, check_every=100)
    ended = dict(trainer.module.named_parameters())
    assert all(not torch.equal(begun[n], p) for n, p in ended.items() if "video_tower.encoder" in n or "heads" in n)
    trainer.export(tmp_path / "out")
    model, notes = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.values()), notes
    towers = (model.model.image_tower.state_dict(), model.model.video_tower.state_dict())
    assert all(torch.equal(value, towers[1][name]) for name, value in towers[0].items())
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(0)
    video = scenes.render(scenes.sample_scene(rng), rng)
    for media, text, tokens in (
        ({"videos": [video]}, "USER: <video>What? ASSISTANT:", 136),
        ({"images": [video[0]]}, "USER: <image>\nWhat? ASSISTANT:", 16),
    ):
        inputs = processor(text=text, **media, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        assert ids[0] == processor.tokenizer.bos_token_id
        assert ids.count(processor.tokenizer.bos_token_id) == 1
        assert max(ids.count(processor.image_token_id), ids.count(processor.video_token_id)) == tokens
        assert model.generate(**inputs, max_new_tokens=2).shape[1] > len(ids)


def test_frames_are_kept_where_the_search_copies_from(family):
    decoder = family.build(family.recipe).model.language_model
    found = family.directions(decoder)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "row": (4, 128),
        "column": (4, 128),
        "time": (8, 128),
    }
    every = torch.cat(list(found.values()))
    torch.testing.assert_close(every @ every.mT, torch.eye(16), atol=1e-4, rtol=0)
    assert all(torch.equal(found[name], value) for name, value in place_directions(decoder).items())
    words = decoder.embed_tokens.weight
    vocabulary = family.processor.tokenizer.get_vocab()
    for word in ("red", "cyan", "circle", "cross"):  # what videos show is found elsewhere
        assert (every @ words[vocabulary[word]]).abs().max() < 1e-4


def test_training_never_sees_a_test_scene(family, monkeypatch):
    seen = []
    monkeypatch.setattr(video_llava, "render", lambda scene, rng: seen.append(scene) or scenes.render(scene, rng))
    recipe = dataclasses.replace(family.recipe, **TINY | {"joint_scenes": 60, "joint_questions": 1})
    family.joint_step(recipe, 0)
    family.vision_step(dataclasses.replace(recipe, vision_images=20), 0)
    assert len(seen) == 80
    assert not any(is_test_scene(scene) for scene in seen)


def test_types_are_asked_by_their_shares(family):
    recipe = dataclasses.replace(family.recipe, **TINY | {"joint_scenes": 40, "joint_questions": 40})
    for step, types in ((0, SIMPLE), (2, TYPES)):
        shown, _ = family.joint_step(recipe, step)
        asked = Counter(question.type for questions in shown.questions for question in questions)
        assert asked.keys() == set(types)
        assert {len(questions) for questions in shown.questions} == {40}
    scene = scenes.sample_scene(np.random.default_rng(0), 1, 1)
    drawn = sample_questions(scene, np.random.default_rng(0), 300, {"exist": 9.0, "actor": 1.0}, ask)
    assert 0.8 < sum(question.type == "exist" for question in drawn) / 300 < 0.98
