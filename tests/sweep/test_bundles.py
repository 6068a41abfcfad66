"""Cells that differ in their method only are one bundle: its order, its division, the same results as one by one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.sweep.conftest import PLAN, SPEC
from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.record.store import Store
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.sweep.bundles import Job, book_name, jobs_of
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import parse_plan
from vtw_eval.sweep.runner import CellRunner
from vtw_eval.sweep.schedule import Schedule, Watcher

METHODS = ["baseline", "vtw,k=2", "tome", "fastv", "fastervlm", "vtw,k=search,samples=4,start=1"]


def cell(method: str, task: str = "a", **more: Any) -> CellSpec:
    return SPEC.model_copy(update={"method": method, "task": task, **more})


def told(jobs: Sequence[Job]) -> list[tuple[str, str, bool]]:
    """Task, methods, and whether there is a book."""
    return [(job.spec.task, "".join(spec.method for spec in (job.spec, *job.others)), bool(job.book)) for job in jobs]


def bundled(
    cells: Sequence[CellSpec], todo: Sequence[CellSpec] | None = None, workers: int = 1, **settings: Any
) -> tuple[list[tuple[str, str, bool]], list[str]]:
    notes: list[str] = []
    jobs = jobs_of(cells, cells if todo is None else todo, Settings(**settings), workers, notes.append)
    return told(jobs), notes


def test_a_bundle_holds_the_methods_and_seeds_of_a_checkpoint_on_a_task() -> None:
    cells = [cell(method, task) for method in "xyz" for task in "ab"]
    more = [cell("x", limit=3), cell("x", model_args={"dtype": "bfloat16"}), cell("w", seed=1), cell("v", model="same")]
    found, notes = bundled([*cells, *more])
    assert found == [("a", "xyzwv", True), ("b", "xyz", True), ("a", "x", False), ("a", "x", False)]
    assert notes == []
    assert book_name(cell("x", seed=1)) == book_name(cell("y"))


def test_a_cell_that_is_left_over_keeps_its_book() -> None:
    cells = [cell(method) for method in "xyz"]
    assert bundled(cells, cells[2:])[0] == [("a", "z", True)]
    assert bundled(cells[2:])[0] == [("a", "z", False)], "there is nobody to share with"


def test_bundles_are_divided_among_workers_that_had_nothing_to_do() -> None:
    cells = [cell(method, task) for method in "vwxyz" for task in "ab"]
    assert [len(methods) for _, methods, _ in bundled(cells, workers=2)[0]] == [5, 5]
    assert [len(methods) for _, methods, _ in bundled(cells, workers=4)[0]] == [3, 2, 3, 2]
    assert [len(methods) for _, methods, _ in bundled(cells, workers=40)[0]] == [1] * 10


def test_off_and_harnesses_that_ask_for_one_method_at_a_time_have_no_bundles() -> None:
    cells = [cell(method) for method in "xy"]
    assert bundled(cells, sharing="off") == ([("a", "x", False), ("a", "y", False)], [])
    off = [cell(method, model_args={"sharing": "off"}) for method in "xy"]
    assert bundled(off) == ([("a", "x", False), ("a", "y", False)], [])
    kit = [cell(method, harness="vlmevalkit") for method in "xy"]
    found, notes = bundled(kit)
    assert found == [("a", "x", False), ("a", "y", False)]
    assert notes == ["each cell is evaluated for itself: VLMEvalKit asks one question at a time"]
    assert bundled(kit[:1])[1] == []


def test_a_worker_gets_a_bundle_and_what_a_dead_one_leaves_goes_one_by_one() -> None:
    cells = [cell(method, task) for method in "xyz" for task in "ab"]
    schedule = Schedule(jobs_of(cells, cells, Settings(), 1, lambda note: None))
    one, two = schedule.take(None), schedule.take(None)
    assert one is not None
    assert two is not None
    assert told([one, two]) == [("a", "xyz", True), ("b", "xyz", True)]
    following = schedule.take(one)
    assert following is not None
    assert told([following]) == [("a", "yz", True)]
    schedule.lost(two)
    schedule.lost(following, again=True)
    found = []
    job = schedule.take(None)
    while job is not None:
        found.append(job)
        job = schedule.take(job)
    assert told(found) == [("a", "y", True), ("a", "z", True), ("b", "y", True), ("b", "z", True)]
    assert not schedule


def test_the_time_that_is_left_counts_cells_that_are_answered_already(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vtw_eval.sweep.display.time.monotonic", lambda: now[0])
    out = io.StringIO()
    display: Watcher = Display(Console(file=out, width=200))
    display.planned(8, 0)
    for number, (spec, others) in enumerate([(cell("x"), 3), (cell("y"), 2), (cell("z"), 1), (cell("w"), 0)]):
        display.started(0, spec, others)
        now[0] = 40.0 + number
        display.finished(0, Cell(spec=spec, status="done", seconds=1.0, finished=""))
    lines = out.getvalue().splitlines()
    assert [line.rpartition("; ")[2] for line in lines] == [f"{left} s left)" for left in (40, 41, 42, 43)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tasks with all methods, sharing and not, in this process."""
    found: dict[str, Path] = {}
    for sharing in ("auto", "off"):
        plan = parse_plan({**PLAN, "methods": METHODS, "sharing": sharing, "verify": False})
        store = Store(tmp_path_factory.mktemp(sharing))
        store.create(plan.index())
        settings = Settings(plan.device, plan.batch_size, plan.verify, plan.sharing)
        runner = CellRunner(store, settings)
        jobs = jobs_of(plan.cells(), plan.cells(), settings, 1, lambda note: None)
        assert [job.cells for job in jobs] == ([6, 6] if sharing == "auto" else [1] * 12)
        for first in jobs:
            job: Job | None = first
            while job is not None:
                runner.run(job)
                job = job.following
        found[sharing] = store.root
    return found


def test_cells_of_bundles_are_those_of_each_alone(both: dict[str, Path]) -> None:
    def read(root: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
        files = sorted((root / "cells").glob("*/cell.json"))
        return {f.parent.name: (json.loads(f.read_text()), (f.parent / "samples.jsonl").read_bytes()) for f in files}

    together, alone = read(both["auto"]), read(both["off"])
    assert together.keys() == alone.keys()
    for key, (content, samples) in together.items():
        expected, others = alone[key]
        assert samples == others, content["spec"]
        searched = "search" in content["spec"]["method"]
        assert searched or (content["environment"].pop("sharing"), content["costs"]["latency_s"]) == ("methods", None)
        assert expected["costs"]["latency_s"] > 0
        for each in (content, expected):
            each["seconds"] = each["finished"] = each["costs"]["latency_s"] = None
            each["environment"].pop("sharing", None)
        assert content == expected


def test_tables_of_both_are_the_same(both: dict[str, Path]) -> None:
    """All that a report shows, but for the lines that tell what was shared."""
    texts = [make_report(ReportRequest(folder=both[sharing])).text for sharing in ("auto", "off")]
    how = ", sharing images / methods"
    assert how in texts[0]
    found = [
        [line for line in text.replace(how, "").splitlines() if line and "cells answers shared passes" not in line]
        for text in texts
    ]
    assert sum("fastervlm" in line and line.startswith("|") for line in found[0]) > 3
    assert found[0] == found[1]


def test_later_cells_run_no_model(both: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that vanished is written again from a book, byte for byte."""
    from vtw_eval.models.book import BookRunner

    plan = parse_plan({**PLAN, "methods": METHODS[:2], "tasks": ["shapes_mme"], "verify": False})
    store = Store(both["auto"])
    first, second = plan.cells()
    before = (store.folder(second) / "samples.jsonl").read_bytes()
    (job,) = jobs_of([first, second], [first, second], Settings(), 1, lambda note: None)
    runner = CellRunner(store, Settings("cpu", 4, verify=False))
    assert runner.run(job).status == "done"
    monkeypatch.setattr(BookRunner, "_batch", None)
    monkeypatch.setattr("vtw_eval.models.book.Sharer", None)
    again = CellRunner(store, Settings("cpu", 4, verify=False))
    assert job.following is not None
    cell = again.run(job.following)
    assert cell.status == "done", cell.error
    assert (store.folder(second) / "samples.jsonl").read_bytes() == before
