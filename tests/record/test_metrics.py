"""Metrics from samples against numbers counted by hand; tests/sweep/test_samples.py asks lmms-eval's own code."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vtw_eval.record.cell import Aggregate
from vtw_eval.record.metrics import f1, f1_parts, mme_points, pair_points, scale_of
from vtw_eval.record.reported import label_of, number_of, numbers_of


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] * 2 + [("no", "yes")] + [("no", "no")] * 4
    precision, recall = Fraction(3, 5), Fraction(3, 4)
    assert f1(pairs) == pytest.approx(float(2 / (1 / precision + 1 / recall)))
    assert f1([*pairs, ("maybe", "yes"), ("maybe", "no")]) == f1(pairs), "neither yes nor no: no false negative"
    assert f1([(" Yes", "yes ")]) == 1
    assert f1([("no", "no")]) == 0


def test_mme_gives_100_for_the_share_and_100_for_whole_pairs() -> None:
    rows = [("a", "1", 1.0), ("a", "1", 1.0), ("a", "2", 1.0), ("a", "2", 0.0), ("b", "1", 0.0), ("b", "1", 0.0)]
    assert mme_points(rows) == (75 + 50) + 0
    assert mme_points(rows[:2]) == 200


def test_formulas_take_arrays() -> None:
    assert pair_points(np.array([0.0, 1.0, 2.0])).tolist() == [pair_points(right) for right in (0.0, 1.0, 2.0)]
    numerator, denominator = f1_parts(np.array([3.0, 1.0]), np.array([2.0, 0.0]), np.array([1.0, 4.0]))
    assert (numerator / denominator).tolist() == [6 / 9, 2 / 6]


@pytest.mark.parametrize(
    ("kind", "computed", "reported", "scale"),
    [
        ("mean", 0.5, 0.5, 1),
        ("mean", 0.123456, 0.12346, 1),
        ("mean", 0.5, 50.0, 100),
        ("mean", 0.5, 0.51, None),
        ("f1", 0.25, 25.0, 100),
        ("mme", 1200.0, 1200.0005, 1),
        ("mme", 12.0, 1200.0, None),
    ],
)
def test_the_scale_of_what_is_reported(kind: Aggregate, computed: float, reported: float, scale: int | None) -> None:
    assert scale_of(kind, computed, reported) == scale


def test_numbers_among_what_lmms_eval_reports() -> None:
    import torch

    values = [1, 0.5, np.float32(0.5), np.array([2.0]), torch.tensor(3.0), float("nan")]
    assert [number_of(value) for value in values[:-1]] == [1.0, 0.5, 0.5, 2.0, 3.0]
    others = [True, np.bool_(True), "1", None, {"a": 1}, np.zeros(2), torch.zeros(2)]
    assert [number_of(value) for value in others] == [None] * len(others)
    results = {"alias": "t", "acc,none": 1, "acc_stderr,none": 0.1, "text,none": "x", "nan,none": values[-1]}
    assert list(numbers_of(results)) == ["acc,none", "nan,none"]
    assert (label_of("acc,none", ["none"]), label_of("acc,a", ["a", "b"])) == ("acc", "acc,a")
