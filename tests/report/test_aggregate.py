"""Metrics recomputed from samples equal the harness's own aggregation and independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from lmms_eval.tasks.mme.utils import mme_aggregate_results
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

from tests.report.made import documents, samples_of, scored
from vtw_eval.record.cell import Sample
from vtw_eval.report.errors import ReportError
from vtw_eval.report.stats.aggregate import by_category, group_sums, value_of
from vtw_eval.report.stats.evidence import evidence_of


def sample(number: int, **fields: object) -> Sample:
    base = {"doc_id": str(number), "group": str(number), "target": "yes", "answer": "", "scores": {"m": 1.0}}
    return Sample.model_validate({**base, **fields})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mme_equals_the_aggregation_of_lmms_eval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    categories = [c for c, pairs in (("count", 7), ("OCR", 3), ("code_reasoning", 5)) for _ in range(2 * pairs)]
    rows = [
        sample(i, group=f"{c}/{i // 2}", category=c, scores={"p" if c != "code_reasoning" else "q": float(right)})
        for i, (c, right) in enumerate(zip(categories, rng.random(len(categories)) < 0.6, strict=True))
    ]
    theirs = [{"question_id": r.group, "category": r.category, "score": sum(r.scores.values())} for r in rows]
    evidence = evidence_of(rows, ["p", "q"], "mme")
    assert value_of(evidence) == pytest.approx(mme_aggregate_results(theirs))
    for name, value in by_category(evidence).items():
        assert value == pytest.approx(mme_aggregate_results([r for r in theirs if r["category"] == name]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_f1_equals_the_aggregation_of_lmms_eval_also_for_answers_that_are_neither_yes_nor_no(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        sample(i, group=f"g{i // 3}", target=str(rng.choice(["yes", "no"])), prediction=str(told))
        for i, told in enumerate(rng.choice(["yes", "no", "a cat"], size=90))
    ]
    theirs = [{"prediction": r.prediction, "ground_truth": r.target} for r in rows]
    assert value_of(evidence_of(rows, ["m"], "f1")) == pytest.approx(pope_aggregate_f1_score(theirs))


def test_f1_without_a_true_positive_is_zero() -> None:
    assert value_of(evidence_of([sample(0, prediction="no"), sample(1, prediction="no")], ["m"], "f1")) == 0


def test_a_mean_weighs_documents_not_groups() -> None:
    evidence = scored("mean", documents(4, ["a", "a", "a", "b"]), [1, 1, 1, 0])
    assert value_of(evidence) == 0.75
    assert group_sums(evidence).rows.tolist() == [[3, 3], [0, 1]]


def test_documents_without_the_metric_do_not_count() -> None:
    rows = [sample(0), sample(1, scores={"other": 0.0})]
    assert evidence_of(rows, ["m"], "mean").documents.ids == ("0",)
    with pytest.raises(ReportError, match="no sample has a score x"):
        evidence_of(rows, ["x"], "mean")


def test_a_document_that_stands_twice_is_refused() -> None:
    with pytest.raises(ReportError, match="'7' stands twice"):
        evidence_of([sample(7), sample(8), sample(7)], ["m"], "mean")


def test_mme_needs_pairs() -> None:
    rows = [sample(i, group=g, category="count") for i, g in enumerate(["a", "a", "b"])]
    with pytest.raises(ReportError, match="pairs of questions, but picture 'b' has 1"):
        value_of(evidence_of(rows, ["m"], "mme"))


def test_evidence_does_not_depend_on_the_order_of_samples() -> None:
    rows = samples_of("shapes_pope", 20, lambda i, target: "yes")
    a, b = evidence_of(rows, ["pope_f1_score"], "f1"), evidence_of(rows[::-1], ["pope_f1_score"], "f1")
    assert a.documents == b.documents
    assert (a.contributions == b.contributions).all()
