"""A third party's method, from an installed package and from a file, in every command; this project knows neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from vtw_eval.versions import source_hash

PACKAGE = Path(__file__).parent / "package"
SOURCE = PACKAGE / "edge_first.py"
LIMIT = 4
FULL = "edge_first,k=3,r=0.5,power=2.0"
PLACE = "my_folder/edge_first.py:EdgeFirst"
FILE_FULL = FULL.replace("edge_first", PLACE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package in ``installed`` and its module as a plain file in ``my_folder``."""
    home = tmp_path_factory.mktemp("extension")
    shutil.copytree(PACKAGE, home / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(home / "installed"), str(home / "source")], check=True, timeout=120)
    (home / "my_folder").mkdir()
    shutil.copy(SOURCE, home / "my_folder")
    return home


def run(home: Path, name: str, *words: str) -> str:
    """Run a command where both are found; return what it printed."""
    done = subprocess.run(
        [str(Path(sysconfig.get_path("scripts")) / name), *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home / "installed"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check(costs: dict[str, Any], spec: str) -> None:
    """Check what an answer's record tells of the method: which it was, of what code, and that it has acted."""
    assert costs["method"] == costs["asked"] == spec
    assert costs["method_code"] == source_hash([SOURCE])
    assert costs["verified"].startswith("verified with torch ")
    assert costs["vision_per_layer"] == [64] * 3 + [32] * 7


def test_lmms_eval_runs_the_package(home: Path) -> None:
    words = ["--tasks", "shapes_mme", "--limit", str(LIMIT), "--batch_size", "4", "--output_path", "out"]
    arguments = "pretrained=shapes,method=edge_first,k=3"
    run(home, "lmms_eval", "--model", "llava_vtw", "--model_args", arguments, *words, "--log_samples")
    [samples] = (home / "out").rglob("*samples*.jsonl")
    answered = read_lines(samples)
    assert len(answered) == LIMIT
    for sample in answered:
        check(sample["token_counts"][0], FULL)


def test_vlmevalkit_runs_the_file(home: Path) -> None:
    arguments = f"pretrained=shapes,method={PLACE},k=3"
    words = ["--data", "Shapes_POPE", "--limit", str(LIMIT), "--work-dir", "kit"]
    run(home, "vtw-vlmeval", "--model", "llava_vtw", "--model-args", arguments, *words)
    [answers] = (home / "kit").rglob("*_answers.jsonl")
    answered = [line for line in read_lines(answers) if "prediction" in line]
    assert len(answered) == LIMIT
    for answer in answered:
        check(answer["extra_records"], FILE_FULL)


def test_a_sweep_runs_both_and_a_report_shows_them(home: Path) -> None:
    plan = f"""
title: Edge
models:
  - {{name: shapes, adapter: llava_vtw, pretrained: shapes}}
methods:
  - baseline
  - {{method: edge_first, k: [3]}}
  - {PLACE},k=3
  - edge_first+vtw,edge_first.k=2,vtw.k=5
tasks: [shapes_mme]
limit: {LIMIT}
batch_size: 4
"""
    (home / "plan.yaml").write_text(plan, encoding="utf-8")
    run(home, "vtw-eval", "sweep", "plan.yaml", "-o", "runs")
    cells = {
        (cell := json.loads(path.read_text(encoding="utf-8")))["spec"]["method"]: (cell, path.parent)
        for path in (home / "runs" / "cells").rglob("cell.json")
    }
    composed = "edge_first+vtw,edge_first.k=2,edge_first.r=0.5,edge_first.power=2.0,vtw.k=5,vtw.position=keep"
    assert set(cells) == {"baseline", FULL, FILE_FULL, composed}
    (package, _), (file, folder) = cells[FULL], cells[FILE_FULL]
    assert package["metrics"] == file["metrics"]
    assert package["code"]["method"] == file["code"]["method"] == source_hash([SOURCE])
    for sample in read_lines(folder / "samples.jsonl"):
        check(sample["costs"], FILE_FULL)
    run(home, "vtw-eval", "report", "runs", "-o", "report.csv")
    shown = (home / "report.csv").read_text(encoding="utf-8")
    assert all(spec in shown for spec in (FULL, FILE_FULL, composed))
    with (home / "my_folder" / "edge_first.py").open("a", encoding="utf-8") as changed:
        changed.write("# changed\n")
    told = run(home, "vtw-eval", "sweep", "--status", "runs")
    shutil.copy(SOURCE, home / "my_folder")
    outdated = [line for line in told.splitlines() if f"method {source_hash([SOURCE])} (now " in line]
    assert len(outdated) == 1 and FILE_FULL in outdated[0]


def test_cost_and_bench_take_both(home: Path) -> None:
    methods = ["--method", "edge_first,k=3", "--method", f"{PLACE},k=3,r=0.75"]
    shown = run(home, "vtw-eval", "cost", "--geometry", "shapes", "--text", "20", "--vision", "64", *methods)
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if "=" in line.partition(" ")[0]}
    assert rows[FULL] == f"{(3 * 84 + 7 * 52) / 10:.1f}"
    assert rows[FILE_FULL.replace("0.5", "0.75")] == f"{(3 * 84 + 7 * 36) / 10:.1f}"
    words = ["--text", "20", "--vision", "64", "--output-tokens", "2", "--repeats", "1", "--warmup", "0", "-o", "bench"]
    run(home, "vtw-eval", "bench", "--model", "shapes", *methods, *words)
    [table] = (home / "bench").rglob("*.json")
    assert {row["spec"] for row in json.loads(table.read_text())["settings"][0]["rows"]} == {
        "baseline",
        FULL,
        FILE_FULL.replace("0.5", "0.75"),
    }
