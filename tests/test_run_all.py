"""``run_all.sh`` with a stand-in for ``vtw-eval``: what it writes where, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vtw_eval.sweep.plan import presets

ROOT = Path(__file__).parents[1]

STAND_IN = """#!/usr/bin/env bash
# Notes its arguments; a sweep ends as told, a report writes its file.
echo "$*" >> "$NOTED"
case $1 in
sweep) mkdir -p "$4"; exit "$CODE" ;;
report) mkdir -p "$(dirname "$4")"; echo new > "$4" ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project with committed results."""
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "venv.sh").write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vtw-eval").write_text(STAND_IN)
    (tmp_path / "bin" / "vtw-eval").chmod(0o755)
    (tmp_path / "results" / "shapes").mkdir(parents=True)
    (tmp_path / "results" / "shapes" / "README.md").write_text("committed\n")
    return tmp_path


def run(place: Path, code: int, *words: str, profile: str = "shapes") -> subprocess.CompletedProcess[str]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NOTED": str(place / "noted"), "CODE": str(code), "PROFILE": profile}
    return subprocess.run([str(place / "run_all.sh"), *words], env=env, capture_output=True, text=True)


def committed(place: Path) -> str:
    return (place / "results" / "shapes" / "README.md").read_text().strip()


def test_results_are_written_when_every_cell_is_done(place: Path) -> None:
    assert run(place, 0).returncode == 0
    assert committed(place) == "new"
    assert (place / "noted").read_text().splitlines()[0] == "sweep shapes -o runs/shapes"


def test_all_embedded_models_are_evaluated_by_one_command(place: Path) -> None:
    assert run(place, 0, profile="").returncode == 0
    noted = (place / "noted").read_text().splitlines()
    plans = ["shapes", "boards-table2", "boards-table8", "moves-table3"]
    assert [line.split()[1] for line in noted if line.startswith("sweep")] == plans
    assert [line for line in noted if line.startswith("report")] == [
        f"report runs/{plan} -o results/{plan}/README.md --command ./run_all.sh" for plan in plans
    ]
    assert set(plans) <= set(presets())
    assert all((place / "results" / plan / "README.md").exists() for plan in plans)


def test_a_failed_cell_leaves_them_and_reports_beside_the_run(place: Path) -> None:
    done = run(place, 1)
    assert done.returncode == 1
    assert committed(place) == "committed"
    assert (place / "runs" / "shapes" / "report" / "README.md").read_text() == "new\n"
    assert "results/shapes stays as it is; see runs/shapes/report/README.md" in done.stderr
    assert run(place, 0).returncode == 0  # the same folder goes on
    assert committed(place) == "new"


@pytest.mark.parametrize("code", [2, 130, 137])
def test_an_interrupted_or_refused_run_ends_at_once_and_reports_nothing(place: Path, code: int) -> None:
    assert run(place, code, profile="paper").returncode == code
    assert run(place, code).returncode == code
    assert committed(place) == "committed"
    assert [line.split()[:2] for line in (place / "noted").read_text().splitlines()] == [
        ["sweep", "vtw-table2"],
        ["sweep", "shapes"],
    ]


def test_a_run_of_a_part_goes_elsewhere(place: Path) -> None:
    assert run(place, 0, "--limit", "4").returncode == 0
    assert committed(place) == "committed"
    assert (place / "runs" / "shapes-partial" / "report" / "README.md").exists()
    assert (place / "noted").read_text().startswith("sweep shapes -o runs/shapes-partial --take-over --limit 4\n")


def test_a_finished_run_is_begun_anew(place: Path) -> None:
    assert run(place, 0).returncode == 0
    (place / "runs" / "shapes" / "old").write_text("")
    assert run(place, 0).returncode == 0
    assert not (place / "runs" / "shapes" / "old").exists()
