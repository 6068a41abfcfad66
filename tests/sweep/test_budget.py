"""Plans with budgets: every method at one cost."""

from __future__ import annotations

from typing import Any

import pytest

from vtw_eval.cost import PRESETS
from vtw_eval.cost.compare import compare_costs
from vtw_eval.methods import parse_method
from vtw_eval.sweep.plan import Plan, PlanError, parse_plan, resolve

LLAVA = {"name": "LLaVA", "adapter": "llava_vtw", "pretrained": "llava-hf/llava-1.5-7b-hf"}
SHAPES = {"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}


def plan(**more: Any) -> Plan:
    return parse_plan({"models": [LLAVA], "tasks": ["shapes_mme"], "methods": ["baseline", "fastv", "vtw"], **more})


def test_all_methods_cost_the_same() -> None:
    resolved = resolve(plan(budgets=[{"flops": 0.5}, {"flops": 0.25}]))
    index = resolved.index()
    assert list(index.budgets) == ["0.5 of the FLOPs", "0.25 of the FLOPs"]
    for share, specs in zip((0.5, 0.25), index.budgets.values(), strict=True):
        assert [spec.partition(",")[0] for spec in specs] == ["fastv", "vtw", "random_vision", "uniform", "downsample"]
        costs = compare_costs(PRESETS["llava-1.5-7b"], [parse_method(spec) for spec in specs], text=66, vision=576)
        for spec, cost in zip(specs, costs[1:], strict=True):
            off = abs(cost.exact / costs[0].exact / share - 1)
            assert off < 0.01 or any(line.startswith(f"{spec}: ") for line in index.missed), spec
    assert [cell.method for cell in resolved.cells()] == [
        "baseline",
        *(s for each in index.budgets.values() for s in each),
    ]
    assert resolve(resolved) == resolved


def test_each_model_is_fitted_by_its_own_sizes() -> None:
    """The embedded model has 64 vision tokens and ten layers; the other 576 and 32."""
    resolved = resolve(plan(models=[LLAVA, SHAPES], budgets=[{"flops": 0.6}]))
    by_model = {name: resolved.fitted[name][0].methods for name in ("LLaVA", "shapes")}
    assert by_model["LLaVA"] != by_model["shapes"]
    assert {cell.method for cell in resolved.cells() if cell.model == "shapes"} == {"baseline", *by_model["shapes"]}
    assert set(resolved.index().budgets["0.6 of the FLOPs"]) == {*by_model["LLaVA"], *by_model["shapes"]}


def test_a_number_of_tokens() -> None:
    index = resolve(plan(budgets=[{"tokens": 64}])).index()
    assert index.budgets == {
        "64 tokens per image": [
            "fastv,k=2,tokens=64,seed=0",
            "random_vision,k=2,tokens=64,seed=0",
            "uniform,k=0,tokens=64",
            "downsample,tokens=64",
        ]
    }
    assert index.missed == ["vtw,position=keep: no number of tokens can be given"]


def test_what_cannot_be_reached_is_left_out_and_told() -> None:
    index = resolve(plan(methods=["tome", "dyvte", "random_k"], budgets=[{"flops": 0.5}])).index()
    assert [spec.partition(",")[0] for spec in index.budgets["0.5 of the FLOPs"]] == [
        "random_vision",
        "uniform",
        "downsample",
    ]
    assert [line.partition(",")[0].partition(":")[0] for line in index.missed] == ["tome", "dyvte", "random_k"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budgets": [{"flops": 0.5, "tokens": 3}]}, "one of them"),
        ({"budgets": [{}]}, "one of them"),
        ({"budgets": [{"flops": 1.5}]}, "less than or equal to 1"),
        ({"budgets": [{"flop": 0.5}]}, "unknown key"),
        ({"budgets": [{"flops": 0.5}], "names": {"fastv": "FastV"}}, "by --name"),
    ],
)
def test_a_wrong_budget_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(**more)


def test_sizes_must_be_known() -> None:
    model = {**LLAVA, "pretrained": "nobody/knows"}
    with pytest.raises(PlanError, match=r"budgets: nobody/knows: its sizes.*tokens"):
        resolve(plan(models=[model], budgets=[{"flops": 0.5}]))
    assert resolve(plan(models=[model], budgets=[{"tokens": 8}])).fitted
