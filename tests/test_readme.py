"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.families import make_inputs, make_model
from vtw_eval.anatomy import REFUSED, TESTED
from vtw_eval.methods import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_method_runs() -> None:
    [source] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class EveryOther" in code]
    scope = {"__name__": __name__}
    exec(source, scope)
    model = make_model("llava", attn="sdpa")
    with scope["EveryOther"](k=1)(model) as trace, torch.no_grad():
        model(**make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]]))
    first = trace.vision_per_layer[:, 0]
    assert torch.equal(trace.vision_per_layer[:, 1], (first + 1) // 2)
    assert first.tolist() != [0, 0]


def test_the_support_table_names_every_family() -> None:
    for family in TESTED | set(REFUSED) - {"qwen3_5_moe"}:
        assert re.search(rf"\b{family}\b", README), family


def test_the_methods_are_named() -> None:
    for key in METHODS:
        assert f"`{key}`" in README
