"""What the system refuses is told in one line and before the work; exit statuses tell a typo from a failure."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from unittest import mock

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.harness_data import make_pope
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cli import app
from vtw_eval.model_adapters.errors import DatasetError
from vtw_eval.model_adapters.lmms.cli import collect_failures
from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL
from vtw_eval.model_adapters.lmms.search import search_task
from vtw_eval.model_adapters.patches import Patches


def run(*words: object, code: int) -> str:
    """Run a command; its error is one line."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("kept")
    return file


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.yaml"
    model = {"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}
    file.write_text(yaml.safe_dump({"models": [model], "tasks": ["shapes_pope"], "limit": 2, "device": "cpu"}))
    return file


def test_a_sweep_into_a_place_that_cannot_be_used(plan: Path, in_the_way: Path) -> None:
    for folder in (in_the_way, in_the_way / "below"):
        told = run("sweep", plan, "-o", folder, code=1)
        assert f"vtw-eval sweep: error: {folder} cannot be used: " in told
    assert in_the_way.read_text() == "kept"
    run("sweep", plan, "-o", in_the_way, "--limit", "0", code=2)


def test_a_disk_that_fills_up_is_one_line_and_what_is_done_stays(plan: Path, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out" / "cells" / "x"))

    with mock.patch("vtw_eval.sweep.sweep.run_local", full):
        told = run("sweep", plan, "-o", tmp_path / "out", code=1)
    assert "vtw-eval sweep: error: [Errno 28] No space left on device" in told
    assert (tmp_path / "out" / "plan.yaml").exists()


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_search_looks_at_its_output_first(option: str, in_the_way: Path) -> None:
    words = ("search-k", "--model", "/no/checkpoint", "--task", "shapes_pope", option)
    told = run(*words, in_the_way / "x.png", code=1)
    assert str(in_the_way) in told
    assert "/no/checkpoint" not in told
    assert "is a folder" in run(*words, in_the_way.parent, code=1)


def test_a_search_refuses_what_it_cannot_do_before_it_loads_anything(tmp_path: Path) -> None:
    words = ("search-k", "--model", "/no/checkpoint", "--task", "shapes_pope")
    assert "the suffix is of no picture" in run(*words, "--plot", tmp_path / "x.docx", code=2)
    assert "device='cuda:77'" in run(*words, "--device", "cuda:77", code=2)
    assert "no checkpoint at pretrained='/no/checkpoint'" in run(*words, code=2)


def test_a_training_looks_at_its_output_first(in_the_way: Path, tmp_path: Path) -> None:
    words = ("train-dyvte", "--model", "/no/checkpoint", "--data", tmp_path / "none.json", "-o")
    assert "cannot be made" in run(*words, in_the_way / "gates.safetensors", code=1)
    assert "is a folder" in run(*words, tmp_path, code=1)
    assert "device='gpu'" in run(*words, tmp_path / "gates.safetensors", "--device", "gpu", code=2)
    assert "there is no file or folder" in run(*words, tmp_path / "gates.safetensors", code=2)


def test_an_evaluation_looks_at_its_output_first(in_the_way: Path) -> None:
    import lmms_eval.__main__ as harness

    failures: list[str] = []
    evaluated = mock.create_autospec(harness.cli_evaluate_single)
    given = argparse.Namespace(tasks="shapes_pope", output_path=str(in_the_way), verbosity="INFO", log_samples=True)
    with (
        mock.patch.object(harness, "cli_evaluate_single", evaluated),
        collect_failures(failures, Patches(LMMS_EVAL)),
    ):
        assert harness.cli_evaluate_single(given) == (None, None)
    assert failures == [f"{in_the_way} is a file where a folder is needed: name another place."]
    evaluated.assert_not_called()


def test_a_search_names_a_dataset_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)  # between lmms-eval's five attempts
    monkeypatch.chdir(tmp_path)
    make_pope(tmp_path, 2)
    for file in (tmp_path / "lmms-lab-encoder" / "POPE").rglob("*.parquet"):
        file.write_bytes(b"not a table")
    with pytest.raises(DatasetError, match="task pope: the dataset lmms-lab-encoder/POPE cannot") as told:
        search_task("llava_vtw", str(CHECKPOINT), "pope", 2, 0.1, start=1, direction="vtw_full", device="cpu")
    assert str(tmp_path / "lmms-lab-encoder" / "POPE") in str(told.value)
    assert "\n" not in str(told.value)
