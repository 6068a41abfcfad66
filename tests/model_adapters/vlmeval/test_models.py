"""Our VLMEvalKit classes, called as the kit calls them."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.harness_data import picture, write_video
from vtw_eval.methods.vtw.method import default_k
from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
from vtw_eval.model_adapters.vlmeval.cli import _check as read_arguments
from vtw_eval.model_adapters.vlmeval.cli import parse_model_args
from vtw_eval.model_adapters.vlmeval.models import (
    CostedAnswer,
    InternVLVTW,
    LlavaVTW,
    Qwen2VLVTW,
    VideoLlavaVTW,
    check_arguments,
)
from vtw_eval.model_adapters.vlmeval.prompts.base import KitQuestion
from vtw_eval.model_adapters.vlmeval.prompts.internvl import mark_images, most_tiles
from vtw_eval.model_adapters.vlmeval.prompts.llava import VICUNA_SYSTEM, first_turn, pad_to_square
from vtw_eval.model_adapters.vlmeval.registry import CHECKPOINTS, METHODS, entries, register
from vtw_eval.models.runner import DocumentError, Request, Runner

CLASSES = {"llava": LlavaVTW, "qwen2_vl": Qwen2VLVTW, "internvl": InternVLVTW, "video_llava": VideoLlavaVTW}
SMALL = {"qwen2_vl": {"min_pixels": 784, "max_pixels": 6272}}


@pytest.fixture(scope="session")
def media(shared: Callable[..., Path]) -> Path:
    """Return a folder with three pictures and a video."""

    def make(folder: Path) -> None:
        for i in range(3):
            picture(i).save(folder / f"{i}.png")
        write_video(folder / "video.mp4", 0)

    return shared("kit_media", make)


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], str]) -> Callable[..., Any]:
    """Return a model of a family, opened once."""
    opened: dict[str, Any] = {}

    def open_once(family: str) -> Any:
        if family not in opened:
            options = {"k": 3, "device": "cpu", "max_new_tokens": 8, **SMALL.get(family, {})}
            opened[family] = CLASSES[family](pretrained=checkpoint(family), **options)
        return opened[family]

    return open_once


def interleaved(media: Path) -> list[dict[str, str]]:
    first, second = ({"type": "image", "value": str(media / f"{i}.png")} for i in range(2))
    texts = [{"type": "text", "value": text} for text in ("Compare ", " with ", ".")]
    return [texts[0], first, texts[1], second, texts[2]]


@pytest.mark.parametrize("family", CLASSES)
def test_costs_are_the_runners(model: Callable[..., Any], media: Path, family: str) -> None:
    made = model(family)
    message = interleaved(media)
    answer = made.generate([dict(part) for part in message], dataset="MME")
    question = KitQuestion(message, "MME", made.nframe, made.fps)
    build = lambda found: found.kit_prompt(question)  # noqa: E731
    (expected,) = made.runner.answer([Request("one", 0, {"max_new_tokens": 8}, build)], progress=False)
    costs = {**expected.costs.to_dict(), "latency_s": answer["extra_records"]["latency_s"]}
    assert answer == {"prediction": expected.text, "extra_records": costs}
    assert answer["extra_records"]["vision_tokens"] > 0
    assert answer["extra_records"]["vision_per_layer"][2:] == [answer["extra_records"]["vision_tokens"], 0]


@pytest.mark.parametrize("family", CLASSES)
def test_texts_images_and_videos(model: Callable[..., Any], media: Path, family: str) -> None:
    made = model(family)
    seen = {}
    for name, message in {
        "text": ["Is it?"],
        "image": [str(media / "2.png"), "Is it?"],
        "another": [str(media / "1.png"), "Is it?"],
        "images": interleaved(media),
    }.items():
        answer = made.generate(message)
        assert isinstance(answer, str)
        seen[name] = (answer, answer.costs["vision_tokens"])
    assert seen["text"][1] == 0 < seen["image"][1] < seen["images"][1]
    assert len({answer for answer, _ in seen.values()}) == 4, "the answer depends on what is shown"
    if family == "llava":
        with pytest.raises(DocumentError, match=r"video.mp4 'Is it\?': ValueError: llava checkpoints take no video"):
            made.generate([str(media / "video.mp4"), "Is it?"])
        return
    answer = made.generate([str(media / "video.mp4"), "Is it?"], dataset="Video-MME")
    assert isinstance(answer, CostedAnswer)
    assert answer.costs["vision_tokens"] > 0


def test_prompts_of_llava_1_5(checkpoint: Callable[[str], str], media: Path) -> None:
    made = LlavaVTW(pretrained=checkpoint("llava"), k=1, device="cpu", conversation="llava_v1")
    prompt = made.family.kit_prompt(KitQuestion(interleaved(media)))
    assert prompt.text == f"{VICUNA_SYSTEM}USER: Compare  <image>  with  <image> . ASSISTANT: "
    assert [image.size for image in prompt.images] == [(64, 64), (96, 96)]
    assert prompt.images[1].getpixel((0, 0)) == tuple(
        int(255 * x) for x in made.family.processor.image_processor.image_mean
    )
    row = {"question": "Which?", "hint": "Look.", "A": "one", "B": "two", "C": float("nan")}
    (image, text) = made.family.own_prompt(row, "AI2D_TEST", ["a.png"])
    assert image == {"type": "image", "value": "a.png"}
    assert text["value"] == (
        "Look.\nWhich?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly."
    )
    assert not made.use_custom_prompt("MME")
    assert made.family.conversation == "llava_v1"


def test_padding_centres_the_picture() -> None:
    square = pad_to_square(picture(1), (1, 2, 3))
    assert square.size == (96, 96)
    assert square.crop((0, 20, 96, 76)).tobytes() == picture(1).tobytes()
    assert square.getpixel((0, 19)) == square.getpixel((95, 76)) == (1, 2, 3)


def test_answers_end_with_the_turn() -> None:
    assert first_turn("A cat. </s>USER: more", "ASSISTANT:") == "A cat."
    assert first_turn(" no ASSISTANT: yes", "ASSISTANT:") == "no"
    assert first_turn("<s> a<unk>b", None) == "ab"


def test_questions_in_chinese_end_in_chinese(model: Callable[..., Any]) -> None:
    row = {"question": "这是什么?", "A": "一", "B": "二"}
    words = "Question: 这是什么?\nOptions:\nA. 一\nB. 二\n"
    for dataset, ending in (
        ("MMBench_DEV_EN", "请直接回答选项字母。"),
        ("MMMU_DEV_VAL", "Please select the correct answer from the options above."),
    ):
        message = model("qwen2_vl").family.own_prompt(row, dataset, ["a.png"])
        assert message == [{"type": "image", "value": "a.png"}, {"type": "text", "value": words + ending}]


def test_questions_are_worded_as_the_class_for_the_family_words_them(checkpoint: Callable[[str], str]) -> None:
    row = {"question": "What is it?", "A": "one", "B": "two"}
    made = Qwen2VLVTW(pretrained=checkpoint("qwen3_vl"), k=3, device="cpu")
    message = made.family.own_prompt(row, "AI2D_TEST", ["a.png"])
    words = "Question: What is it?\nOptions:\nA. one\nB. two\nAnswer with the option letter only."
    assert message == [{"type": "image", "value": "a.png"}, {"type": "text", "value": words}]
    assert not made.use_custom_prompt("AI2D_TEST"), "as in the kit's entries"
    arguments = made.family.generation({})
    assert (arguments["max_new_tokens"], arguments["do_sample"]) == (32768, False)


def test_marks_of_internvl() -> None:
    image, text = {"type": "image", "value": "i.png"}, {"type": "text", "value": "Q"}
    assert mark_images(KitQuestion([text, image])) == "<image>\nQ"
    assert mark_images(KitQuestion([text, image, image])) == "Image-1: <image>\nImage-2: <image>\nQ"
    assert mark_images(KitQuestion([image, text, image])) == "Image-1: <image>\nImage-2: <image>\n<Image-1>Q<Image-2>"
    frames = [*([image] * 2), text, {"type": "text", "value": "\nAnswer: "}]
    assert mark_images(KitQuestion(frames, "Video-MME")) == (
        "Frame-1: <image>\nFrame-2: <image>\nQ \nAnswer with the option's letter from the given choices directly."
    )
    assert [most_tiles(name, n) for name, n in (("MME", 1), ("MMMU_DEV_VAL", 1), ("DocVQA_VAL", 4), ("MME", 100))] == [
        *(6, 12, 16, 1)
    ]


def test_arguments_are_checked_before_loading() -> None:
    for arguments, message in (
        ({}, "llava_vtw needs a checkpoint"),
        ({"pretrained": "a", "model_path": "b"}, "the same option"),
        ({"pretrained": "a", "batch_size": 0}, "must be 1 or more"),
        ({"pretrained": "a", "k": "search"}, "vtw-eval search-k"),
        ({"pretrained": "a", "conversation": "v2"}, "conversation"),
        ({"pretrained": "a", "max_tokens": 4}, "unknown option 'max_tokens' of llava_vtw"),
    ):
        with pytest.raises(ValueError, match=message):
            check_arguments("llava_vtw", arguments)
    with pytest.raises(ValueError, match="use-vllm"):
        LlavaVTW(pretrained="a", use_vllm=True)
    with pytest.raises(ValueError, match="'k' stands 2 times"):
        parse_model_args("pretrained=a,k=2,k=3")
    assert parse_model_args(" k=2, pretrained=a=b,") == {"k": "2", "pretrained": "a=b"}


def test_a_name_that_stands_twice_in_a_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"model": {"a": {"class": "LlavaVTW", "k": 2, "k": 3}}, "data": {"MME": {}}}')
    given = Namespace(config=str(file), api_mode=False, data=None, model=None, limit=None)
    with pytest.raises(ValueError, match="'k' stands 2 times in one object of --config"):
        read_arguments(given, {})


def test_named_models(checkpoint: Callable[[str], str]) -> None:
    import vlmeval.vlm
    from vlmeval.config import supported_VLM

    register()
    found = entries()
    assert len(found) == len(KIT_ADAPTERS) + len(CHECKPOINTS) * len(METHODS)
    for name, maker in found.items():
        assert supported_VLM[name].func is maker.func is getattr(vlmeval.vlm, maker.func.__name__)
        if name not in KIT_ADAPTERS:
            check_arguments(maker.func.adapter, dict(maker.keywords))
    k = {
        name: default_k(SimpleNamespace(name=arguments["pretrained"], num_layers=40))  # type: ignore[arg-type]
        for name, (_, arguments) in CHECKPOINTS.items()
    }
    assert k == {
        "LLaVA-1.5-7B": 16,
        "LLaVA-1.5-13B": 20,
        "LLaVA-NeXT-7B": 16,
        "Video-LLaVA-7B": 16,
        "Qwen2-VL-2B": 18,
        "InternVL2-4B": 16,
    }
    made = found["LLaVA-1.5-7B-VTW"](pretrained=checkpoint("llava"), k=3, device="cpu")
    assert made.runner.method.k == 3


def test_answers_keep_their_costs_in_the_kits_files() -> None:
    answer = pickle.loads(pickle.dumps(CostedAnswer("yes", {"vision_tokens": 3})))
    assert (answer, str(answer), answer.costs) == ("yes", "yes", {"vision_tokens": 3})


def test_lmms_evals_families_are_refused(checkpoint: Callable[[str], str], media: Path) -> None:
    runner = Runner(
        "llava_vtw", {"pretrained": checkpoint("llava")}, simple=False, device=torch.device("cpu"), log=lambda m: None
    )
    made = LlavaVTW(pretrained=checkpoint("llava"), k=1, device="cpu")
    made.runner = runner
    with pytest.raises(TypeError, match="Llava does not follow VLMEvalKit's protocol"):
        made.generate([str(media / "0.png"), "Is it?"])


def test_frames_do_not_depend_on_the_dataset_before(model: Callable[..., Any]) -> None:
    made = model("qwen2_vl")
    made.nframe, made.fps = 4, None  # as the kit leaves them after a dataset of four frames
    made.reset_frames()
    assert (made.nframe, made.fps) == (128, 2.0)
