"""A small sweep that the tests of this folder share, and what they need to compare it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.methods.dyvte.gates import Gates, save_gates
from vtw_eval.record.cell import CellSpec

SPEC = CellSpec(
    model="shapes",
    adapter="llava_vtw",
    pretrained="shapes",
    model_args={"dtype": "float32"},
    method="baseline",
    task="shapes_pope",
)
"""A cell of the embedded model."""

PLAN: dict[str, Any] = {
    "title": "Small",
    "models": [{"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}],
    "methods": ["baseline", "vtw,k=2"],
    "tasks": ["shapes_mme", "shapes_caption"],
    "limit": 8,
    "batch_size": 4,
    "device": "cpu",
    "dtype": "float32",
    "workers": 2,
}
"""Two methods that work."""

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """A sweep that ran to its end."""

    plan: Path
    folder: Path
    code: int
    output: str


def unfit_gates(file: Path) -> str:
    """Write gates that were trained for other weights, which shows only on the loaded model; return their method."""
    sizes = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    width, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    save_gates(Gates(width, layers, inner=4, norm=torch.full((width,), 7.0)).initialise(0), file)
    return f"dyvte,gates={file},check_name=false"


def command(plan: Path, folder: Path, *more: str) -> list[str]:
    """Return the command line of a sweep."""
    start = "from vtw_eval.cli import app; app(prog_name='vtw-eval')"
    return [sys.executable, "-c", start, "sweep", str(plan), "-o", str(folder), *more]


def environment() -> dict[str, str]:
    """Return the environment of a sweep: no network, one thread."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "300"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the small sweep and a method that fails, run once without a disturbance for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-sweep"
    base.mkdir(exist_ok=True)
    plan, folder, done = base / "plan.yaml", base / "out", base / "done.json"
    with FileLock(str(base / "lock")):
        if not done.exists():
            methods = [*PLAN["methods"], unfit_gates(base / "unfit.safetensors")]
            plan.write_text(yaml.safe_dump({**PLAN, "methods": methods}))
            ran = subprocess.run(command(plan, folder), env=environment(), capture_output=True, text=True, timeout=300)
            done.write_text(json.dumps([ran.returncode, ran.stdout + ran.stderr]))
    return Finished(plan, folder, *json.loads(done.read_text()))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, Any]]:
    """Return a function that reads all finished cells of a folder, byte for byte but for times."""

    def read(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for cell in sorted((folder / "cells").iterdir()):
            content = json.loads((cell / "cell.json").read_text())
            if content["status"] != "done":
                continue
            content["seconds"] = content["finished"] = None
            content["costs"]["latency_s"] = None
            content["code"]["commit"] = None  # somebody may commit between two sweeps
            found[cell.name] = (json.dumps(content), (cell / "samples.jsonl").read_bytes())
        return found

    return read
