"""Tokenizer, chat template, images."""

import numpy as np
import pytest
import torch
from jinja2.exceptions import TemplateError
from PIL import Image
from transformers import AutoProcessor

from vtw_eval.shapes.making.recipe import to_pixels
from vtw_eval.shapes.processor import build_processor
from vtw_eval.shapes.questions import TYPES, ask, prompt
from vtw_eval.shapes.scenes import render, sample_scene

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "How many?"}


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processor")
    build_processor().save_pretrained(directory)
    return AutoProcessor.from_pretrained(directory)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<image>\nHow many?", "<s>USER: <image>\nHow many? ASSISTANT:"),
        ([IMAGE, TEXT], "<s>USER: <image>\nHow many? ASSISTANT:"),
        ([IMAGE, IMAGE, TEXT], "<s>USER: <image>\n<image>\nHow many? ASSISTANT:"),
        ([TEXT, IMAGE, TEXT], "<s>USER: How many?<image>\nHow many? ASSISTANT:"),
        ([TEXT], "<s>USER: How many? ASSISTANT:"),
        ("How many?", "<s>USER: How many? ASSISTANT:"),
    ],
)
def test_chat_template_forms(processor, content, expected):
    messages = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    # lmms-eval's simple adapter asks the tokenizer instead of the processor.
    assert processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == expected


def test_chat_template_with_an_earlier_turn(processor):
    messages = [
        {"role": "user", "content": [IMAGE, TEXT]},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "How many?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<s>USER: <image>\nHow many? ASSISTANT: 3</s>USER: How many? ASSISTANT:"


def test_chat_template_refuses_other_media(processor):
    with pytest.raises(TemplateError, match="text and image parts, not audio"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_tokenized_template_has_one_begin_token_and_64_places_per_image(processor):
    picture = Image.fromarray(render(sample_scene(np.random.default_rng(0)), np.random.default_rng(0)))
    content = [{"type": "image", "image": picture}, {"type": "image", "image": picture}, TEXT]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0]
    assert (ids == processor.tokenizer.bos_token_id).sum() == 1
    assert (ids == processor.image_token_id).sum() == 128
    assert inputs["pixel_values"].shape == (2, 3, 64, 64)


def test_pixels_are_those_of_training(processor):
    images = [render(sample_scene(np.random.default_rng(i)), np.random.default_rng(i)) for i in range(3)]
    pixels = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    torch.testing.assert_close(pixels["pixel_values"], to_pixels(np.stack(images)), atol=1e-6, rtol=0)


def test_images_of_any_size_are_taken(processor):
    pixels = processor.image_processor([Image.new("L", (100, 37))], return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 64, 64)


def test_unknown_words_become_the_unknown_token(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("Is there a zebra \u00e9\u4e2d in the image?", add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.unk_token_id) >= 2
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("type", TYPES)
def test_answers_survive_encoding_and_decoding(processor, type):
    rng = np.random.default_rng(0)
    asked = [question for _ in range(50) if (question := ask(type, sample_scene(rng), rng))]
    tokenizer = processor.tokenizer
    for question in asked:
        ids = tokenizer(question.answer + tokenizer.eos_token)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == question.answer
        assert "\n" not in question.answer
        assert prompt(question).startswith(question.text)
