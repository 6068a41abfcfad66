"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vtw_eval.tasks
from vtw_eval.methods import VTW
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import check_unique_names, parse_options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_code_runs_from_the_first_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, Any] = {"__name__": __name__}
    exec(first, scope)
    text = int(scope["trace"].tokens_per_layer[0, -1])
    assert scope["trace"].tokens_per_layer.tolist() == [[text + 64] * 5 + [text] * 5]
    said, _, right = capsys.readouterr().out.partition("\ntensor")[0].partition(" | right: ")
    assert right == scope["sample"].question.answer and said.split()[-1] == right


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


def test_the_method_shown_is_that_of_the_walk_through() -> None:
    _, shown = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    walk = (ROOT / "docs" / "new_method.md").read_text(encoding="utf-8")
    assert re.sub(r'\n +"""Return the norm.*?"""', "", walk).count(shown.strip()) == 1
