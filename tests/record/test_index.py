"""Folders of results are read by what they hold: their index, or the plan of earlier versions, without a harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import ROOT
from vtw_eval.record.index import index_of_plan, read_index, write_index
from vtw_eval.record.store import Store, StoreError
from vtw_eval.sweep.plan import Plan, find_plan, parse_plan, presets, read_plan

OLD = Path(__file__).parent / "data"
"""Folders of two small sweeps, one in each harness, as versions without an index wrote them."""

BLOCKED = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def blocked(packages: tuple[str, ...], code: str) -> str:
    """Run code in a process that cannot import some packages; return what it prints."""
    start = BLOCKED.replace("BLOCKED", repr(packages))
    ran = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


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
    assert json.loads(blocked(packages, code)) == [
        ["lmms-eval", "baseline", 4, 4],
        ["lmms-eval", "rand,k=2,seed=0", 4, 4],
        ["lmms-eval", "rand,k=2,seed=1", 4, 4],
        ["vlmevalkit", "baseline", 4, 4],
        ["vlmevalkit", "rand,k=2,seed=0", 4, 4],
    ]


@pytest.mark.parametrize("harness", ["lmms-eval", "vlmevalkit"])
def test_reports_need_no_harness(harness: str) -> None:
    code = f"""
from vtw_eval.cli import app
app(["report", {str(OLD / harness)!r}], prog_name="vtw-eval")
"""
    told = blocked(("lmms_eval", "vlmeval"), code)
    assert "Two methods on shapes" in told
    assert "rand" in told
