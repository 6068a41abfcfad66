"""Mistakes of somebody who writes a method: told by its name and what would be right, not by torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.families import make_inputs, make_model
from vtw_eval import VTW, FastV, Method, Rand
from vtw_eval.engine import LayerView, Merge, Reads


@dataclass(frozen=True, kw_only=True)
class Draft(Method):
    """Answers whatever it is told to."""

    key: ClassVar[str] = "draft"
    reads = Reads.HIDDEN

    at: Any = (1,)
    answer: Any = None

    def layers(self, num_layers: int) -> Sequence[int]:
        return self.at

    def keep(self, view: LayerView) -> Any:
        return self.answer(view) if callable(self.answer) else self.answer


def run(method: Method) -> None:
    model = make_model("llava", attn="sdpa")
    with torch.no_grad(), method(model):
        model(**make_inputs("llava", model, [["t3", "i", "t4"]]))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ((4,), r"draft.*layers\(\) names 4, but this model has 4 decoder layers, 0..3"),
        ((-1, 7), r"names -1, 7, but"),
        ((1.5,), r"must give layer indices, not \(1.5,\)"),
        (2, r"must give layer indices, not 2"),
        (None, r"must give layer indices, not None"),
    ],
)
def test_layers_that_are_none(at: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Draft(at=at, answer=lambda view: view.valid))


def merged(view: LayerView, **parts: Tensor) -> Merge:
    return Merge(**{"keep": view.valid, "hidden": view.hidden, **parts})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"draft.*keep\(\) gave NoneType as keep before layer 1; it must be boolean \[rows, tokens\]"),
        (lambda view: view.valid.float(), r"gave torch.float32 \(1, \d+\) as keep"),
        (lambda view: view.valid[0], r"gave torch.bool \(\d+,\) as keep"),
        (lambda view: view.valid[:, :-1], r"gave torch.bool .* as keep"),
        (lambda view: merged(view, hidden=view.hidden[:, 1:]), r"gave .* as hidden before layer 1"),
        (lambda view: merged(view, size=view.size[0]), r"gave .* as size before layer 1"),
        (lambda view: torch.zeros_like(view.valid), r"left a row without any token"),
    ],
)
def test_answers_that_are_none(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Draft(answer=answer))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (VTW(k=1.5), r"method 'vtw': k=1.5 is of a wrong type"),
        (VTW(k=True), r"method 'vtw': k=True is of a wrong type"),
        (FastV(r=0.5, k="2"), r"method 'fastv': k='2' is of a wrong type"),
        (Rand(k=1, seed=None), r"method 'rand': seed=None is of a wrong type"),
    ],
)
def test_parameters_of_a_wrong_type(method: Method, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(method)


def test_numbers_of_numpy_and_whole_shares_are_right() -> None:
    run(VTW(k=np.int64(2)))
    run(FastV(k=1, r=1))
    run(FastV(k=1, r=np.float32(0.5)))
