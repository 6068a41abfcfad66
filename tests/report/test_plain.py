"""Reports of what plain runs of ``lmms_eval`` have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.costs import COSTS
from vtw_eval.report.errors import ReportError
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.source import read_results


def write(folder: Path, time: str, method: str, flops: list[float], values: dict[str, Any], **cost: Any) -> None:
    """Write what one run leaves, with the layout of lmms-eval 0.7.3."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {**COSTS.to_dict(), "method": method, "asked": method, "media": [], **cost}
    told = {
        "results": {"pope": {"alias": "pope", **values}},
        "configs": {"pope": {"task": "pope"}},
        "higher_is_better": {"pope": {"pope_f1_score": True}},
        "config": {"model": "llava_vtw", "device": "cpu", "batch_size": "4", "limit": None},
        "model_source": "llava_vtw",
        "model_name": "org/tiny",
    }
    (folder / f"{time}_results.json").write_text(json.dumps(told))
    costs = [{**shared, "prefill_flops": f} for f in flops]
    rows = [{"doc_id": i, "filtered_resps": "yes", "token_counts": [c]} for i, c in enumerate(costs)]
    (folder / f"{time}_samples_pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SCORES = {"pope_f1_score,none": 0.75, "pope_f1_score_stderr,none": 0.1, "pope_accuracy,none": 0.5, "other,none": "N/A"}


def test_scores_and_costs_are_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "org__tiny", "20260101_000000", "baseline", [4e9, 6e9], SCORES)
    write(tmp_path / "org__tiny", "20260101_000001", "vtw,k=1", [1e9, 9e9], {**SCORES, "pope_f1_score,none": 0.25})
    write(tmp_path / "org__tiny", "20260102_000000", "vtw,k=1", [1e9, 2e9], {**SCORES, "pope_f1_score,none": 0.5})
    results = read_results(tmp_path)
    found = {cell.spec.method: cell for cell in results.cells}
    assert {m: cell.flops["eq1"] for m, cell in found.items()} == {"baseline": 5e9, "vtw,k=1": 1.5e9}  # the later run
    (outcome,) = [o for o in found["vtw,k=1"].outcomes.values() if o.metrics == ("pope_f1_score",)]
    assert outcome.value == 50
    assert outcome.evidence is None, "groups of documents are not known"
    text = make_report(ReportRequest(folder=tmp_path)).text
    assert "5.00 (100.0%)" in text
    assert "1.50 (30.0%)" in text
    assert "does not tell which documents share an image" in text


def test_documents_that_were_shown_otherwise_are_told(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", "baseline", [1.0, 1.0, 1.0], SCORES, media=["orientation tag ignored"])
    assert "orientation tag ignored: 3 documents" in make_report(ReportRequest(folder=tmp_path)).text


def test_runs_of_different_documents_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", "baseline", [1.0, 1.0], SCORES)
    write(tmp_path, "20260101_000001", "vtw,k=1", [1.0], SCORES)
    with pytest.raises(ReportError, match=r"different numbers of documents \(vtw,k=1 1, baseline 2\)"):
        read_results(tmp_path)


def test_samples_that_are_missing_or_of_another_model(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", "baseline", [1.0], SCORES)
    samples = tmp_path / "20260101_000000_samples_pope.jsonl"
    samples.write_text(json.dumps({"doc_id": 0, "filtered_resps": "yes"}) + "\n")
    with pytest.raises(ReportError, match="holds no costs"):
        read_results(tmp_path)
    samples.unlink()
    with pytest.raises(ReportError, match="--log_samples"):
        read_results(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="nor an output of lmms_eval"):
        read_results(tmp_path / "empty")
