"""Costs of an answer from its making to the file and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.costs import COSTS
from vtw_eval.record.cell import Sample
from vtw_eval.record.costs import SampleCosts, TimedCosts, mean_costs, mean_latency


def sample_of(costs: SampleCosts | None) -> Sample:
    return Sample(doc_id="0", group="g", target="t", answer="a", scores={}, costs=costs)


@pytest.mark.parametrize("costs", [COSTS.untimed(), None])
def test_costs_are_read_as_they_were_written(costs: SampleCosts | None) -> None:
    assert Sample.model_validate_json(sample_of(costs).model_dump_json()).costs == costs


def test_times_belong_to_the_run_and_are_not_kept() -> None:
    kept = json.loads(sample_of(COSTS.untimed()).model_dump_json())["costs"]
    assert COSTS.to_dict() == {**kept, "latency_s": 0.1, "batch_rows": 4}


def test_a_mean_of_latencies_needs_one_of_every_answer() -> None:
    shared = COSTS.model_copy(update={"latency_s": None})
    assert TimedCosts.model_validate_json(shared.model_dump_json()) == shared
    assert mean_costs([COSTS, COSTS])["latency_s"] == pytest.approx(0.1)
    means = mean_costs([COSTS, shared])
    assert "latency_s" not in means
    assert means["input_tokens"] == COSTS.input_tokens
    assert mean_latency([]) is None


def test_costs_of_earlier_versions_are_read() -> None:
    line = json.loads(sample_of(COSTS.untimed()).model_dump_json())
    assert Sample.model_validate({**line, "costs": {}}).costs is None
    for name in ("asked", "verified", "media"):  # each came with a later version
        del line["costs"][name]
    costs = Sample.model_validate(line).costs
    assert costs is not None
    assert (costs.asked, costs.verified, costs.media) == ("", "not verified", ())


def test_other_costs_are_refused() -> None:
    with pytest.raises(ValidationError, match="nonsense"):
        SampleCosts.model_validate({**COSTS.untimed().model_dump(), "nonsense": 1})


def test_mypy_knows_what_costs_are(tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(
        "from vtw_eval.record.cell import Sample\n"
        "from vtw_eval.record.costs import SampleCosts\n"
        "SampleCosts(nonsense=1)\n"
        "def f(sample: Sample) -> str:\n"
        "    assert sample.costs is not None\n"
        "    return sample.costs.input_tokens\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "mistakes.py")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=240,
    )
    assert 'mistakes.py:3: error: Unexpected keyword argument "nonsense" for "SampleCosts"' in ran.stdout
    assert 'mistakes.py:6: error: Incompatible return value type (got "int", expected "str")' in ran.stdout
