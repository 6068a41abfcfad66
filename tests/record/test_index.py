"""Folders of results are read by what they hold: their index, or the plan of earlier versions, without a harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocked import run_without
from vtw_eval.record.index import index_of_plan, read_index, write_index
from vtw_eval.record.store import Store, StoreError
from vtw_eval.sweep.plan import Plan, find_plan, parse_plan, presets, read_plan

OLD = Path(__file__).parent / "data"
"""Folders of two small sweeps, one in each harness, as versions without an index wrote them."""


def plan_of(**changes: Any) -> Plan:
    models = [
        {"name": "a", "adapter": "llava_vtw", "pretrained": "shapes", "args": {"dtype": "bfloat16"}},
        {"name": "b", "adapter": "llava_vtw", "pretrained": "shapes", "methods": ["random_k", "random_k,seed=7"]},
    ]
    methods = ["baseline", "rand", "fastv+rand,rand.k=9", {"method": "vtw", "k": [2, 3]}]
    return parse_plan({"models": models, "methods": methods, "tasks": ["x", "y"], "limit": 4, **changes})


@pytest.mark.parametrize("seeds", [[0], [3, 0, 5]])
def test_the_cells_of_an_earlier_versions_folder_are_those_of_its_plan(seeds: list[int]) -> None:
    plans = [plan_of(seeds=seeds, dtype="float32"), plan_of(seeds=seeds, harness="vlmevalkit", title="T")]
    plans += [read_plan(find_plan(name)).changed(seeds=seeds) for name in presets()]
    for plan in plans:
        assert index_of_plan(plan.text()) == plan.index()


def test_an_index_is_read_as_it_was_written() -> None:
    index = plan_of(title="A \N{SNOWMAN}", names={"rand": "Random"}).index()
    assert read_index(write_index(index)) == index


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models: [", "not valid YAML"),
        ("mine", "not a plan as sweeps keep it"),
        ("models: [{name: a}]", "not a plan as sweeps keep it"),
        ("{models: [], tasks: [x]}", "cells: List should have at least 1 item"),
    ],
)
def test_another_file_is_no_plan(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(StoreError) as told:
        _ = Store(tmp_path).index
    assert str(told.value).startswith(str(tmp_path / "plan.yaml"))
    assert (problem in str(told.value), "\n" in str(told.value)) == (True, False)


def test_results_are_read_with_pydantic_alone() -> None:
    code = f"""
import json
from pathlib import Path
from vtw_eval.record.store import Store
found = []
for folder in sorted(Path({str(OLD)!r}).iterdir()):
    store = Store(folder)
    found += [[c.spec.harness, c.spec.method, c.documents, len(store.samples(c))] for c in store.cells()]
    assert store.problems() == [], store.problems()
print(json.dumps(found))
"""
    packages = ("lmms_eval", "vlmeval", "torch", "transformers", "numpy", "PIL", "huggingface_hub")
    assert json.loads(run_without(packages, code).stdout) == [
        ["lmms-eval", "baseline", 4, 4],
        ["lmms-eval", "rand,k=2,seed=0", 4, 4],
        ["lmms-eval", "rand,k=2,seed=1", 4, 4],
        ["vlmevalkit", "baseline", 4, 4],
        ["vlmevalkit", "rand,k=2,seed=0", 4, 4],
    ]


def test_reports_need_no_harness() -> None:
    code = f"""
from typer.testing import CliRunner
from vtw_eval.cli import app
for harness in ("lmms-eval", "vlmevalkit"):
    print(CliRunner().invoke(app, ["report", f"{OLD}/{{harness}}"]).output)
"""
    told = run_without(("lmms_eval", "vlmeval"), code).stdout
    assert told.count("Two methods on shapes") == 2
    assert "40.00 ± 56.57" in told, "two seeds in one row"
