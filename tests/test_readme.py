"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vtw_eval.tasks
from tests.support.families import make_inputs, make_model
from vtw_eval.anatomy import REFUSED, TESTED
from vtw_eval.methods import METHODS, VTW
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import check_unique_names, parse_options

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_code_runs_from_the_first_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    [first, second] = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class EveryOther" not in c]
    scope: dict[str, Any] = {"__name__": __name__}
    exec(first, scope)
    text = int(scope["trace"].tokens_per_layer[0, -1])
    assert scope["trace"].tokens_per_layer.tolist() == [[text + 64] * 5 + [text] * 5]
    said, _, right = capsys.readouterr().out.partition("\ntensor")[0].partition(" | right: ")
    assert right == scope["sample"].question.answer and said.split()[-1] == right
    exec(second, scope)
    assert scope["trace"].tokens_per_layer.tolist() == [[text + 64] * 2 + [text + 32] * 8]


def test_the_quick_start_names_what_there_is() -> None:
    [command] = re.findall(r"^    lmms_eval .*pretrained=shapes.*\\\n.*$", README, re.MULTILINE)
    words = command.replace("\\", " ").split()
    given = dict(zip(words[1::2], words[2::2], strict=True))
    check_unique_names(given["--model_args"])
    arguments = dict(entry.split("=") for entry in given["--model_args"].split(","))
    options, method = parse_options(given["--model"], ADAPTERS[given["--model"]].options, arguments)
    assert (options.pretrained, method) == ("shapes", VTW(k=5))
    tasks = Path(vtw_eval.tasks.__path__[0])
    for task in given["--tasks"].split(","):
        assert list(tasks.rglob(f"{task}.yaml")), task


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
