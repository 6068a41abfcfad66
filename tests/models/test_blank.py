"""White pictures in the place of a document's own: pixels, text, answers, and that each answer says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from tests.models.test_media_models import FAMILIES, pixels, prompt_of, text_part
from tests.support.harness_data import picture, write_video
from vtw_eval.media import BLANK
from vtw_eval.model_adapters.lmms.models import LlavaVTW as LmmsLlava
from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
from vtw_eval.model_adapters.vlmeval.models import LlavaVTW as KitLlava
from vtw_eval.models.blank import as_asked
from vtw_eval.models.runner import DocumentError, Request, Runner
from vtw_eval.sweep.plan import parse_plan


def opened(checkpoint: Callable[[str], str], family: str, harness: str = "chat", **more: Any) -> Runner:
    adapter, limits = FAMILIES[family]
    given = {"pretrained": checkpoint(family), "method": "vtw", "k": 1, "verify": False, **limits, **more}
    kind = {"adapters": KIT_ADAPTERS} if harness == "kit" else {}
    return Runner(adapter, given, simple=False, device=torch.device("cpu"), log=lambda line: None, **kind)


@pytest.mark.parametrize("harness", ["chat", "kit"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "internvl_remote", "video_llava"])
def test_the_model_gets_a_white_picture_of_the_same_size_and_the_same_text(
    checkpoint: Callable[[str], str], tmp_path: Path, family: str, harness: str
) -> None:
    runner = opened(checkpoint, family, harness, image="blank")
    shown, white = tmp_path / "shown.png", tmp_path / "white.png"
    picture(4).resize((96, 64)).save(shown)
    Image.new("RGB", (96, 64), (255, 255, 255)).save(white)
    own = prompt_of(runner.family, harness, shown, as_path=False)
    asked, expected = as_asked(own, runner.options), prompt_of(runner.family, harness, white, as_path=False)
    assert asked.text == own.text and asked.notes == (BLANK,)
    assert [image.size for image in asked.images] == [image.size for image in own.images]
    assert torch.equal(pixels(runner.family, asked), pixels(runner.family, expected))
    assert not torch.equal(pixels(runner.family, asked), pixels(runner.family, own))
    one, other = (runner.family.encode([prompt]).inputs["input_ids"] for prompt in (asked, own))
    assert torch.equal(one, other)
    given = opened(checkpoint, family, harness).options
    assert as_asked(own, given) is own


def test_a_video_is_refused_and_a_text_stays(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", seed=3)
    runner = opened(checkpoint, "llava_onevision", image="blank")

    def asked(*content: dict[str, Any]) -> list[Request]:
        message = [{"role": "user", "content": [*content, text_part("What?")]}]
        return [Request("doc_id 0", 0, {"max_new_tokens": 2}, lambda family: family.chat_prompt(message))]

    with pytest.raises(DocumentError, match=r"doc_id 0: .*image=blank .* shows a video"):
        runner.answer(asked({"type": "video", "url": str(tmp_path / "clip.mp4")}), progress=False)
    (answer,) = runner.answer(asked(), progress=False)
    assert answer.costs.media == ()


def test_answers_are_those_about_a_white_picture_and_say_so_in_both_harnesses(
    checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    options = {"k": 1, "device": "cpu", "batch_size": "2", "verify": False, "pretrained": checkpoint("llava")}
    images = [picture(i).resize((64 + 8 * i, 64)) for i in range(3)]

    def of_lmms(image: str, documents: list[Image.Image]) -> list[tuple[str, Any]]:
        model = LmmsLlava(image=image, **options)
        model.task_dict = {"t": {"test": [{"image": each} for each in documents]}}

        def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"role": "user", "content": [{"type": "image", "url": doc["image"]}, text_part("What is it?")]}]

        given = [
            Instance(
                "generate_until",
                ("?", messages, {"max_new_tokens": 4}, i, "t", "test"),
                0,
                {"task": "t", "doc_id": i, "repeats": 1},
            )
            for i in range(len(documents))
        ]
        warned: list[str] = []
        model.runner.warn = warned.append
        answers = [(answer.text, answer.token_counts.to_dict()) for answer in model.generate_until(given)]
        assert warned == (["image=blank: " + line for line in told(len(documents))] if image == "blank" else [])
        return answers

    def told(count: int) -> list[str]:
        names = "; ".join(f"task t, split test, doc_id {i}" for i in range(count))
        return [f"{BLANK}: {count} documents ({names})"]

    blank, given = of_lmms("blank", images), of_lmms("given", images)
    white = of_lmms("given", [Image.new("RGB", image.size, "white") for image in images])
    assert [text for text, _ in blank] == [text for text, _ in white]
    assert [costs["media"] for _, costs in blank] == [[BLANK]] * 3
    assert [costs["media"] for _, costs in given] == [[]] * 3
    assert [costs["vision_tokens"] for _, costs in blank] == [costs["vision_tokens"] for _, costs in given]

    def of_kit(image: str, path: Path) -> dict[str, Any]:
        model = KitLlava(image=image, **{**options, "batch_size": "1"})
        parts = [{"type": "image", "value": str(path)}, {"type": "text", "value": "What is it?"}]
        found = model.generate_inner(parts, "MME")
        assert isinstance(found, dict)
        return found

    images[0].save(tmp_path / "own.png")
    Image.new("RGB", images[0].size, "white").save(tmp_path / "white.png")
    asked, expected = of_kit("blank", tmp_path / "own.png"), of_kit("given", tmp_path / "white.png")
    assert asked["prediction"] == expected["prediction"]
    assert asked["extra_records"]["media"] == [BLANK] and expected["extra_records"]["media"] == []


def test_cells_of_white_pictures_are_other_cells() -> None:
    def keys(**args: str) -> set[str]:
        model = {"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes", "args": args}
        plan = parse_plan({"models": [model], "methods": ["vtw,k=5"], "tasks": ["shapes_mme"]}, "test")
        return {spec.key for spec in plan.cells()}

    assert len(keys() | keys(image="blank")) == 2
    with pytest.raises(ValueError, match="'given' or 'blank'"):
        keys(image="black")
