"""Curves of a plan: kept beside its cells, made once, shown in its report."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from vtw_eval.model_adapters.lmms.curve import execute_curve
from vtw_eval.record.cell import Cell
from vtw_eval.record.curves import curve_folders, divergence_file
from vtw_eval.record.store import Store
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.sweep import curves
from vtw_eval.sweep.curves import curve_plans, execute_apart, run_plan
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import Plan, PlanError, parse_plan, read_plan, resolve
from vtw_eval.sweep.runner import CellRunner

PLAN: dict[str, Any] = {
    "title": "With a curve",
    "models": [{"name": "Tiny Shapes", "adapter": "llava_vtw", "pretrained": "shapes"}],
    "methods": ["baseline", "fastv"],
    "tasks": ["shapes_vqa"],
    "curves": [{"model": "Tiny Shapes", "k": [2, 5]}],
    "limit": 6,
    "batch_size": 4,
    "device": "cpu",
    "dtype": "float32",
    "verify": False,
}


class Watched(Display):
    """Remembers what has run."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.ran: list[str] = []

    def finished(self, worker: int, cell: Cell) -> None:
        super().finished(worker, cell)
        self.ran.append(cell.spec.method)


def plan(**changes: Any) -> Plan:
    return parse_plan({**PLAN, **changes})


def test_a_curve_is_kept_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Watched()
    entries = run_plan(plan(), tmp_path, first)
    assert [entry.state for entry in entries] == ["done"] * 5
    assert sorted(first.ran) == sorted(entry.spec.method for entry in entries)
    (folder,) = curve_folders(tmp_path)
    store, alone = Store(folder), Store(tmp_path / "alone")
    one = next(cell for cell in store.cells() if "k=5" in cell.spec.method)
    expected = CellRunner(alone, Settings(device="cpu", verify=False)).run(one.spec)
    assert expected.status == "done", expected.error
    assert one.metrics == expected.metrics
    assert store.samples(one) == alone.samples(expected)

    again = Watched()
    assert run_plan(plan(), tmp_path, again, keep=True) == entries
    assert again.ran == []
    more = Watched()
    monkeypatch.setattr(curves, "execute_apart", lambda harness, *given: execute_curve(*given))
    run_plan(plan(curves=[{"model": "Tiny Shapes", "k": [2, 5, 7]}]), tmp_path, more, keep=True)
    assert more.ran == ["vtw,k=7,position=keep"]

    made = make_report(ReportRequest(folder=tmp_path))
    text = made.text[made.text.index("VTW by k on shapes\\_vqa") :]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    shown = {row[1].strip(): [cell.strip() for cell in row[2:]] for row in rows}
    assert list(shown)[1:5] == ["2", "5", "7", "unchanged"]
    score = next(iter(one.metrics.values())).shown
    assert any(cell.startswith(rf"{score:.2f} \[") for cell in shown["5"])
    kl = dict(yaml.safe_load(divergence_file(folder, "shapes_vqa").read_text())["mean_kl"])
    assert f"{kl[5]:.2e}" in shown["5"]
    figures = [name for name in made.files if "curve-" in name and name.endswith(".svg")]
    assert len(figures) == 1
    assert Path(figures[0]).with_suffix("").as_posix() in made.text
    page = make_report(ReportRequest(folder=tmp_path, form="html")).text
    assert "VTW by k on shapes_vqa" in page
    assert page.count("<svg") > make_report(ReportRequest(folder=folder, form="html", plots=False)).text.count("<svg")


def test_a_process_that_dies_fails_the_cells_that_are_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_work", os.abort)  # takes no arguments, so that the process ends by an error
    watcher, store = Watched(), Store(tmp_path)
    (curve,) = curve_plans(resolve(plan())).values()
    store.create(curve.index())
    execute_apart("lmms-eval", curve.cells(), store, Settings(), watcher)
    entries = store.entries()
    assert [entry.state for entry in entries] == ["failed"] * 3
    assert "status 1" in entries[0].problem
    assert len(watcher.ran) == 3


def test_only_leaves_curves_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    watcher = Watched()
    monkeypatch.setattr(watcher, "note", said.append)
    monkeypatch.setattr(curves, "run_sweep", lambda *args, **given: [])
    assert run_plan(plan(), tmp_path, watcher, only=["fastv*"]) == []
    assert any("--only" in line for line in said)


def test_all_k_and_other_tasks() -> None:
    chosen = plan(tasks=["shapes_vqa", "shapes_pope"], curves=[{"model": "Tiny Shapes", "tasks": ["shapes_mme"]}])
    (curve,) = curve_plans(resolve(chosen)).values()
    assert curve.tasks == ["shapes_mme"]
    assert [cell.method for cell in curve.cells()] == ["baseline", *(f"vtw,k={k},position=keep" for k in range(10))]
    assert {(cell.limit, cell.model_args["dtype"]) for cell in curve.cells()} == {(6, "float32")}


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({"model": "tiny"}, "curves.0..model: 'tiny' is no model of the plan: Tiny Shapes"),
        ({"model": "Tiny Shapes", "ks": [3]}, r"curves\[0\].ks: unknown key.*Valid: model, tasks, k"),
        ({"model": "Tiny Shapes", "k": [True]}, "an integer, not True"),
        ({"model": "Tiny Shapes", "k": []}, "k"),
        ({"model": "Tiny Shapes", "k": [10]}, "curves, Tiny Shapes: k=10: k is a number of layers from 0 to 9"),
    ],
)
def test_what_cannot_be_is_refused(curve: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**PLAN, "curves": [curve]}))
    with pytest.raises(PlanError, match=words):
        curve_plans(resolve(read_plan(file)))


def test_a_model_has_one_curve_and_some_harnesses_know_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="stands twice"):
        plan(curves=[{"model": "Tiny Shapes"}, {"model": "Tiny Shapes", "k": [1]}])
    monkeypatch.setattr(curves, "find_harness", lambda name: object())
    with pytest.raises(PlanError, match="lmms-eval can"):
        curve_plans(plan())
