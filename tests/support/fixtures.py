"""Checkpoints, data and lmms-eval runs that the tests of this folder share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.model_adapters.lmms.jobs import harness_jobs
from tests.support.checkpoints import make_checkpoint
from tests.support.harness_data import make_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Make something once in a folder that all test processes share."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, make: Callable[[Path], Any]) -> Path:
        folder = base / name
        with FileLock(str(base / f"{name}.lock")):
            if not (done := base / f"{name}.done").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def checkpoint(shared: Callable[..., Path]) -> Callable[[str], str]:
    """Return the folder of a tiny checkpoint of a family."""
    return lambda family: str(shared(family, lambda folder: make_checkpoint(family, folder)))


@pytest.fixture(scope="session")
def data(shared: Callable[..., Path]) -> Path:
    """Return the folder of locally made documents."""
    return shared("data", lambda folder: make_data(folder, 4))


@pytest.fixture(scope="session")
def run(data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in the data folder, without a network."""

    def call(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            **os.environ,
            "HF_HOME": str(data / "hf_home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            **environment,
        }
        return subprocess.run(command, cwd=data, env=variables, capture_output=True, text=True, timeout=600)

    return call


@pytest.fixture(scope="session")
def script() -> str:
    """Return the folder of the console scripts."""
    return str(Path(sys.executable).parent)


@pytest.fixture(scope="session")
def harness(
    shared: Callable[..., Path],
    checkpoint: Callable[[str], str],
    data: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> dict[str, Any]:
    """Return the outcome of every job of :mod:`tests.model_adapters.lmms.jobs`, all run in one process."""

    def make(folder: Path) -> None:
        (folder / "jobs.json").write_text(json.dumps(harness_jobs(checkpoint, data, folder)))
        out = str(folder / "out.json")
        done = run(sys.executable, "-m", "tests.model_adapters.lmms.drive", str(folder / "jobs.json"), out)
        assert done.returncode == 0, done.stderr[-2000:]

    return json.loads((shared("harness", make) / "out.json").read_text())
