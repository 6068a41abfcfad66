"""The choice of a value by halves of documents, on made-up scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from vtw_eval.record.cell import Aggregate, Metric, Sample
from vtw_eval.record.metrics import f1, mme_points
from vtw_eval.sweep.halves import Choice, choose_by_halves, halves


def made(right: Sequence[bool], questions: int = 2) -> list[Sample]:
    """Samples of right and wrong answers, so many about an image; the answer is "yes" to every other one."""
    rows = []
    for i, good in enumerate(right):
        target = ("yes", "no")[i % 2]
        told = target if good else ("no" if target == "yes" else "yes")
        rows.append(
            Sample(
                doc_id=str(i),
                group=f"image {i // questions}",
                category="abc"[i // questions % 3],
                target=target,
                answer=told,
                prediction=told,
                scores={"score": float(good)},
            )
        )
    return rows


def metric(kind: Aggregate = "mean", **more: bool) -> Mapping[str, Metric]:
    return {"score": Metric(value=0.0, aggregate=kind, percent=kind != "mme", **more)}


def value(kind: Aggregate, rows: Sequence[Sample]) -> float:
    """In the points of tables, from the definitions of the harness."""
    if kind == "mean":
        return 100 * sum(s.scores["score"] for s in rows) / len(rows)
    if kind == "f1":
        return 100 * f1([(s.prediction, s.target) for s in rows])
    return mme_points([(s.category, s.group, s.scores["score"]) for s in rows])


@pytest.mark.parametrize("kind", ["mean", "f1", "mme"])
@pytest.mark.parametrize("loss", [0.0, 3.0, 12.0])
def test_the_smallest_value_that_loses_no_more_wins_on_what_it_is_not_used_for(kind: Aggregate, loss: float) -> None:
    rng = random.Random(repr((kind, loss)))
    answered = {k: made([rng.random() < 0.4 + 0.07 * k for _ in range(120)]) for k in (0, 2, 3, 5, 8)}
    first, second = choose_by_halves(answered, metric(kind), loss)
    assert (first.chosen_on, first.used_for) == (second.used_for, second.chosen_on)
    assert sorted([*first.chosen_on, *first.used_for], key=int) == [str(i) for i in range(120)]
    assert len(first.chosen_on) == 60
    full = 600 if kind == "mme" else 100
    for choice in (first, second):
        own = {k: value(kind, [s for s in rows if s.doc_id in choice.chosen_on]) for k, rows in answered.items()}
        assert choice.scores["score"] == pytest.approx(own)
        assert choice.k == min(k for k in own if own[k] >= own[8] - loss / 100 * full - 1e-9)


def test_groups_stay_together_and_order_does_not_matter() -> None:
    samples = made([True] * 90, questions=3)
    one, other = halves(samples)
    assert {int(doc) // 3 for doc in one} & {int(doc) // 3 for doc in other} == set()
    again = halves(samples[::-1])
    assert [sorted(half) for half in again] == [sorted(one), sorted(other)]
    assert {int(doc) // 3 % 2 for doc in one} == {0, 1}  # not every other image: tasks may take turns


def test_every_metric_counts_and_lower_may_be_better() -> None:
    answered = {k: made([k > 0 or i % 5 > 0 for i in range(40)]) for k in (0, 1)}
    for rows in answered.values():
        for number, sample in enumerate(rows):
            rows[number] = sample.model_copy(update={"scores": {**sample.scores, "error": 1 - sample.scores["score"]}})
    error = {"error": Metric(value=0.0, aggregate="mean", percent=True, higher_is_better=False)}

    def found(metrics: Mapping[str, Metric], loss: float) -> set[int]:
        return {choice.k for choice in choose_by_halves(answered, metrics, loss)}

    assert found(error, 1.0) == {1}
    assert found({**metric(), **error}, 50.0) == {0}


def test_the_unchanged_model_is_left_if_nothing_is_good_enough() -> None:
    answered = {k: made([k == 7] * 20) for k in (1, 3, 7)}
    assert [choice.k for choice in choose_by_halves(answered, metric(), 5.0)] == [7, 7]


@pytest.mark.parametrize(
    ("count", "metrics", "words"),
    [
        (2, metric(), "two images"),
        (20, metric("other"), "does not follow from single documents"),
        (20, {}, "no metric"),
        (20, {"score": Metric(value=0.0, aggregate="mean", percent=False)}, "no share of 100"),
    ],
)
def test_what_cannot_tell_is_refused(count: int, metrics: Mapping[str, Metric], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose_by_halves({k: made([True] * count) for k in (0, 1)}, metrics, 1.0)


def test_values_with_other_documents_are_refused() -> None:
    answered: dict[int, list[Sample]] = {0: made([True] * 20), 1: made([True] * 20)[1:]}
    with pytest.raises(ValueError, match="other documents"):
        choose_by_halves(answered, metric(), 1.0)
    assert isinstance(choose_by_halves({0: answered[0], 1: answered[0]}, metric(), 1.0)[0], Choice)
