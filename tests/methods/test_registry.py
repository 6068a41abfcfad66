"""Method specs: what they parse to, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import vtw_eval.methods
from vtw_eval.methods import (
    METHODS,
    VTW,
    Baseline,
    Composite,
    FastV,
    Method,
    RandomK,
    Scorer,
    ToMe,
    make_method,
    parse_method,
)
from vtw_eval.methods.clip_scored import ClipScored
from vtw_eval.methods.frames import FrameBudget, FrameMethod, VideoMethod
from vtw_eval.methods.image_wise import ImageWise
from vtw_eval.methods.near_budget import NearBudget
from vtw_eval.methods.selector import Selector
from vtw_eval.methods.staged import Staged
from vtw_eval.methods.tower_merging import TowerMerging
from vtw_eval.methods.wrapped import Wrapped


def test_specs_parse_to_methods_and_back() -> None:
    for spec, method in [
        ("baseline", Baseline()),
        ("vtw", VTW()),
        ("vtw,k=16", VTW(k=16)),
        (" vtw , k=3 , position=rearrange ", VTW(k=3, position="rearrange")),
        ("random_k,low=8,high=24,seed=5", RandomK(low=8, high=24, seed=5)),
        ("fastv,k=3,r=0.75", FastV(k=3, r=0.75)),
        ("fastv+vtw,fastv.k=2,fastv.r=0.5,vtw.k=16", Composite(parts=(FastV(k=2, r=0.5), VTW(k=16)))),
    ]:
        assert parse_method(spec) == method
        assert parse_method(str(method)) == method
    assert make_method("vtw", {"k": 4}) == make_method("vtw", {"k": "4"}) == VTW(k=4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vtv", ["vtv", "did you mean 'vtw'", "random_k"]),
        ("vtw,kk=3", ["kk", "did you mean 'k'", "position"]),
        ("vtw,k=3,k=4", ["twice"]),
        ("vtw,k", ["name=value"]),
        ("vtw,k=", ["name=value"]),
        ("vtw,k=many", ["k='many'", "integer"]),
        ("vtw,k=2.5", ["k='2.5'"]),
        ("vtw,k=-1", ["k=-1", "0 or more"]),
        ("vtw,position=kept", ["kept", "keep", "rearrange"]),
        ("baseline,k=3", ["baseline", "takes none"]),
        ("", ["unknown method"]),
        ("fastv,r=1.5", ["r=1.5", "0..1"]),
        ("fastv+vtw,k=3", ["'k'", "PART.NAME", "fastv, vtw"]),
        ("fastv+vtv", ["vtv", "did you mean"]),
        ("vtw+vtw", ["different methods"]),
        ("pyramiddrop+vtw", ["positions"]),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_and_what_would_be_right(spec: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_method(spec)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_method_file_is_registered_and_exported() -> None:
    found = set()
    for module in pkgutil.walk_packages(vtw_eval.methods.__path__, "vtw_eval.methods."):
        for value in vars(importlib.import_module(module.name)).values():
            public = isinstance(value, type) and not value.__name__.startswith("_")
            if public and issubclass(value, Method) and value not in BASES:
                found.add(value)
    assert found == set(METHODS.values())
    for cls in found:
        assert getattr(vtw_eval.methods, cls.__name__) is cls
        assert getattr(vtw_eval, cls.__name__) is cls
        assert METHODS[cls.key] is cls
        assert dataclasses.fields(cls) is not None
        assert cls.__dataclass_params__.frozen


LAYERS = 10
BASES = (
    Method,
    Scorer,
    Selector,
    ClipScored,
    Staged,
    Composite,
    Wrapped,
    ImageWise,
    TowerMerging,
    FrameMethod,
    VideoMethod,
    FrameBudget,
    NearBudget,
)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tome,per_layer=5,r=0.1", ["r=0.1", "per_layer=5", "not both"]),
        ("tome+vtw,tome.r=0.5,tome.per_layer=2", ["not both"]),
        ("baseline+vtw", ["baseline+vtw", "adds nothing to vtw"]),
        ("fastv+baseline+vtw", ["adds nothing to fastv+vtw"]),
    ],
)
def test_parameters_that_exclude_each_other_are_refused(spec: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_method(spec)
    for word in words:
        assert word in str(caught.value)


def test_tome_merges_by_share_or_by_number() -> None:
    assert ToMe() == ToMe(r=0.9) == parse_method("tome,r=0.9") != ToMe(r=0.8)
    assert str(ToMe()) == "tome,k=0,r=0.9"
    assert str(ToMe(per_layer=5)) == "tome,k=0,per_layer=5"
    for method in (ToMe(), ToMe(k=2, r=0.25), ToMe(per_layer=0), ToMe(k=1, per_layer=3)):
        assert parse_method(str(method)) == method
    # Of 100 tokens and 10 layers: 9 fewer at each, or 5 fewer.
    assert [ToMe().target(100, layer, 10) for layer in (0, 1, 9)] == [91, 82, 10]
    assert [ToMe(per_layer=5).target(100, layer, 10) for layer in (0, 1, 9)] == [95, 90, 50]


@pytest.mark.parametrize(
    ("spec", "idle", "last", "layer"),
    [
        ("fastv+vtw,fastv.k=6,vtw.k=4", "fastv", "vtw", 4),
        ("vtw+fastv,fastv.k=6,vtw.k=4", "fastv", "vtw", 4),
        ("fastv+vtw,fastv.k=4,vtw.k=4", "fastv", "vtw", 4),
        ("fastv+vtw,fastv.k=5", "fastv", "vtw", 5),  # half of the layers
        ("fastv+vtw,fastv.r=1,vtw.k=4", "vtw", "fastv", 2),
        ("random_vision+vtw,random_vision.k=7,vtw.k=6", "random_vision", "vtw", 6),
        ("downsample+vtw,vtw.k=0", "downsample", "vtw", 0),
        ("tome+vtw,tome.k=8,vtw.k=5", "tome", "vtw", 5),
        ("rand+vtw,rand.k=6,vtw.k=5", "rand", "vtw", 5),
        ("random_k+vtw,random_k.low=5,random_k.high=7,vtw.k=4", "random_k", "vtw", 4),
        ("random_k+vtw,random_k.low=2,random_k.high=3,vtw.k=4", "vtw", "random_k", 3),
        ("fastv+random_vision+vtw,random_vision.k=9,vtw.k=8", "random_vision", "vtw", 8),
    ],
)
def test_a_part_that_comes_when_no_vision_token_is_left_is_refused(spec: str, idle: str, last: str, layer: int) -> None:
    told = f"{last} leaves no vision token from layer {layer} on, so that {idle} would do nothing"
    with pytest.raises(ValueError, match=told):
        parse_method(spec).bind(anatomy())


@pytest.mark.parametrize(
    "spec",
    [
        "fastv+vtw,fastv.k=3,vtw.k=4",
        "fastv+vtw,fastv.k=6,vtw.k=10",  # the unchanged model after fastv
        "fastv+vtw,fastv.k=6,vtw.k=search",
        "rand+vtw,rand.k=5,vtw.k=5",
        "fastv+random_k,fastv.k=3,random_k.low=2,random_k.high=4",
        "random_k+vtw,random_k.low=2,random_k.high=5,vtw.k=4",
        "tome+vtw,tome.k=4,vtw.k=5",
    ],
)
def test_parts_that_all_act_are_accepted(spec: str) -> None:
    assert str(parse_method(spec).bind(anatomy())).startswith(spec.partition(",")[0])


def test_a_method_from_outside_may_act_on_text_that_is_left() -> None:
    both = Composite(parts=(VTW(k=4), Outside(k=6)))
    assert both.bind(anatomy()).layers(LAYERS) == [4, 6]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside(Method):
    """A method that nobody here knows."""

    key: ClassVar[str] = "outside"
    k: int = 0

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.k,)


def anatomy() -> Any:
    return SimpleNamespace(num_layers=LAYERS, name="")
