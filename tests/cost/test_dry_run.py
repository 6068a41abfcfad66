"""The trace of the real engine on a tiny model: equal to that of other models, and to what is known by hand."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.families import IMAGE, make_inputs, make_model
from vtw_eval.cost.dry_run import dry_run, tokens_per_layer
from vtw_eval.methods import METHODS, Method, parse_method

SPECS = [
    "fastv,k=1,r=0.3",
    "tome,r=0.6",
    "pyramiddrop",
    "downsample",
    "random_vision,k=3",
    "fastv+vtw,fastv.k=1,vtw.k=2",
]


@pytest.mark.parametrize("spec", [*SPECS, "rand,k=2"])
def test_the_trace_is_that_of_a_real_model(spec: str) -> None:
    model = make_model("qwen2_vl", attn="sdpa", dtype=torch.float32)  # four layers, other sizes and templates
    inputs = make_inputs("qwen2_vl", model, [["t3", "I", "t5"]])
    vision = int((inputs["input_ids"] == IMAGE).sum())
    with torch.no_grad(), parse_method(spec)(model) as trace:
        model(**inputs)
    text = inputs["input_ids"].shape[1] - vision
    run = dry_run(parse_method(spec), 4, text=text, vision=vision)
    assert run.tokens.tolist() == trace.tokens_per_layer.tolist()
    if not spec.startswith("rand,"):  # what rand leaves is drawn from the prompt
        assert run.vision.tolist() == trace.vision_per_layer.tolist()


def test_counts_known_by_hand() -> None:
    for spec, expected in [
        ("baseline", [60] * 8),
        ("vtw,k=3", [60] * 3 + [20] * 5),
        ("vtw,k=0", [20] * 8),
        ("vtw,k=8", [60] * 8),
        ("fastv", [60] * 2 + [40] * 6),
        ("pyramiddrop", [60] * 2 + [40] * 2 + [30] * 2 + [25] * 2),
        ("tome,per_layer=5", [55, 50, 45, 40, 35, 30, 25, 23]),
        ("rand,k=3", [60] * 3 + [20] * 5),
    ]:
        assert tokens_per_layer(parse_method(spec), 8, text=20, vision=40).tolist() == expected, spec


def test_defaults_depend_on_the_name() -> None:
    assert dry_run(parse_method("vtw"), 28, text=40, vision=8, name="qwen2-vl-2b").method == parse_method("vtw,k=18")
    assert dry_run(parse_method("vtw"), 28, text=40, vision=8).method == parse_method("vtw,k=14")


def test_numbers_between_integers_are_interpolated() -> None:
    tokens = tokens_per_layer(parse_method("vtw,k=1"), 2, text=20.25, vision=30.5)
    assert tokens.tolist() == pytest.approx([50.75, 20.25])
    at = [tokens_per_layer(parse_method("fastv,k=1"), 2, text=20, vision=v) for v in (30, 31)]
    between = tokens_per_layer(parse_method("fastv,k=1"), 2, text=20, vision=30.25)
    assert torch.allclose(between, 0.75 * at[0] + 0.25 * at[1])


def test_a_random_layer_gives_all_draws() -> None:
    run = dry_run(parse_method("random_k,low=1,high=3"), 4, text=5, vision=10)
    assert run.tokens.tolist() == [[15, 5, 5, 5], [15, 15, 5, 5], [15, 15, 15, 5]]
    both = dry_run(parse_method("fastv+random_k,fastv.k=1,random_k.low=2,random_k.high=3"), 4, text=5, vision=10)
    assert both.tokens.tolist() == [[15, 10, 5, 5], [15, 10, 10, 5]]
    assert both.vision.tolist() == [[10, 5, 0, 0], [10, 5, 5, 0]]


def test_every_method_of_the_registry_can_be_costed_or_says_why_not() -> None:
    for key, cls in METHODS.items():
        method: Method = cls()
        refused = {"dyvte": r"vtw,k=EXIT\+1", "feather": "union=false", "prumerge": "give r or tokens"}
        refused["trim"] = refused["prumerge"]
        if method.adaptive:
            words = refused.get(key, re.escape(method.adaptive))
            keep = f",{key}.position=keep" if method.positions == "rearrange" else ""
            with pytest.raises(ValueError, match=words):
                tokens_per_layer(method, 32, text=20, vision=200)
            with pytest.raises(ValueError, match=words):
                tokens_per_layer(parse_method(f"fastv+{key}{keep}"), 32, text=20, vision=200)
        else:
            tokens = tokens_per_layer(method, 32, text=20, vision=200)
            one_frame = ("evs", "dycoke", "uniform_frames")  # which thin out a video
            assert (tokens < 220).any() == (key not in ("baseline", "shortv", *one_frame))


@pytest.mark.parametrize(
    ("spec", "text", "vision", "words"),
    [
        ("vtw,k=9", 20, 40, r"0\.\.8"),
        ("vtw,k=search", 20, 40, "search-k"),
        ("fastv+vtw,vtw.k=search", 20, 40, "search-k"),
        ("vtw", 0.5, 40, "1 or more text"),
        ("vtw", -3, 40, "1 or more text"),
        ("vtw", 20, -1, "0 or more vision"),
        ("vtw", float("nan"), 40, "text=nan"),
        ("vtw", 20, float("inf"), "vision=inf"),
    ],
)
def test_impossible_input_is_refused(spec: str, text: float, vision: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tokens_per_layer(parse_method(spec), 8, text=text, vision=vision)


def test_prompts_without_image_or_with_little_text() -> None:
    assert tokens_per_layer(parse_method("fastv"), 3, text=4, vision=0).tolist() == [4, 4, 4]
    assert tokens_per_layer(parse_method("vtw,k=1"), 3, text=1, vision=6).tolist() == [7, 1, 1]


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tokens_per_layer(parse_method("random_vision,k=1"), 2, text=4, vision=4)
    assert torch.equal(torch.rand(2), expected)
