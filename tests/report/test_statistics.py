"""Intervals cover, tests equal references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from tests.report.made import documents, scored, yes_no
from vtw_eval.report.errors import ReportError
from vtw_eval.report.stats import statistics
from vtw_eval.report.stats.aggregate import value_of
from vtw_eval.report.stats.evidence import Evidence
from vtw_eval.report.stats.statistics import compare, holm, interval

RUNS = 500
IMAGES = documents(400, [f"image{i // 4}" for i in range(400)])
PAIRS = documents(480, [f"pair{i // 2}" for i in range(480)], [f"category{i // 160}" for i in range(480)])
POPE = documents(480, [f"image{i // 6}" for i in range(480)])


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 1000)


def share(rng: np.random.Generator) -> tuple[Evidence, float]:
    return scored("mean", documents(300), rng.random(300) < 0.7), 0.7


def near_one(rng: np.random.Generator) -> tuple[Evidence, float]:
    p = rng.uniform(0.97, 1)  # over many p: that of a single one jumps, as for every interval of counts
    return scored("mean", documents(480), rng.random(480) < p), p


def clustered(rng: np.random.Generator) -> tuple[Evidence, float]:
    return scored("mean", IMAGES, rng.random(400) < np.repeat(rng.beta(1.4, 0.6, 100), 4)), 0.7


def f1(rng: np.random.Generator) -> tuple[Evidence, float]:
    right = rng.random(480) < np.repeat(rng.beta(7.2, 0.8, 80), 6)
    return yes_no(POPE, right, np.arange(480) % 2 == 0), 0.9


def mme(rng: np.random.Generator) -> tuple[Evidence, float]:
    return scored("mme", PAIRS, rng.random(480) < 0.97), 3 * 100 * (0.97 + 0.97**2)


def small_mme(rng: np.random.Generator) -> tuple[Evidence, float]:
    sizes = [30, 20, 20, 20, 40, 60]
    names = np.repeat([f"c{i}" for i in range(len(sizes))], [2 * n for n in sizes])
    docs = documents(len(names), [f"pair{i // 2}" for i in range(len(names))], names.tolist())
    return scored("mme", docs, rng.random(len(names)) < 0.75), 6 * 100 * (0.75 + 0.75**2)


@pytest.mark.usefixtures("_few_draws")
@pytest.mark.parametrize("simulate", [share, near_one, clustered, f1, mme, small_mme])
def test_the_interval_covers(simulate: Callable[[np.random.Generator], tuple[Evidence, float]]) -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(RUNS):
        evidence, truth = simulate(rng)
        found = interval(evidence)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / RUNS <= 0.97


def ordinary_change(rng: np.random.Generator) -> tuple[Evidence, Evidence, float]:
    before = rng.random(300) < 0.8
    after = np.where(rng.random(300) < 0.1, ~before, before)
    return scored("mean", documents(300), after), scored("mean", documents(300), before), 0.1 * (0.2 - 0.8)


def rare_change(rng: np.random.Generator) -> tuple[Evidence, Evidence, float]:
    draw, docs = rng.random(480), documents(480)
    return scored("mean", docs, draw > 0.01), scored("mean", docs, (draw < 0.01) | (draw > 0.02)), 0.0


def clustered_change(rng: np.random.Generator) -> tuple[Evidence, Evidence, float]:
    before = rng.random(400) < 0.8
    after = np.where(rng.random(400) < np.repeat(rng.beta(0.6, 5.4, 100), 4), ~before, before)
    return scored("mean", IMAGES, after), scored("mean", IMAGES, before), 0.1 * (0.2 - 0.8)


def f1_change(rng: np.random.Generator) -> tuple[Evidence, Evidence, float]:
    before, yes = rng.random(480) < 0.93, np.arange(480) % 2 == 0
    after = before & (rng.random(480) > 0.04)
    return yes_no(POPE, after, yes), yes_no(POPE, before, yes), 0.93 * 0.96 - 0.93


def mme_change(rng: np.random.Generator) -> tuple[Evidence, Evidence, float]:
    def total(p: float) -> float:
        return 300 * (p + p**2)

    before = rng.random(480) < 0.95
    after = before & (rng.random(480) > 0.03)
    return scored("mme", PAIRS, after), scored("mme", PAIRS, before), total(0.95 * 0.97) - total(0.95)


@pytest.mark.usefixtures("_few_draws")
@pytest.mark.parametrize("simulate", [ordinary_change, rare_change, clustered_change, f1_change, mme_change])
def test_the_paired_interval_covers(
    simulate: Callable[[np.random.Generator], tuple[Evidence, Evidence, float]],
) -> None:
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(RUNS):
        after, before, truth = simulate(rng)
        found = compare(after, before).interval
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / RUNS <= 0.97


@pytest.mark.usefixtures("_few_draws")
def test_ignoring_groups_would_be_too_narrow() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        evidence, truth = clustered(rng)
        alone = interval(scored("mean", documents(400), evidence.scores))
        hits += alone.low <= truth <= alone.high
    assert hits / 300 < 0.87  # where the right one covers 93 to 97 %, see above


@pytest.mark.parametrize(("right", "count"), [(480, 480), (471, 480), (20, 40), (0, 30)])
def test_a_share_without_groups_gets_the_interval_of_jeffreys(right: int, count: int) -> None:
    found = interval(scored("mean", documents(count), np.arange(count) < right))
    low, high = stats.beta.ppf([0.025, 0.975], right + 0.5, count - right + 0.5)
    expected = (0 if right == 0 else low, 1 if right == count else high)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.004)
    if right == count:
        assert found.low < 0.996  # not [100, 100]


def test_a_mean_of_fractions_is_close_to_the_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(3).beta(4, 2, 400)
    reference = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), method="BCa").confidence_interval
    found = interval(scored("mean", documents(400), values))
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.002)


def test_scores_without_bounds_get_a_plain_bootstrap() -> None:
    values = np.random.default_rng(3).normal(0, 500, 400)
    found = interval(scored("mean", documents(400), values))
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_results_are_the_same_every_time() -> None:
    before, after = clustered(np.random.default_rng(0))[0], clustered(np.random.default_rng(1))[0]
    assert interval(before) == interval(before)
    assert compare(after, before) == compare(after, before)


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(150) < 0.8, rng.random(150) < 0.7
    found = compare(scored("mean", documents(150), a), scored("mean", documents(150), b))
    reference = mcnemar([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]], exact=True).pvalue
    assert found.test == "McNemar"
    assert found.p == found.mcnemar_p == pytest.approx(reference)
    assert (found.lost, found.won) == ((~a & b).sum(), (a & ~b).sum())
    assert found.difference == pytest.approx(a.mean() - b.mean())


def test_the_permutation_of_groups_equals_mcnemar_where_groups_are_documents() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.72
    docs = documents(200)
    found = compare(yes_no(docs, a, np.ones(200, bool)), yes_no(docs, b, np.ones(200, bool)))
    exact = compare(scored("mean", docs, a), scored("mean", docs, b)).p
    # F1 of targets that are all yes rises with each right answer, as the mean does.
    assert found.test == "permutation"
    assert found.p == pytest.approx(exact, abs=0.015)


def test_the_permutation_equals_that_of_scipy_on_group_means() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random(60), rng.random(60) + 0.06
    reference = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=9999, rng=rng
    ).pvalue
    assert compare(scored("mean", documents(60), a), scored("mean", documents(60), b)).p == pytest.approx(
        reference, abs=0.02
    )


def test_clusters_weaken_the_test() -> None:
    lost = np.repeat(np.arange(50) < 4, 6)  # all six questions of four images
    docs = documents(300, [f"image{i // 6}" for i in range(300)])
    found = compare(scored("mean", docs, ~lost), scored("mean", docs, np.ones(300)))
    assert found.mcnemar_p is not None and found.mcnemar_p < 1e-6
    assert found.test == "permutation"
    assert found.p == pytest.approx(2 / 2**4, abs=0.02)


def test_equal_answers_are_no_difference_but_not_beyond_doubt() -> None:
    evidence = scored("mean", documents(480), np.arange(480) % 3 > 0)
    found = compare(evidence, evidence)
    assert (found.difference, found.p, found.lost, found.won) == (0, 1, 0, 0)
    assert -0.01 < found.interval.low < -0.001 and 0.001 < found.interval.high < 0.01
    assert found.equal_within(0.01) and not found.equal_within(0.001)


@pytest.mark.parametrize("seed", range(6))
def test_equivalence_agrees_with_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.beta(4, 2, 300)
    b = np.clip(a + rng.normal(0.004, 0.1, 300), 0, 1)
    found = compare(scored("mean", documents(300), a), scored("mean", documents(300), b))
    for margin in (0.005, 0.01, 0.02, 0.03):
        p = ttost_paired(a, b, -margin, margin)[0]
        if not 0.02 < p < 0.09:  # near 5 % a bootstrap and a t-test may differ
            assert found.equal_within(margin) == (p < 0.05)


def test_holm_is_the_adjustment_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed: int) -> None:
    values = np.random.default_rng(seed).random(seed * 7 + 1).round(1 + seed % 2)  # with ties
    assert holm(values.tolist()) == multipletests(values, method="holm")[1].tolist()


def test_other_documents_are_not_compared() -> None:
    a, b = scored("mean", documents(4), [1, 1, 0, 0]), scored("mean", documents(3), [1, 1, 0])
    with pytest.raises(ReportError, match=r"different documents \(4 and 3; 1 are in one only, such as 000003\)"):
        compare(a, b)
    regrouped = scored("mean", documents(4, ["a", "a", "b", "b"]), [1, 1, 0, 0])
    with pytest.raises(ReportError, match="different groups"):
        compare(a, regrouped)


def test_many_documents_are_quick_enough_to_draw_in_blocks() -> None:
    values = np.random.default_rng(0).random(5000)  # 5,000 distinct rows of 10,000 draws do not fit into one block
    evidence = scored("mean", documents(5000), values)
    found = interval(evidence)
    half = 1.96 * values.std() / np.sqrt(5000)
    assert (found.low, found.high) == pytest.approx((value_of(evidence) - half, value_of(evidence) + half), abs=0.001)
