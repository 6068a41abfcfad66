"""A curve under lmms-eval: cells, scores and costs are those of one evaluation per k."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from vtw_eval.model_adapters.lmms.curve import curve_plan, run_curve
from vtw_eval.record.curves import divergence_file
from vtw_eval.record.store import Store
from vtw_eval.report.curve import curve_files
from vtw_eval.report.search import read_divergence
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import Plan, PlanError
from vtw_eval.sweep.runner import CellRunner

TASKS = ["shapes_mme", "shapes_vqa"]


def plan(*ks: int, tasks: list[str] = TASKS) -> Plan:
    return curve_plan("llava_vtw", "pretrained=shapes", tasks, ks or None, limit=6, batch_size=4, verify=False)


def watcher() -> Display:
    return Display(Console(file=io.StringIO()))


def test_cells_are_those_of_one_evaluation_per_k(tmp_path: Path) -> None:
    chosen = plan(3, 5)
    entries = run_curve(chosen, tmp_path / "curve", watcher())
    assert [entry.state for entry in entries] == ["done"] * 6
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "curve")
    runner = CellRunner(alone, Settings(batch_size=1, verify=False))
    for entry in entries:
        expected = runner.run(entry.spec)
        assert entry.cell is not None
        assert entry.cell.metrics == expected.metrics
        assert entry.cell.methods == expected.methods
        assert together.samples(entry.cell) == alone.samples(expected)
        assert entry.cell.costs is not None
        assert expected.costs is not None
        assert entry.cell.costs.prefill_flops == expected.costs.prefill_flops
        assert entry.cell.costs.latency_s is None
    for task in TASKS:
        name, curve = read_divergence(divergence_file(tmp_path / "curve", task))
        assert name == task
        assert [k for k, _ in curve] == [3, 5]
        assert curve[0][1] > curve[1][1] > 0


def test_more_k_join_those_that_are_there(tmp_path: Path) -> None:
    before = run_curve(plan(5, tasks=["shapes_vqa"]), tmp_path, watcher())
    after = run_curve(plan(2, 5, tasks=["shapes_vqa"]), tmp_path, watcher())
    kept = {entry.spec.method: entry.cell for entry in after}
    assert all(kept[entry.spec.method] == entry.cell for entry in before)
    assert len(after) == 3
    file = divergence_file(tmp_path, "shapes_vqa")
    assert [k for k, _ in read_divergence(file)[1]] == [2, 5]
    made = curve_files(tmp_path, "vtw-eval curve ...")
    assert set(made) == {"curve.md", "curve.csv", "curve.png", "curve.svg"}
    assert made == curve_files(tmp_path, "vtw-eval curve ...")
    text = made["curve.md"].decode()
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert lines[2:] == ["2", "5", "unchanged"]
    assert "Made by `vtw-eval curve ...`." in text
    rows = list(csv.DictReader(io.StringIO(made["curve.csv"].decode())))
    assert [row["method"].partition(",position")[0] for row in rows] == ["baseline", "vtw,k=2", "vtw,k=5"]


def test_all_k_are_those_below_the_number_of_layers() -> None:
    cells = plan(tasks=["shapes_vqa"]).cells()
    assert [cell.method for cell in cells] == ["baseline", *(f"vtw,k={k},position=keep" for k in range(10))]
    assert {cell.model for cell in cells} == {"shapes"}


@pytest.mark.parametrize(
    ("adapter", "model_args", "ks", "words"),
    [
        ("llava_vt", "pretrained=shapes", None, "llava_vtw"),
        ("llava_vtw", "dtype=float32", None, "names no checkpoint"),
        ("llava_vtw", "pretrained=shapes,k=3", None, "use --k"),
        ("llava_vtw", "pretrained=shapes,method=fastv", None, "it is vtw at each k"),
        ("llava_vtw", "pretrained=shapes,dtype=a,dtype=b", None, "stands 2 times"),
        ("llava_vtw", "pretrained=shapes,nothing=3", None, "nothing"),
        ("llava_vtw", "pretrained=shapes", [3, 10], "from 0 to 9"),
        ("llava_vtw", "pretrained=shapes", [-1], "from 0 to 9"),
        ("llava_vtw", "pretrained=nowhere/nothing", None, "nowhere/nothing"),
    ],
)
def test_what_cannot_be_is_refused(adapter: str, model_args: str, ks: list[int] | None, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        curve_plan(adapter, model_args, ["shapes_vqa"], ks)


def test_command_line(run: Callable[..., subprocess.CompletedProcess[str]], script: str, tmp_path: Path) -> None:
    given = [f"{script}/vtw-eval", "curve", "--model-args", "pretrained=shapes", "--task", "shapes_vqa", "--limit", "4"]
    done = run(*given, "--k", "0,6", "--no-verify", "-o", str(tmp_path / "curve"))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "6", "unchanged"]
    for name in ("curve.md", "curve.csv", "curve.png", "curve.svg"):
        assert (tmp_path / "curve" / name).stat().st_size > 0
    again = run(*given, "--k", "0,6", "--no-verify", "-o", str(tmp_path / "curve"))
    assert "3 of 3 cells are done already" in again.stderr
    assert again.stdout == done.stdout
    wrong = run(*given, "--k", "a", "-o", str(tmp_path / "other"))
    assert wrong.returncode == 2
    assert "0,4,8" in wrong.stderr
