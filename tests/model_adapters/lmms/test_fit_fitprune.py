"""``vtw-eval fit-fitprune``: the recipe is that of the task's prompts, and the method does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.support.oracle import models
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cli import app
from vtw_eval.methods import parse_method
from vtw_eval.methods.fitprune_fit import fit_table
from vtw_eval.methods.fitprune_recipe import read_recipe
from vtw_eval.model_adapters.lmms.collect import collect


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["fit-fitprune", *arguments])


@torch.no_grad()
def test_a_recipe_is_fitted_to_a_task_and_used(tmp_path: Path) -> None:
    file = tmp_path / "recipes" / "shapes.json"
    given = ("--model-args", "pretrained=shapes", "--task", "shapes_vqa", "--device", "cpu", "--reduction", "0.5")
    result = invoke(*given, "--samples", "3", "-o", str(file))
    assert result.exit_code == 0, result.output
    recipe = read_recipe(file)
    assert (recipe.checkpoint, recipe.tasks, recipe.documents, recipe.vision) == ("shapes", ("shapes_vqa",), 3, 64)
    assert len(recipe.deleted) == 10 and recipe.reduction >= 0.5
    assert f"Use: fitprune,recipe={file}" in result.output
    runner, requests = collect("llava_vtw", {"pretrained": "shapes", "method": "baseline"}, "shapes_vqa", 3)
    prompts = [request.build(runner.family) for request in requests]
    batch = runner.family.encode(prompts).inputs  # all at once, padded
    found = fit_table(runner.family.model, [batch], 0.5)
    assert (found.deleted, found.alpha) == (recipe.deleted, recipe.alpha)
    with parse_method(f"fitprune,recipe={file}")(runner.family.model) as trace:
        runner.family.model(**batch)
    entering = [64 - sum(recipe.deleted[:layer]) for layer in range(10)]
    assert trace.vision_per_layer.tolist() == [entering] * 3
    stronger = parse_method(f"fitprune,recipe={file},r=0.9").bind(runner.anatomy)
    assert stronger.shares(10)[-1] < recipe.vision - sum(recipe.deleted)


def test_what_is_no_recipe_of_the_model_is_refused(tmp_path: Path) -> None:
    anatomy = find_anatomy(models("llava_gqa", "sdpa")[0])
    told = {"checkpoint": "x", "alpha": 0.1, "reduction": 0.6, "tasks": ["t"], "documents": 1}
    told |= {"command": "", "environment": ""}
    for name, vision, deleted in (
        ("good", 8, [2, 0, 1, 0]),
        ("layers", 8, [1, 0]),
        ("much", 8, [9, 0, 0, 0]),
        ("none", 8, [0, 0, 0, 0]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({**told, "vision": vision, "deleted": deleted}))
    (tmp_path / "other.json").write_text("{}")

    def bound(name: str, more: str = "") -> Any:
        return parse_method(f"fitprune,recipe={tmp_path / name}.json{more}").bind(anatomy)

    assert bound("good").shares(4) == [1.0, 0.75, 0.75, 0.625]
    for name, more, words in (
        ("absent", "", "No such file or directory. `vtw-eval fit-fitprune` makes one"),
        ("layers", "", "of a model with 2 decoder layers, this one has 4"),
        ("much", "", "9 of 8 vision tokens cannot leave"),
        ("other", "", "no recipe of fitprune"),
        ("none", ",r=0.5", "all tokens or none"),
        ("good", ",table=8-2-0-1-0", "not both"),
    ):
        with pytest.raises(ValueError, match=words):
            bound(name, more)


def test_impossible_fits_are_told_before_the_model_is_opened(tmp_path: Path) -> None:
    given = ("--model-args", "pretrained=/no/checkpoint", "--task", "shapes_vqa", "-o", str(tmp_path / "r.json"))
    for more, words in ((("--reduction", "1"), "out of range"), (("--device", "gpu"), "device='gpu' is no device")):
        result = invoke(*given, *more)
        assert result.exit_code == 2 and words in result.output
