"""Method specs: what they parse to, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

import vtw_eval.methods
from vtw_eval.methods import METHODS, VTW, Baseline, Composite, FastV, Method, RandomK, make_method, parse_method
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
    for module in pkgutil.iter_modules(vtw_eval.methods.__path__, "vtw_eval.methods."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Method) and value not in (Method, Composite, Wrapped):
                found.add(value)
    assert found == set(METHODS.values())
    for cls in found:
        assert getattr(vtw_eval.methods, cls.__name__) is cls
        assert getattr(vtw_eval, cls.__name__) is cls
        assert METHODS[cls.key] is cls
        assert dataclasses.fields(cls) is not None
        assert cls.__dataclass_params__.frozen
