"""Costs of prompts that show a video: what a dry run keeps of its frames, and methods at equal cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.support.families import make_inputs, make_model
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cli import app
from vtw_eval.cost import PRESETS, exact_prefill_flops, get_geometry
from vtw_eval.cost.dry_run import dry_run, picture, tiny_video_model
from vtw_eval.cost.equal import fit_flops
from vtw_eval.methods import parse_method
from vtw_eval.sweep import budget
from vtw_eval.sweep.budget import Budget, fit_methods

SMALL = replace(PRESETS["video-llava-7b"], layers=4)
SMALL = replace(SMALL, vision=replace(SMALL.vision, features=65, images=8), vision_tokens=8 * 65)
ABOUT = ("vidcom2,r=0.5", "fastvid,r=0.5", "holitom,r=0.5")


@pytest.mark.parametrize("spec", ["vtw,k=2", "fastv,k=1", "evs,r=0.3", "dycoke", "uniform_frames", "random_per_frame"])
@torch.no_grad()
def test_a_dry_run_is_that_of_a_real_model(spec: str) -> None:
    model = make_model("video_llava", attn="sdpa", dtype=torch.float32)
    inputs = make_inputs("video_llava", model, [["t3", "v", "t5"]])
    vision = int((inputs["input_ids"] == model.config.video_token_id).sum())
    frames = inputs["pixel_values_videos"].shape[1]
    method = parse_method(spec)
    with method(model) as trace:
        model(**inputs)
    run = dry_run(method, 4, text=8, vision=vision, frames=frames)
    assert frames > 1 and not run.nominal
    assert run.tokens.tolist() == trace.tokens_per_layer.tolist()
    assert run.vision.tolist() == trace.vision_per_layer.tolist()


def test_counts_known_by_hand() -> None:
    for spec, expected in [
        ("baseline", 60),
        ("evs,r=0.5", 30),
        ("evs,r=0.9", 10),  # never less than a frame
        ("dycoke,thin=0.7", 2 * 10 + 4 * 3),  # frames 0 and 4 stay whole
        ("uniform_frames,r=0.5", 30),
        ("uniform_frames,frames=2", 20),
        ("random_per_frame,tokens=4", 24),
        ("framefusion,cost=0.5", 60),
        ("random_vision,k=0,r=0.25", 45),
    ]:
        run = dry_run(parse_method(spec), 2, text=9, vision=60, frames=6)
        assert run.vision[0, 0] == expected, spec


@pytest.mark.parametrize("spec", ABOUT)
@torch.no_grad()
def test_what_depends_on_the_video_is_told_as_asked_for_and_comes_near(spec: str) -> None:
    method = parse_method(spec)
    run = dry_run(method, 2, text=9, vision=8 * 17, frames=8)
    assert run.nominal and run.vision.tolist() == [[8 * 9] * 2]
    assert str(run.method) == str(method)
    with pytest.raises(ValueError, match="depends on model and video"):
        dry_run(method, 2, text=9, vision=8 * 17)
    model = tiny_video_model(2)
    ids = torch.randint(2, 64, (1, 9 + 8 * 17))
    ids[:, 3 : 3 + 8 * 17] = 1
    with method(model) as trace:  # a random video, by the method itself
        model(input_ids=ids, **picture(method, 8 * 17, 8))
    assert abs(int(trace.vision_per_layer[0, 0]) - 8 * 9) <= 8


def test_parts_are_told_as_asked_for_too() -> None:
    run = dry_run(parse_method("fastvid+vtw,fastvid.r=0.5,vtw.k=1"), 2, text=9, vision=80, frames=8)
    assert run.nominal and run.vision.tolist() == [[40, 0]]


@torch.no_grad()
def test_framefusion_spends_as_much_whatever_it_merges() -> None:
    method = parse_method("framefusion,cost=0.5,similarity=0.1")
    run = dry_run(method, 4, text=9, vision=8 * 17, frames=8)
    model = tiny_video_model(4)
    ids = torch.randint(2, 64, (1, 9 + 8 * 17))
    ids[:, 3 : 3 + 8 * 17] = 1
    with method(model) as trace:
        model(input_ids=ids, **picture(method, 8 * 17, 8))
    assert run.nominal and trace.vision_per_layer.tolist() != run.vision.tolist()
    assert trace.vision_per_layer.sum() == pytest.approx(int(run.vision.sum()), abs=4)


@pytest.mark.parametrize("spec", ["evs", "dycoke", "vidcom2", "framefusion"])
def test_methods_for_videos_cost_the_same(spec: str) -> None:
    fit = fit_flops(parse_method(spec), SMALL, 0.6, text=9, vision=8 * 65, frames=8)
    assert not fit.problem and fit.share == pytest.approx(0.6, rel=0.01)
    assert fit.nominal == spec.startswith(("vidcom2", "holitom", "framefusion"))
    run = dry_run(fit.method, 4, text=9, vision=8 * 65, frames=8)
    full = float(exact_prefill_flops([9 + 8 * 65] * 4, SMALL))
    assert float(exact_prefill_flops(run.tokens, SMALL)[0]) / full == pytest.approx(fit.share)


def test_a_budget_of_a_plan_says_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "geometry_of", lambda pretrained: SMALL)
    shown = [Budget(flops=0.7), Budget(flops=0.7, frames=8)]
    image, video = fit_methods(["evs", "vidcom2"], shown, "a checkpoint")
    assert (image.budget, video.budget) == ("0.7 of the FLOPs", "0.7 of the FLOPs, 8 frames")
    assert not any(spec.startswith(("evs", "vidcom2")) for spec in image.methods)
    keys = {spec.partition(",")[0] for spec in video.methods}
    assert keys == {"evs", "vidcom2", *budget.CONTROLS, *budget.VIDEO_CONTROLS}
    [about] = [line for line in video.missed if line.startswith("vidcom2")]
    assert about.endswith("what it keeps depends on the video")
    assert not any(line.startswith("evs") for line in video.missed)


@pytest.mark.parametrize(
    ("frames", "vision", "words"),
    [(0, 16, "frames=0"), (3, 16, "multiple"), (8, 8, "2 or more"), (4, 16.5, "16.5 vision tokens")],
)
def test_impossible_videos_are_refused(frames: int, vision: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dry_run(parse_method("evs"), 2, text=9, vision=vision, frames=frames)


def test_a_number_of_tokens_needs_no_frames() -> None:
    with pytest.raises(ValueError, match="belongs to"):
        Budget(tokens=64, frames=8)


def test_tokens_of_a_video() -> None:
    assert PRESETS["video-llava-7b"].video_tokens(16) == 16 * 257
    assert PRESETS["llava-1.5-7b"].video_tokens(2) == 2 * 576
    assert PRESETS["llava-next-7b"].video_tokens(8) is None, "tiles"
    assert PRESETS["qwen2-vl-2b"].video_tokens(8) is None
    assert get_geometry("moves_video_llava").video_tokens(8) == 8 * 17, "frames keep the class token, images do not"


def test_the_tiny_model_sees_one_video() -> None:
    model = tiny_video_model(3, "a name")
    anatomy = find_anatomy(model)
    assert (anatomy.num_layers, anatomy.name, anatomy.model_type) == (3, "a name", "video_llava")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "4", "--vision", "40", "--method", "evs,r=0.5"], "40 vision tokens of 4 frames"),
        (
            ["--frames", "4", "--vision", "40", "--method", "vidcom2"],
            "As asked for, what stays depends on the video: vid",
        ),
        (["--frames", "4", "--vision", "40", "--flops", "0.5", "--method", "dycoke"], "dycoke,thin=0."),
    ],
)
def test_the_command(words: list[str], said: str) -> None:
    done: Any = CliRunner().invoke(app, ["cost", "--geometry", "llava-0.5b", "--text", "9", *words])
    assert done.exit_code == 0 and said in done.stdout, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--geometry", "llava-next-7b", "--frames", "4"], "how it packs one: give --vision"),
        (["--geometry", "llava-0.5b", "--frames", "4", "--measure"], "--frames and --flops out"),
        (["--paper", "all", "--frames", "4"], "--frames"),
    ],
)
def test_the_command_refuses(words: list[str], said: str) -> None:
    done: Any = CliRunner().invoke(app, ["cost", *words])
    assert done.exit_code == 2 and said in " ".join(done.stderr.split()), done.output
