"""Harnesses plug in by entry points: ours, one of another package, and ones that are not there."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.support.blocked import run_without
from vtw_eval.cli import app
from vtw_eval.record.store import Store
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.harness import find_harness, harness_names
from vtw_eval.sweep.plan import PlanError, parse_plan
from vtw_eval.sweep.sweep import run_sweep

PLUG = '''
"""A harness of another package: it knows one task, and answers at once."""

import os

from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.record.cell import Metric, Sample
from vtw_eval.sweep.harness import Evaluation
from vtw_eval.sweep.plan import PlanError


class Toy:
    name = "toy"
    package = "toy-harness"

    def adapters(self):
        return {"toy_adapter": ADAPTERS["llava_vtw"]}

    def refusal(self, method):
        return "toys do not withdraw." if method.key == "vtw" else ""

    def expand(self, tasks):
        if unknown := set(tasks) - {"toys"}:
            raise PlanError(f"tasks: unknown {unknown}")
        return ["blocks", "dolls"]

    def open(self, spec, settings):
        return self

    def code(self, spec):
        return {"toy": "1"}

    def touch_points(self):
        return ()

    def evaluate(self, spec, progress):
        samples = [
            Sample(doc_id=str(i), group=f"g{i}", target="t", answer=spec.method, scores={"acc": float(i % 2)})
            for i in range(4)
        ]
        progress(4, 4)
        return Evaluation({"acc": Metric(value=0.5, aggregate="mean", percent=True)}, samples, None)
'''

PLAN = {
    "title": "Toys",
    "harness": "toy",
    "models": [{"name": "shapes", "adapter": "toy_adapter", "pretrained": "shapes"}],
    "methods": ["baseline", "rand"],
    "tasks": ["toys"],
    "device": "cpu",
}


def install(folder: Path, package: str, entry: str) -> None:
    """Make a package known as an installer does."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vtw_eval.harnesses]\n{entry}\n")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "toy_plug.py").write_text(PLUG)
    install(folder, "toy-harness", "toy = toy_plug:Toy")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    find_harness.cache_clear()
    sys.modules.pop("toy_plug", None)


def test_a_harness_of_another_package_runs_in_sweeps_and_reports(toy: Path, tmp_path: Path) -> None:
    assert harness_names() == ["lmms-eval", "toy", "vlmevalkit"]
    plan, out = parse_plan(PLAN), tmp_path / "out"
    entries = run_sweep(plan, out, Display(Console(quiet=True)))
    assert [(e.spec.task, e.spec.method, e.state) for e in entries] == [
        ("blocks", "baseline", "done"),
        ("dolls", "baseline", "done"),
        ("blocks", "rand,seed=0", "done"),
        ("dolls", "rand,seed=0", "done"),
    ]
    cell = Store(out).cells()[0]
    assert (cell.code["toy"], cell.costs) == ("1", None)
    again = run_sweep(plan, out, Display(Console(quiet=True)))
    assert [e.cell for e in again] == [e.cell for e in entries], "nothing has changed, nothing runs again"
    with pytest.raises(PlanError, match="toys do not withdraw"):
        run_sweep(plan.changed(methods=["vtw,k=2"]), tmp_path / "other", Display(Console(quiet=True)))
    with pytest.raises(PlanError, match=r"unknown adapter 'llava_vtw'.*Valid: toy_adapter"):
        parse_plan({**PLAN, "models": [{"name": "a", "adapter": "llava_vtw", "pretrained": "shapes"}]})


def test_results_of_a_harness_that_is_gone_are_still_told(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(parse_plan(PLAN), out, Display(Console(quiet=True)))
    shutil.rmtree(toy)
    importlib.invalidate_caches()
    find_harness.cache_clear()
    told = CliRunner().invoke(app, ["sweep", "--status", str(out)])
    assert (told.exit_code, "Toys: 4 cells, 4 done" in told.output) == (0, True)
    assert "and 3 more: made by other code: unknown harness 'toy'" in told.output
    assert "Toys" in make_report(ReportRequest(folder=out)).text


def test_a_name_that_two_packages_take_is_refused(toy: Path) -> None:
    install(toy, "other-toys", "toy = other_plug:Toy")
    with pytest.raises(ValueError, match=r"several packages plug in a harness 'toy': .*other_plug:Toy"):
        find_harness("toy")


def test_a_plug_that_cannot_be_imported_names_its_package(toy: Path) -> None:
    install(toy, "broken-toys", "broken = no_such_plug:Toy")
    with pytest.raises(ImportError, match=r"broken-toys 1\.0 cannot be imported .*no_such_plug"):
        find_harness("broken")


def test_finding_a_harness_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "lmms_eval", "vlmeval", "numpy", "pandas")
    names = "[find_harness(name).package for name in ('lmms-eval', 'vlmevalkit')]"
    ran = run_without(heavy, f"from vtw_eval.sweep.harness import find_harness\nprint(*{names})")
    assert (ran.stdout, ran.stderr) == ("lmms-eval ms-vlmeval\n", "")


def test_a_harness_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path) -> None:
    plan = {
        "models": [{"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}],
        "tasks": ["shapes_pope"],
        "device": "cpu",
    }
    (tmp_path / "lmms.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump({**plan, "tasks": ["pope"]}))
    (tmp_path / "kit.yaml").write_text(yaml.safe_dump({**plan, "harness": "vlmevalkit", "tasks": ["Shapes_POPE"]}))
    code = f"""
from typer.testing import CliRunner
from vtw_eval.cli import app
for name in ("lmms", "stock", "kit"):
    told = CliRunner().invoke(app, ["sweep", f"{tmp_path}/{{name}}.yaml", "--dry-run"])
    print(told.exit_code, told.stderr.strip())
"""
    ran = run_without(("lmms_eval", "vlmeval"), code)
    ours, stock, kit = ran.stdout.splitlines()
    assert ours.strip() == "0", "our own tasks need no harness to be planned"
    assert stock.startswith("1 vtw-eval sweep: error: lmms-eval ")
    assert kit.startswith("1 vtw-eval sweep: error: ms-vlmeval ")
