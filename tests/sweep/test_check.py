"""A hopeless plan is refused before anything is loaded or written, with one line per cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests.support.checkpoints import make_checkpoint
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cli import app
from vtw_eval.methods.dyvte.gates import Gates, save_gates
from vtw_eval.sweep.check import check_cells
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import parse_plan

SHAPES = {"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}
TASKS = ["shapes_pope", "shapes_mme"]


def found(device: str | None = "cpu", how: dict[str, bool] | None = None, **values: Any) -> list[str]:
    plan = parse_plan({"models": [SHAPES], "tasks": TASKS, **values})
    return [str(finding) for finding in check_cells(plan.cells(), Settings(device), **(how or {})) if finding.fatal]


def gates(file: Path, width: int, layers: int) -> Path:
    save_gates(Gates(width, layers, inner=4).initialise(0), file)
    return file


def test_nothing_speaks_against_what_can_be_done(tmp_path: Path) -> None:
    text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    own = gates(tmp_path / "own.safetensors", text["hidden_size"], text["num_hidden_layers"])
    methods = ["baseline", "vtw,k=10", "vtw,k=search", "random_k", "fastv+vtw", "tome", "dyvte"]
    assert found(methods=[*methods, f"dyvte,gates={own},check_name=false"]) == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("vtw,k=99", "k=99 is out of range: this model has 10 decoder layers"),
        ("fastv+vtw,vtw.k=11", "k=11 is out of range: this model has 10 decoder layers"),
        ("rand,k=11", "k=11 is out of range"),
        ("fastv+vtw,fastv.k=6,vtw.k=4", "vtw leaves no vision token from layer 4 on, so that fastv would do nothing"),
        ("dyvte,gates=nowhere.safetensors", "there is no gates file 'nowhere.safetensors'"),
    ],
)
def test_a_method_that_does_not_fit_is_one_line_for_all_its_tasks(method: str, message: str) -> None:
    [line] = found(methods=["baseline", method])
    assert message in line
    assert "(2 cells)" in line
    assert "\n" not in line


def test_gates_of_another_size_or_model(tmp_path: Path) -> None:
    narrow = gates(tmp_path / "narrow.safetensors", 8, 10)
    [line] = found(methods=[f"dyvte,gates={narrow},check_name=false"])
    assert "are for a hidden size of 8" in line
    beside = shutil.copytree(CHECKPOINT, tmp_path / "without", ignore=shutil.ignore_patterns("dyvte*"))
    [line] = found(models=[{**SHAPES, "pretrained": str(beside)}], methods=["dyvte"])
    assert "dyvte needs gates trained for" in line


def test_a_checkpoint_that_is_not_there_or_not_whole(tmp_path: Path) -> None:
    whole = make_checkpoint("llava", tmp_path / "whole")
    missing = {**SHAPES, "pretrained": str(tmp_path / "missing")}
    methods = ["baseline", "vtw,k=99"]  # not looked at on a model that is not known
    [line] = found(models=[missing], methods=methods)
    assert line.startswith(f"shapes (4 cells): no checkpoint at pretrained='{tmp_path / 'missing'}'")
    [line] = found(models=[{**SHAPES, "adapter": "qwen2vl_vtw", "pretrained": str(whole)}], methods=methods)
    assert "is a checkpoint of type 'llava', but qwen2vl_vtw opens" in line
    for file in whole.glob("*.safetensors"):
        file.unlink()
    [line] = found(models=[{**SHAPES, "pretrained": str(whole)}], methods=methods)
    assert "no weights" in line
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    (whole / "model-2.safetensors").write_text("")
    [line] = found(models=[{**SHAPES, "pretrained": str(whole)}], methods=methods)
    assert "lacks 1 of 2 files of weights, such as model-1.safetensors" in line


def test_a_checkpoint_of_the_papers_may_be_far_while_a_plan_is_only_looked_at() -> None:
    models = [{**SHAPES, "pretrained": "llava-hf/llava-1.5-7b-hf"}]
    assert found(models=models, how={"planning": True}) == []
    assert len(found(models=[{**SHAPES, "pretrained": "acme/unheard-of"}], how={"planning": True})) == 1
    assert len(found(models=models)) == 1
    assert found(models=models, how={"elsewhere": True}) == []


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "cpuu", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    [line] = found(device)
    assert f"device={device!r}" in line


def test_devices_of_other_machines_are_not_asked_for() -> None:
    assert found("cuda:77", how={"elsewhere": True}) == []
    assert len(found("gpu", how={"elsewhere": True})) == 1
    assert torch.device("cuda:77").index == 77


def test_a_search_under_vlmevalkit() -> None:
    [line] = found(harness="vlmevalkit", tasks=["Shapes_POPE"], methods=["vtw,k=search"])
    assert "k=search does not work with VLMEvalKit" in line


def test_the_command_line_refuses_it_with_status_2_and_writes_no_plan(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    plan = {"models": [SHAPES], "methods": ["baseline", "vtw,k=99"], "tasks": TASKS, "device": "cpu"}
    file.write_text(yaml.safe_dump(plan))
    for words in (["--dry-run"], ["-o", str(out)]):
        done = CliRunner().invoke(app, ["sweep", str(file), *words])
        assert done.exit_code == 2, done.output
        assert done.output.count("k=99 is out of range") == 1
    assert not (out / "plan.yaml").exists()
    done = CliRunner().invoke(app, ["sweep", str(file), "--dry-run", "--only", "baseline"])
    assert done.exit_code == 0, done.output
