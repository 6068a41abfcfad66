"""The shipped checkpoint: loads plainly, answers, batches, and needs its vision tokens."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from tests.support.shapes import answer, encode
from vtw_eval import VTW
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.processor import build_processor
from vtw_eval.shapes.questions import TYPES


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(CHECKPOINT)


def test_it_is_small_and_loads_through_the_auto_classes():
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 6e6
    model, notes = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert not any(notes.values()), notes
    assert model.dtype == torch.float32
    assert model.generation_config.do_sample is False


def test_the_saved_processor_is_the_one_of_the_code(processor):
    built = build_processor()
    assert processor.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert processor.chat_template == built.chat_template
    assert processor.image_processor.to_dict() == built.image_processor.to_dict()


@pytest.mark.parametrize("type", TYPES)
def test_held_out_accuracy(model, processor, type):
    count = 20 if type == "caption" else 60
    assert answer(model, processor, held_out(type, count)).accuracy >= 0.9


def test_left_padded_batches_answer_as_single_questions(model, processor):
    samples = [sample for type in TYPES for sample in held_out(type, 3)]
    batch = encode(processor, samples)
    assert (batch["attention_mask"] == 0).any()
    together = model.generate(**batch, max_new_tokens=24)
    prompt = batch["input_ids"].shape[1]
    answers = processor.batch_decode(together[:, prompt:], skip_special_tokens=True)
    for sample, expected in zip(samples, answers, strict=True):
        single = encode(processor, [sample])
        ids = model.generate(**single, max_new_tokens=24)[:, single["input_ids"].shape[1] :]
        assert processor.batch_decode(ids, skip_special_tokens=True) == [expected]


def test_text_only_and_unknown_words_do_not_crash(model, processor):
    text = processor.apply_chat_template(
        [{"role": "user", "content": "Why is there a zebra?"}], add_generation_prompt=True
    )
    inputs = processor(text=text, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_early_withdrawal_ruins_and_late_withdrawal_does_not(model, processor):
    samples = held_out("choice", 60)
    full = answer(model, processor, samples)
    none, early, late = (answer(model, processor, samples, VTW(k=k)(model)) for k in (10, 0, 8))
    assert full.divergence(none) == pytest.approx(0, abs=1e-9)
    assert early.accuracy < 0.6
    assert late.accuracy >= full.accuracy - 0.05
    assert full.divergence(early) > 1 > 0.1 > full.divergence(late)
