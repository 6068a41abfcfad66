"""Sizes of pictures, frames of videos and what is told of their pace, for the Qwen families in both harnesses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("qwen_vl_utils")

from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils.vision_process import smart_nframes

from tests.support.videos import edit, smooth, write_clip
from vtw_eval.models.qwen2_vl import SECONDS, SYSTEM, TIMES, UNBOUNDED, resize_image, resized_sides
from vtw_eval.models.runner import DocumentError, Request, Runner
from vtw_eval.models.video import EDITED, REPEATED, SHORT

BOUNDS = {"min_pixels": 784, "max_pixels": 3136}
PATHS = ("simple", "chat", "kit")


@pytest.fixture(scope="module")
def runner(checkpoint: Callable[[str], str]) -> Callable[..., Runner]:
    """Open a family under a protocol of lmms-eval or under VLMEvalKit, once."""
    opened: dict[Any, Runner] = {}

    def open_once(family: str, path: str, adapter: str = "qwen2vl_vtw", **options: Any) -> Runner:
        given = {"pretrained": checkpoint(family), "method": "baseline", **options}
        key = (family, path, *sorted(options.items()))
        if key not in opened:
            more = {}
            if path == "kit":
                pytest.importorskip("vlmeval")
                from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS

                more = {"adapters": KIT_ADAPTERS}
            device = torch.device("cpu")
            opened[key] = Runner(adapter, given, simple=path == "simple", device=device, log=lambda line: None, **more)
        return opened[key]

    return open_once


def prompt_of(runner: Runner, path: str, kind: str, file: Path, nframe: int | None, fps: float | None) -> Any:
    """Build the prompt of a document with one picture or video."""
    if path == "kit":
        from vtw_eval.model_adapters.vlmeval.prompts.base import KitQuestion

        parts = [{"type": kind, "value": str(file)}, {"type": "text", "value": "?"}]
        return runner.family.kit_prompt(KitQuestion(parts, "Video-MME" if kind == "video" else "MME", nframe, fps))
    visual = str(file) if kind == "video" else Image.open(file)
    if path == "simple":
        return runner.family.simple_prompt("?", [visual])
    content = [{"type": kind, "url": visual}, {"type": "text", "text": "?"}]
    return runner.family.chat_prompt([{"role": "user", "content": content}])


def ask(
    runner: Runner, path: str, kind: str, file: Path, nframe: int | None = None, fps: float | None = None
) -> tuple[Any, Any]:
    """Answer a document; return the costs, and the arguments of the model."""
    request = Request("one", 0, {"max_new_tokens": 1}, lambda _: prompt_of(runner, path, kind, file, nframe, fps))
    (answer,) = runner.answer([request], progress=False)
    prompt = prompt_of(runner, path, kind, file, nframe, fps)
    return answer.costs, runner.family.encode([prompt]).inputs


NARROW = [
    (2000, 28, 50176, (64 * 28, 28)),
    (28, 2000, 50176, (28, 64 * 28)),
    (31, 639, 15680, (28, 20 * 28)),
    (5, 700, 15680, (28, 20 * 28)),
    (300, 2, 784 * 3, (3 * 28, 28)),
]
"""Height, width, largest area, and the sides."""


@pytest.mark.parametrize(("height", "width", "most", "expected"), NARROW)
def test_a_narrow_picture_keeps_one_patch_and_the_most_others(
    height: int, width: int, most: int, expected: tuple[int, int]
) -> None:
    assert resized_sides(height, width, 784, most) == expected
    # By trying: one patch on the short side, and as many on the other as the bound allows.
    length = max(n for n in range(1, 1000) if 28 * 28 * n <= most)
    assert sorted(expected) == [28, 28 * length]
    with pytest.raises(ValueError, match="must be > 0"):
        fetch_image({"image": Image.new("RGB", (width, height)), "min_pixels": 784, "max_pixels": most})


def test_other_sizes_are_those_of_qwen_vl_utils() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        width, height = (int(side) for side in rng.integers(1, 400, 2))
        if max(width, height) > 20 * min(width, height):
            continue
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        bounds = {"min_pixels": 3136, "max_pixels": 784 * int(rng.integers(20, 60))}
        np.testing.assert_array_equal(
            np.asarray(resize_image(image, **bounds)), fetch_image({"image": image, **bounds})
        )
        np.testing.assert_array_equal(np.asarray(resize_image(image)), fetch_image({"image": image}))
        np.testing.assert_array_equal(
            np.asarray(resize_image(image, **bounds, patch=16)),
            fetch_image({"image": image, **bounds}, image_patch_size=16),
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_narrow_pictures_and_frames_are_answered(
    runner: Callable[..., Runner], tmp_path: Path, family: str, path: str
) -> None:
    made = runner(family, path, min_pixels=784, max_pixels=15680)
    Image.new("RGB", (31, 639), "red").save(tmp_path / "narrow.png")
    costs, inputs = ask(made, path, "image", tmp_path / "narrow.png")
    # 20 patches of 28 x 28 have 15680 pixels; transformers, which alone resizes there, goes one beyond the bound.
    patches = 21 if (family, path) == ("qwen2_5_vl", "chat") else 20
    assert costs.vision_tokens == patches
    assert inputs["image_grid_thw"].tolist() == [[1, 2 * patches, 2]]
    video = write_clip(tmp_path / "narrow.mp4", smooth(4, 640, 32))
    costs, inputs = ask(made, path, "video", video, nframe=4)
    assert inputs["video_grid_thw"][:, 1:].min() >= 2
    assert costs.vision_tokens == inputs["video_grid_thw"].prod() // 4


@pytest.mark.parametrize("path", PATHS)
def test_a_ratio_beyond_the_model_names_its_document_only(
    runner: Callable[..., Runner], tmp_path: Path, path: str
) -> None:
    made = runner("qwen2_5_vl", path, **BOUNDS)
    for name, size in (("bad", (10, 2100)), ("good", (56, 56))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    requests = [
        Request(
            name,
            0,
            {"max_new_tokens": 1},
            lambda _, n=name: prompt_of(made, path, "image", tmp_path / f"{n}.png", None, None),
        )
        for name in ("good", "bad")
    ]
    with pytest.raises(DocumentError, match=r"bad: ValueError: absolute aspect ratio must be smaller than 200") as seen:
        made.answer(requests, progress=False)
    assert "good" not in str(seen.value)


def test_bounds_that_exclude_each_other_are_refused_at_once(runner: Callable[..., Runner]) -> None:
    with pytest.raises(ValueError, match=r"min_pixels=200704 is above max_pixels=3136: give both"):
        runner("qwen2_5_vl", "chat", max_pixels=3136)


PACES: list[tuple[str, dict[str, Any], str]] = [
    ("simple", {}, ""),
    ("chat", {"max_num_frames": 16}, ""),
    ("kit", {}, "fps"),
    ("kit", {}, "nframe"),
]


@pytest.mark.parametrize(("path", "options", "by"), PACES)
def test_seconds_per_patch(
    runner: Callable[..., Runner], tmp_path: Path, path: str, options: dict[str, Any], by: str
) -> None:
    """64 frames at 8 a second: 16 of them lie 63 / 15 / 8 s apart, and a patch holds two."""
    video = write_clip(tmp_path / "a.mp4", smooth(64))
    asked = {"fps": {"fps": 2.0}, "nframe": {"nframe": 16}, "": {}}[by]
    harness = runner("qwen2_5_vl", path, **BOUNDS, **options)
    costs, inputs = ask(harness, path, "video", video, **asked)
    assert inputs["video_grid_thw"][0, 0] == 8
    # What the harnesses' adapters tell: without the frames' places, transformers takes them for 24 a second.
    told = 2 * 64 / 16 / 8 if path == "chat" else 2 / 24
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([told])
    assert costs.media == (SECONDS,)
    upright = runner("qwen2_5_vl", path, **BOUNDS, **options, media="upright")
    costs, inputs = ask(upright, path, "video", video, **asked)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 * 63 / 15 / 8])
    assert costs.media == ()


def test_seconds_per_patch_of_an_uneven_video(runner: Callable[..., Runner], tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mkv", smooth(6), ticks=(0, 1, 2, 30, 31, 60))
    _, inputs = ask(runner("qwen2_5_vl", "chat", **BOUNDS, media="upright"), "chat", "video", video)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 * 6.0 / 5], rel=1e-3)


def test_no_note_where_the_told_pace_is_right(runner: Callable[..., Runner], tmp_path: Path) -> None:
    """All frames of a video are shown under the chat protocol: 24 frames at 8 a second."""
    costs, inputs = ask(
        runner("qwen2_5_vl", "chat", **BOUNDS), "chat", "video", write_clip(tmp_path / "a.mp4", smooth(24))
    )
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([0.25])
    assert costs.media == ()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_videos_of_few_frames(
    runner: Callable[..., Runner], tmp_path: Path, family: str, path: str, count: int
) -> None:
    video = write_clip(tmp_path / "a.mp4", smooth(count))
    made = runner(family, path, **BOUNDS)
    for asked in [{"nframe": 8}, {"nframe": 1}, {"fps": 2.0}] if path == "kit" else [{}]:
        costs, inputs = ask(made, path, "video", video, **asked)
        assert inputs["video_grid_thw"][0, 0] == 1  # one patch of two frames, the only one counting twice
        assert costs.vision_tokens > 0
        assert REPEATED not in costs.media


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_the_default_shows_what_qwen_vl_utils_shows(
    runner: Callable[..., Runner], tmp_path: Path, family: str, path: str
) -> None:
    """An edit list hides half of the video, which decord does not heed: it shows frames again."""
    pytest.importorskip("decord")
    video = write_clip(tmp_path / "a.mp4", smooth(24))
    edit(video, share=0.5)
    patch = {"qwen2_vl": 14, "qwen3_vl": 16}[family]
    bounds = {"min_pixels": (2 * patch) ** 2, "max_pixels": 4 * (2 * patch) ** 2}
    asked = {"fps": 2.0} if family == "qwen3_vl" and path != "kit" else {}
    made = runner(family, path, **bounds, max_num_frames=8, **asked)
    costs, inputs = ask(made, path, "video", video, nframe=6)
    theirs = fetch_video({"video": str(video), "nframes": 6, **bounds}, image_patch_size=patch)
    processed = {"do_resize": False, "do_sample_frames": False} if family == "qwen3_vl" else {}
    expected = made.family.processor.video_processor(videos=[theirs], return_tensors="pt", **processed)[
        "pixel_values_videos"
    ]
    torch.testing.assert_close(inputs["pixel_values_videos"], expected.to(inputs["pixel_values_videos"].dtype))
    assert costs.media == (EDITED,)
    upright = runner(family, path, **bounds, max_num_frames=8, **asked, media="upright")
    costs, inputs = ask(upright, path, "video", video, nframe=6)
    assert costs.media == ()
    assert inputs["video_grid_thw"][0, 0] == 2 if path != "kit" else 3


BOUNDS_3 = {"min_pixels": 1024, "max_pixels": 4096}


def stamps(made: Runner, inputs: Any) -> list[str]:
    text = made.family.tokenizer.decode(inputs["input_ids"][0])
    return [part.split(" seconds>")[0] for part in text.split("<")[1:] if " seconds>" in part]


@pytest.mark.parametrize("path", PATHS)
def test_times_in_prompts_of_qwen3(runner: Callable[..., Runner], tmp_path: Path, path: str) -> None:
    """Frames 0, 9, 18, 27, 36, 45, 54, 63 at 8 a second, in pairs."""
    video = write_clip(tmp_path / "a.mp4", smooth(64))
    made = runner("qwen3_vl", path, **BOUNDS_3, max_num_frames=8)
    costs, inputs = ask(made, path, "video", video, nframe=8)
    assert inputs["video_grid_thw"].tolist()[0][0] == 4
    middles = [(a + b) / 2 / 8 for a, b in ((0, 9), (18, 27), (36, 45), (54, 63))]
    assert stamps(made, inputs) == [f"{time:.1f}" for time in middles]
    assert costs.media == ()


@pytest.mark.parametrize("path", PATHS)
def test_times_of_an_uneven_video_are_its_own_where_asked(
    runner: Callable[..., Runner], tmp_path: Path, path: str
) -> None:
    video = write_clip(tmp_path / "a.mkv", smooth(6), ticks=(0, 1, 2, 30, 31, 60))
    costs, inputs = ask(runner("qwen3_vl", path, **BOUNDS_3), path, "video", video, nframe=6)
    assert costs.media == (TIMES,)
    made = runner("qwen3_vl", path, **BOUNDS_3, media="upright")
    costs, inputs = ask(made, path, "video", video, nframe=6)
    assert stamps(made, inputs) == [f"{time:.1f}" for time in ((0 + 0.1) / 2 + 1e-9, (0.2 + 3.0) / 2, (3.1 + 6.0) / 2)]
    assert costs.media == ()


def test_bounds_that_lmms_evals_adapter_for_qwen3_forgets(runner: Callable[..., Runner], tmp_path: Path) -> None:
    """Under the chat protocol images of 256 x 128 keep their 32 tokens though four are allowed."""
    Image.new("RGB", (256, 128), "red").save(tmp_path / "large.png")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "fits.png")
    for path, media, tokens, notes in (
        ("chat", "harness", 32, (UNBOUNDED,)),
        ("chat", "upright", 2, ()),
        ("simple", "harness", 2, ()),
        ("kit", "harness", 2, ()),
    ):
        made = runner("qwen3_vl", path, **BOUNDS_3, media=media)
        costs, _ = ask(made, path, "image", tmp_path / "large.png")
        assert (costs.vision_tokens, costs.media) == (tokens, notes), (path, media)
        costs, _ = ask(made, path, "image", tmp_path / "fits.png")
        assert (costs.vision_tokens, costs.media) == (4, ())


def test_the_kit_names_no_bounds_for_qwen3(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made = runner("qwen3_vl", "kit").family
    assert made.bounds == {"min_pixels": 4 * 32 * 32, "max_pixels": 16384 * 32 * 32}
    video = write_clip(tmp_path / "a.mp4", smooth(4))
    prompt = prompt_of(runner("qwen3_vl", "kit"), "kit", "video", video, 4, None)
    theirs = fetch_video({"video": str(video), "nframes": 4}, image_patch_size=16)
    torch.testing.assert_close(made.resize(prompt.clips[0]), theirs)


def test_a_system_message_of_a_document_for_qwen3(runner: Callable[..., Runner]) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "?"}]},
    ]
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    rest = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    prompt = runner("qwen3_vl", "chat").family.chat_prompt(messages)
    assert (prompt.text, prompt.notes) == (before + rest, (SYSTEM,))
    prompt = runner("qwen3_vl", "chat", media="upright").family.chat_prompt(messages)
    assert (prompt.text, prompt.notes) == (rest, ())


@pytest.mark.parametrize("count", [1, 2, 5, 24, 31, 33])
@pytest.mark.parametrize("most", [3, 4, 7, 32])
def test_frames_of_qwen3_are_those_of_lmms_evals_adapter(runner: Callable[..., Runner], count: int, most: int) -> None:
    """It asks qwen_vl_utils for a number, which fails where that, rounded, is more than there are."""
    made = runner("qwen3_vl", "chat", max_num_frames=most).family
    chosen = made.choose_frames(count, 8.0)
    try:
        expected = smart_nframes({"nframes": most}, count, 8.0)
    except ValueError:
        expected = max(1, count // 2 * 2)
    assert chosen == [int(i) for i in torch.linspace(0, count - 1, expected).round()]
    by_rate = runner("qwen3_vl", "chat", max_num_frames=most, fps=4.0).family
    if count > 3:
        expected = smart_nframes({"fps": 4.0, "max_frames": min(most, count)}, count, 8.0)
        assert len(by_rate.choose_frames(count, 8.0)) == expected


def test_what_is_noted_reaches_the_costs_of_its_own_row(runner: Callable[..., Runner], tmp_path: Path) -> None:
    whole, short = write_clip(tmp_path / "a.mp4", smooth(8)), write_clip(tmp_path / "b.mkv", smooth(24), codec="mpeg4")
    data = short.read_bytes()
    short.write_bytes(data[: len(data) // 2])
    made = runner("qwen2_vl", "simple", **BOUNDS, batch_size=2)
    requests = [
        Request(
            str(file), 0, {"max_new_tokens": 1}, lambda _, f=file: prompt_of(made, "simple", "video", f, None, None)
        )
        for file in (whole, short)
    ]
    notes = [answer.costs.media for answer in made.answer(requests, progress=False)]
    assert notes[0] == ()
    assert SHORT in notes[1]


@pytest.mark.parametrize("path", ["simple", "kit"])
def test_video_llava_follows_plain_pyav(runner: Callable[..., Runner], tmp_path: Path, path: str) -> None:
    """BT.709 taken for BT.601 by default; right with ``media=upright``."""
    pictures = smooth(16)
    video = write_clip(tmp_path / "a.mp4", pictures, pix_fmt="yuv444p", matrix="bt709", codec_options={"qp": "0"})
    made = {media: runner("video_llava", path, "video_llava_vtw", media=media) for media in ("harness", "upright")}
    seen = {media: ask(one, path, "video", video, nframe=8) for media, one in made.items()}
    assert seen["harness"][0].media == ("colour matrix of a video ignored",)
    assert seen["upright"][0].media == ()
    places = [int(i) for i in (np.linspace(0, 15, 8, dtype=int) if path == "simple" else np.arange(0, 16, 2))]
    processor = made["upright"].family.processor.video_processor
    right = processor(videos=[np.stack([pictures[i] for i in places])], return_tensors="pt")["pixel_values_videos"]
    distance = {media: (inputs["pixel_values_videos"] - right).abs().max() for media, (_, inputs) in seen.items()}
    assert distance["upright"] < 0.06  # 3 of 255, in standard deviations
    assert distance["harness"] > 0.2


def test_times_told_to_llava_onevision_are_the_frames_own(runner: Callable[..., Runner], tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mkv", smooth(6), ticks=(0, 1, 2, 30, 31, 60))
    made = runner("llava_onevision", "kit", "llava_vtw")
    text = prompt_of(made, "kit", "video", video, 8, 1.0).text
    duration = float(text.split("lasts for ")[1].split()[0])
    assert "6 frames" in text or "located at 0.00s" in text
    times = [float(time) for time in text.split("located at ")[1].split("s.")[0].replace("s", "").split(", ")]
    assert set(times) <= {0.0, 0.1, 0.2, 3.0, 3.1, 6.0}
    assert math.isclose(duration, 6.1, abs_tol=0.1)
