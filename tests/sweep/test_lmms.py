"""Cells of lmms-eval in this process: what one number costs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from tests.sweep import conftest
from vtw_eval.model_adapters.lmms.cells import LmmsModel
from vtw_eval.record.cell import Cell
from vtw_eval.shapes.data import TEST_SETS
from vtw_eval.sweep.display import headline, main_metric
from vtw_eval.sweep.harness import Settings

SPEC = conftest.SPEC.model_copy(update={"task": "shapes_pope", "limit": 6})


@pytest.fixture(scope="module")
def model() -> LmmsModel:
    return LmmsModel(SPEC, Settings("cpu", 6))


def test_samples_tell_what_was_asked_shown_and_kept(model: LmmsModel) -> None:
    spec = SPEC.model_copy(update={"method": "fastv,k=2,r=0.5"})
    for sample, row in zip(model.evaluate(spec, lambda answered, of: None).samples, TEST_SETS["pope"](), strict=False):
        assert sample.question.startswith(row["question"]) and len(sample.question) < 200
        assert sample.media == sample.group == hashlib.sha256(row["image"]["bytes"] + b"\0").hexdigest()[:16]
        assert sample.costs is not None and len(sample.costs.kept) == 12
        sets = sample.costs.kept_sets()
        assert sets is not None and [(one.first, one.last, sum(one.kept)) for one in sets] == [(0, 1, 64), (2, 9, 32)]


def broken(_: Sequence[Any]) -> float:
    raise ZeroDivisionError("no document in this bucket")


def test_an_aggregation_that_fails_or_gives_no_number_costs_its_metric(model: LmmsModel) -> None:
    whole = model.evaluate(SPEC, lambda answered, of: None)
    assert whole.undefined == {}
    task = model._task(SPEC.task)
    real = task.aggregation()
    first, second, *rest = real
    with mock.patch.object(task, "aggregation", return_value={**real, first: broken, second: lambda items: math.nan}):
        found = model.evaluate(SPEC, lambda answered, of: None)
    assert found.metrics == {name: whole.metrics[name] for name in rest}
    assert found.undefined == {first: "ZeroDivisionError: no document in this bucket", second: "nan"}
    assert [sample.answer for sample in found.samples] == [sample.answer for sample in whole.samples]
    cell = Cell(
        spec=SPEC, status="done", metrics=found.metrics, undefined=found.undefined, seconds=1.0, finished="2024-01-01"
    )
    assert f"{second} undefined (nan)" in headline(cell)
    assert main_metric(cell) in rest
    alone = cell.model_copy(update={"metrics": {}})
    assert headline(alone).startswith(f"{first} undefined (ZeroDivisionError")
    assert main_metric(alone) == ""
