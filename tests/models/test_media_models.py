"""Odd pictures and odd words on their way through every adapter, both protocols and both harnesses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history, reset_logged_metrics
from PIL import Image, ImageFile

from tests.support.harness_data import picture
from vtw_eval.media import strictly
from vtw_eval.methods.dyvte.train import TrainingSample, encode
from vtw_eval.model_adapters.lmms.models import LlavaVTW as LmmsLlava
from vtw_eval.model_adapters.lmms.models import LlavaVTWSimple
from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
from vtw_eval.model_adapters.vlmeval.models import LlavaVTW as KitLlava
from vtw_eval.model_adapters.vlmeval.prompts.base import KitQuestion
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.runner import DocumentError, Request, Runner
from vtw_eval.shapes.processor import build_processor

RAMP = (np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16)
EIGHT_BITS = Image.fromarray(np.rint(RAMP / 257).astype(np.uint8)).convert("RGB")
"""What a viewer shows of the ramp."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": ("llava_vtw", {}),
    "llava_next": ("llava_vtw", {}),
    "llava_onevision": ("llava_vtw", {}),
    "qwen2_vl": ("qwen2vl_vtw", {"min_pixels": 784, "max_pixels": 784 * 16}),
    "qwen2_5_vl": ("qwen2vl_vtw", {"min_pixels": 784, "max_pixels": 784 * 16}),
    "qwen3_vl": ("qwen2vl_vtw", {"min_pixels": 1024, "max_pixels": 1024 * 16}),
    "internvl": ("internvl_vtw", {}),
    "internvl_remote": ("internvl_vtw", {"trust_remote_code": True}),
    "video_llava": ("video_llava_vtw", {}),
}


@pytest.fixture(scope="module")
def opened(checkpoint: Callable[[str], str]) -> Callable[..., Runner]:
    made: dict[tuple[Any, ...], Runner] = {}

    def make(family: str, harness: str = "chat", media: str = "harness") -> Runner:
        key = (family, harness, media)
        if key not in made:
            adapter, limits = FAMILIES[family]
            arguments = {"pretrained": checkpoint(family), "method": "vtw", "k": 1, "media": media, **limits}
            more = {"adapters": KIT_ADAPTERS} if harness == "kit" else {"simple": harness == "simple"}
            given = {"simple": False, "device": torch.device("cpu"), "log": lambda message: None, **more}
            made[key] = Runner(adapter, {"verify": False, **arguments}, **given)
        return made[key]

    return make


def prompt_of(family: Any, harness: str, path: Path, *, as_path: bool = True, text: str = "?") -> DocumentPrompt:
    given = str(path) if as_path else Image.open(path)
    if harness == "kit":
        parts = [{"type": "image", "value": str(path)}, {"type": "text", "value": text}]
        return family.kit_prompt(KitQuestion(parts, "MME"))
    if harness == "simple":
        return family.simple_prompt(text, [given])
    return family.chat_prompt([{"role": "user", "content": [{"type": "image", "url": given}, text_part(text)]}])


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def pixels(family: Any, prompt: DocumentPrompt) -> torch.Tensor:
    inputs = family.encode([prompt]).inputs
    return inputs.get("pixel_values", inputs.get("pixel_values_images")).float()


@pytest.mark.parametrize("harness", ["chat", "simple", "kit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_deep_grey(
    opened: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, harness: str
) -> None:
    deep, eight, stock = tmp_path / "deep.png", tmp_path / "eight.png", tmp_path / "stock.png"
    Image.fromarray(RAMP).save(deep)
    EIGHT_BITS.save(eight)
    Image.open(deep).convert("RGB").save(stock)
    default = opened(family, harness).family
    prompt = prompt_of(default, harness, deep, as_path=False)
    assert prompt.notes == ("16-bit grey clipped",)
    if family == "internvl_remote" and harness != "kit":  # resized before it is converted
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "support" / "stubs"))
        from lmms_eval.models.simple.internvl2 import load_image

        expected = load_image(Image.open(deep), input_size=56, max_num=6)
    else:
        expected = pixels(default, prompt_of(default, harness, stock))
    torch.testing.assert_close(pixels(default, prompt), expected)
    upright = opened(family, harness, "upright").family
    prompt = prompt_of(upright, harness, deep, as_path=False)
    assert prompt.notes == ()
    right = pixels(upright, prompt_of(upright, harness, eight))
    torch.testing.assert_close(pixels(upright, prompt), right)
    if harness == "kit" or (family in ("qwen2_5_vl", "qwen3_vl") and harness == "chat"):
        return
    # No adapter of lmms-eval takes a picture by its path here.
    prompt = prompt_of(default, harness, deep)
    assert prompt.notes == ()
    torch.testing.assert_close(pixels(default, prompt), right)


@pytest.mark.parametrize("harness", ["chat", "simple", "kit"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "internvl_remote"])
def test_turned_pictures(opened: Callable[..., Runner], tmp_path: Path, family: str, harness: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(3).resize((96, 64))
    turned, plain, seen = tmp_path / "turned.png", tmp_path / "plain.png", tmp_path / "seen.png"
    stored.save(turned, exif=exif)
    stored.save(plain)
    Image.fromarray(np.rot90(np.asarray(stored), -1)).save(seen)
    default, upright = (opened(family, harness, media).family for media in ("harness", "upright"))
    prompt = prompt_of(default, harness, turned, as_path=False)
    assert prompt.notes == ("orientation tag ignored",)
    torch.testing.assert_close(pixels(default, prompt), pixels(default, prompt_of(default, harness, plain)))
    prompt = prompt_of(upright, harness, turned, as_path=False)
    assert prompt.notes == ()
    torch.testing.assert_close(pixels(upright, prompt), pixels(upright, prompt_of(upright, harness, seen)))


def requests(*content: tuple[str, int]) -> list[Request]:
    def build(text: str, count: int) -> Callable[[Family[Any]], DocumentPrompt]:
        images = [{"type": "image", "url": picture(i)} for i in range(count)]
        return lambda family: family.chat_prompt([{"role": "user", "content": [*images, text_part(text)]}])

    return [
        Request(f"doc_id {i}", 0, {"max_new_tokens": 3}, build(text, count)) for i, (text, count) in enumerate(content)
    ]


MARKS = {
    "llava": "<image>",
    "llava_next": "<image>",
    "llava_onevision": "<video>",
    "qwen2_vl": "<|image_pad|>",
    "internvl": "<IMG_CONTEXT>",
    "internvl_remote": "<IMG_CONTEXT>",
    "video_llava": "<image>",
}


@pytest.mark.parametrize("family", MARKS)
def test_words_that_are_a_mark_fail_their_document_only(opened: Callable[..., Runner], family: str) -> None:
    made = opened(family)
    made.batch_size = 3
    asked = requests(("What is it?", 1), (f"What does {MARKS[family]} mean?", 1), ("How many?", 1))
    with pytest.raises(DocumentError, match=r"^doc_id 1: ValueError: .*cannot be told from") as caught:
        made.answer(asked, progress=False)
    alone = [answer.text for answer in made.answer([asked[0], asked[2]], progress=False)]
    assert {place: answer.text for place, answer in caught.value.answers.items()} == dict(
        zip((0, 2), alone, strict=True)
    )


def test_rows_whose_mismatches_cancel(opened: Callable[..., Runner]) -> None:
    made = opened("llava", "simple")
    made.batch_size = 2

    def build(text: str, count: int) -> Callable[[Family[Any]], DocumentPrompt]:
        return lambda family: DocumentPrompt(f"USER: {text} ASSISTANT:", tuple(picture(i) for i in range(count)))

    asked = [
        Request(f"doc_id {i}", 0, {"max_new_tokens": 3}, build(text, 1))
        for i, text in enumerate(("<image><image> Is it?", "Is it?"))
    ]
    with pytest.raises(DocumentError, match=r"2 of 2 documents .* doc_id 0: .* 2 image marks .* doc_id 1: .* 0 image"):
        made.answer(asked, progress=False)


def test_after_many_failures_in_a_row_nothing_more_is_tried(opened: Callable[..., Runner]) -> None:
    tried = []

    def broken(family: Family[Any]) -> DocumentPrompt:
        tried.append(1)
        raise KeyError("image")

    asked = [Request(f"doc_id {i}", 0, {}, broken) for i in range(30)]
    made = opened("llava")
    made.batch_size = 1
    with pytest.raises(DocumentError, match=r"10 documents in a row .* doc_id 0: KeyError"):
        made.answer(asked, progress=False)
    assert len(tried) == 10


def test_words_stay_words_where_internvls_own_code_keeps_them(opened: Callable[..., Runner]) -> None:
    words = "What does <image> mean?"
    remote = opened("internvl_remote", "simple").family
    found = remote.tokenizer.decode(remote.encode([remote.simple_prompt(words, [picture(0)])]).inputs["input_ids"][0])
    assert words in found and found.index("</img>") < found.index(words)
    for family in ("internvl", "internvl_remote"):
        made = opened(family, "kit").family
        path = [{"type": "image", "value": ""}, {"type": "text", "value": words}]
        prompt = made.kit_prompt(KitQuestion([path[1]], "MME"))
        assert words in made.tokenizer.decode(made.encode([prompt]).inputs["input_ids"][0])


@pytest.fixture
def models(checkpoint: Callable[[str], str]) -> Callable[..., Any]:
    def make(cls: Any, media: str) -> Any:
        options = {"k": 1, "device": "cpu", "batch_size": "2", "verify": False}
        made = cls(pretrained=checkpoint("llava"), media=media, **options)
        made.warned = []
        made.runner.warn = made.warned.append
        return made

    return make


@pytest.mark.parametrize("cls", [LmmsLlava, LlavaVTWSimple])
def test_pictures_that_a_task_converts(models: Callable[..., Any], cls: Any) -> None:
    """Most tasks hand on ``image.convert("RGB")``, where nothing can be seen any more."""
    documents = [{"image": Image.fromarray(RAMP)}, {"image": EIGHT_BITS}, {"image": EIGHT_BITS.convert("RGBA")}]

    def visuals(doc: dict[str, Any]) -> list[Image.Image]:
        return [doc["image"].convert("RGB")]

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        images = [{"type": "image", "url": image} for image in visuals(doc)]
        return [{"role": "user", "content": [*images, text_part("?")]}]

    def ask(model: Any) -> list[Any]:
        model.task_dict = {"t": {"test": documents}}
        limit = {"max_new_tokens": 4}
        given = [
            ("?", limit, visuals, i, "t", "test") if cls is LlavaVTWSimple else ("?", messages, limit, i, "t", "test")
            for i in range(3)
        ]
        more = [{"task": "t", "doc_id": i, "repeats": 1} for i in range(3)]
        reset_logged_metrics()
        return model.generate_until([Instance("generate_until", a, 0, m) for a, m in zip(given, more, strict=True)])

    default = models(cls, "harness")
    answers = ask(default)
    media = [answer.token_counts.to_dict()["media"] for answer in answers]
    assert media == [["16-bit grey clipped"], [], []]
    assert get_logged_metrics_history()[-1]["num_media_noted"] == 1
    assert default.warned == [
        "16-bit grey clipped: 1 document (task t, split test, doc_id 0), shown as the harness's own adapter does; "
        "media=upright shows what a viewer shows"
    ]
    upright = models(cls, "upright")
    answers = ask(upright)
    assert [answer.token_counts.to_dict()["media"] for answer in answers] == [[], [], []]
    assert answers[0].text == answers[1].text
    assert upright.warned == []


def test_cut_pictures_of_a_task_are_counted(models: Callable[..., Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    cut = file.getvalue()[: len(file.getvalue()) * 9 // 10]

    class Documents:
        def __getitem__(self, place: int) -> dict[str, Any]:
            image = Image.open(io.BytesIO(cut if place == 1 else file.getvalue()))
            image.load()  # as datasets does
            return {"image": image}

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": doc["image"].convert("RGB")}, text_part("?")]
        return [{"role": "user", "content": content}]

    model = models(LmmsLlava, "harness")
    model.task_dict = {"t": {"test": Documents()}}
    with strictly():
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # as lmms-eval does
        answers = model.generate_until(
            [
                Instance(
                    "generate_until",
                    ("?", messages, {"max_new_tokens": 2}, i, "t", "test"),
                    0,
                    {"task": "t", "doc_id": i, "repeats": 1},
                )
                for i in range(3)
            ]
        )
    noted = [answer.token_counts.to_dict()["media"] for answer in answers]
    assert noted == [[], ["file is truncated or damaged"], []]
    assert len(model.warned) == 1 and "1 document (task t, split test, doc_id 1)" in model.warned[0]


def in_base64(image: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Any]:
    from vlmeval.dataset.image_mcq import CustomMCQDataset

    monkeypatch.setenv("LMUData", str(tmp_path))

    def make(images: list[str]) -> Any:
        rows = [
            {"index": 40 + i, "image": image, "question": "?", "A": "one", "B": "two", "answer": "A"}
            for i, image in enumerate(images)
        ]
        pd.DataFrame(rows).to_csv(tmp_path / "Odd.tsv", sep="\t", index=False)
        return CustomMCQDataset(dataset="Odd")

    return make


def test_pictures_of_the_kits_tables(
    checkpoint: Callable[[str], str], table: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = picture(2)
    half = stored.convert("RGBA")
    half.paste((255, 0, 0, 0), (0, 0, half.width // 2, half.height))
    inks = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    images = [
        in_base64(stored, "PNG"),
        in_base64(stored, "PNG", exif=exif),
        in_base64(half, "PNG"),
        in_base64(Image.fromarray(RAMP), "PNG"),
        in_base64(inks, "JPEG"),
    ]
    white = np.asarray(stored).copy()
    white[:, : stored.width // 2] = 255
    red = np.asarray(stored).copy()
    red[:, : stored.width // 2] = (255, 0, 0)
    as_dumped = [np.asarray(stored), np.asarray(stored), red, np.where(RAMP > 255, 255, RAMP)[..., None].repeat(3, 2)]
    as_seen = [np.asarray(stored), np.asarray(stored)[::-1, ::-1], white, np.asarray(EIGHT_BITS)]
    notes = [(), ("orientation tag ignored",), ("transparency dropped",), ("16-bit grey clipped",), ()]
    for media, right, noted in (("upright", as_seen, [()] * 5), ("harness", as_dumped, notes)):
        model = KitLlava(
            pretrained=checkpoint("llava"), method="baseline", device="cpu", media=media, verify=False, max_new_tokens=2
        )
        dataset = table(images)
        model.set_dump_image(dataset.dump_image)
        model.set_dump_image(dataset.dump_image)  # the next model on the same dataset
        shown: list[DocumentPrompt] = []
        answer = model.runner.answer

        def watched(asked: list[Request], *, progress: bool) -> Any:
            shown.append(asked[0].build(model.runner.family))  # noqa: B023
            assert asked[0].name == f"Odd, index {39 + len(shown)}"  # noqa: B023
            return answer(asked, progress=progress)  # noqa: B023

        monkeypatch.setattr(model.runner, "answer", watched)
        for i in range(len(images)):
            line = dataset.data.iloc[i]
            prompt = model.build_prompt(line, "Odd") if i % 2 else dataset.build_prompt(line)
            said = model.generate(prompt, dataset="Odd")
            assert said["extra_records"]["media"] == list(noted[i]), (media, i)
        for prompt, expected in zip(shown, right, strict=False):
            assert np.abs(np.asarray(prompt.images[0]).astype(int) - expected).max() <= 1
        assert np.abs(np.asarray(shown[4].images[0])[20, 20].astype(int) - [255, 0, 0]).max() < 8


def test_a_broken_picture_of_a_table_names_its_question(
    checkpoint: Callable[[str], str], table: Callable[[list[str]], Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    whole = in_base64(Image.fromarray(noise), "PNG")
    broken = base64.b64encode(base64.b64decode(whole)[:-600]).decode()
    model = KitLlava(pretrained=checkpoint("llava"), method="baseline", device="cpu", verify=False, max_new_tokens=2)
    dataset = table([whole, broken])
    model.set_dump_image(dataset.dump_image)
    with strictly():
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # as lmms-eval left it in this process
        for ask in (dataset.build_prompt, lambda line: model.build_prompt(line, "Odd")):
            with pytest.raises(DocumentError, match="Odd, index 41: OSError: image file is truncated"):
                ask(dataset.data.iloc[1])


def test_gates_are_trained_on_what_a_viewer_shows(tmp_path: Path) -> None:
    """No harness has an example for them."""
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(RAMP).save(tmp_path / "deep.png", exif=exif)
    Image.fromarray(np.rot90(np.asarray(EIGHT_BITS))).save(tmp_path / "seen.png")
    processor = build_processor()
    deep, seen = (
        encode(processor, [TrainingSample(tmp_path / f"{name}.png", "?", "Yes")]) for name in ("deep", "seen")
    )
    torch.testing.assert_close(deep.inputs["pixel_values"], seen.inputs["pixel_values"])
