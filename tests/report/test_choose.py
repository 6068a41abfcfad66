"""What is said of a loss is right: bounds equal independent ones, claims are rarely false, the cheapest wins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from tests.report.made import cell_of, documents, make_store, samples_of, scored, yes_no
from vtw_eval.cli import app
from vtw_eval.report import ReportError, analyse, read_results
from vtw_eval.report.choice_blocks import evidence_table
from vtw_eval.report.choose import choice_of, choices
from vtw_eval.report.stats import statistics
from vtw_eval.report.stats.statistics import compare

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["choose", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 0), (20, 8), (5, 30)])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_the_bound_of_right_and_wrong_answers_is_that_of_a_dirichlet(lost: int, won: int, error: float) -> None:
    docs = documents(300)
    before, after = np.ones(300), np.ones(300)
    after[:lost], before[lost : lost + won] = 0, 0
    found = compare(scored("mean", docs, after), scored("mean", docs, before)).loss_bound(error)
    # Two of the four imagined pairs change nothing.
    shares = stats.dirichlet([lost + 0.5, won + 0.5, 300 - lost - won + 1]).rvs(400_000, random_state=5)
    expected = np.quantile(shares[:, 0] - shares[:, 1], 1 - error)
    assert found == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize("margin_error", [0.05, 0.005])
def test_the_bound_of_scores_is_where_a_one_sided_t_test_rejects(margin_error: float) -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(0, 4, 2000)
    after = before - 0.3 + rng.normal(0, 2, 2000)
    docs = documents(2000)
    margin = compare(scored("mean", docs, after), scored("mean", docs, before)).loss_bound(margin_error)
    # Of the hypothesis that the loss is the margin or more.
    p = stats.ttest_rel(before - margin, after, alternative="less").pvalue
    assert p == pytest.approx(margin_error, rel=0.2)


def test_of_a_metric_that_is_better_when_lower_a_rise_is_the_loss() -> None:
    docs, rng = documents(200), np.random.default_rng(0)
    before, after = rng.random(200) < 0.5, rng.random(200) < 0.7
    one = compare(scored("mean", docs, after), scored("mean", docs, before))
    other = compare(scored("mean", docs, ~after), scored("mean", docs, ~before))
    assert one.loss_bound(0.05, higher_is_better=False) == pytest.approx(other.loss_bound(0.05), abs=0.005)
    assert one.loss_bound(0.05) < 0.05 < one.difference < one.loss_bound(0.05, higher_is_better=False)


def test_an_error_too_small_for_the_draws_gives_no_bound() -> None:
    docs = documents(50)
    same = compare(scored("mean", docs, np.ones(50)), scored("mean", docs, np.ones(50)))
    assert math.isinf(same.loss_bound(0.9 / statistics.DRAWS))
    bounds = [same.loss_bound(error) for error in (0.5, 0.05, 0.005, 0.0005, 0.0002)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1] < 1


def test_claims_are_false_in_a_twentieth_of_the_cases_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four settings lose exactly the margin on one of two tasks and nothing on the other: every claim is false."""
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    monkeypatch.setattr(statistics, "_permutation", lambda *_: 1.0)  # not needed here
    rng, docs, margin, settings = np.random.default_rng(3), documents(300), 0.05, 4
    yes, runs, wrong = np.arange(300) % 2 == 0, 300, 0
    for _ in range(runs):
        bad = False
        before, other = np.ones(300, dtype=bool), rng.random(300) < 0.9
        for _ in range(settings):
            after = rng.random(300) >= margin
            hard = compare(scored("mean", docs, after), scored("mean", docs, before))
            easy = compare(yes_no(docs, other, yes), yes_no(docs, other, yes))
            bad |= max(hard.loss_bound(0.05 / settings), easy.loss_bound(0.05 / settings)) < margin
        wrong += bad
    assert stats.binomtest(wrong, runs, 0.05, alternative="greater").pvalue > 0.01, wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLOPs fall from method to method: the second loses much on everything, the third nothing, the last is missing."""
    root = tmp_path_factory.mktemp("sweep")
    methods = ["baseline", "vtw,k=8", "vtw,k=2", "vtw,k=4", "fastv"]
    wrong = {"baseline": 0.0, "vtw,k=8": 0.0, "vtw,k=2": 0.3, "vtw,k=4": 0.0, "fastv": 0.0}
    store = make_store(root, methods, wrong=wrong, count=400)
    gone = next(spec for spec in store.index.cells if spec.method.startswith("fastv") and spec.task == "shapes_pope")
    for file in store.folder(gone).iterdir():
        file.unlink()
    return root


def test_the_cheapest_that_is_shown_to_lose_little_is_chosen(folder: Path) -> None:
    [table] = analyse(read_results(folder))
    choice = choice_of(table)
    assert [c.row.label for c in choice.candidates] == ["fastv,k=2,r=0.5", "vtw,k=4", "vtw,k=2", "vtw,k=8"]
    assert [c.row.label for c in choice.within(5)] == ["vtw,k=4", "vtw,k=8"]
    assert [c.row.label for c in choice.within(100)] == ["vtw,k=4", "vtw,k=2", "vtw,k=8"]  # fastv has no POPE
    assert choice.within(choice.floor) == []
    for candidate in choice.candidates[1:]:
        for title, loss in candidate.losses.items():
            score = candidate.row.scores[title]
            assert loss is not None and score.comparison is not None
            unit = 4.0 if title.startswith("mme") else 1.0  # of two categories of 200
            scale = score.outcome.scale
            assert loss.observed == pytest.approx(-score.comparison.difference * scale / unit)
            bound = score.comparison.loss_bound(0.05 / 4) * scale / unit
            assert loss.bound == pytest.approx(bound) and loss.bound >= choice.floors[title]
        assert candidate.bound == max(loss.bound for loss in candidate.losses.values() if loss)


def test_only_the_tasks_that_count_decide(folder: Path) -> None:
    results = read_results(folder)
    [choice] = choices(results, ["MME", "shapes_vqa"])
    assert list(choice.floors) == ["mme (of 600)", "vqa"]
    assert [c.row.label for c in choice.within(5)] == ["fastv,k=2,r=0.5", "vtw,k=4", "vtw,k=8"]
    with pytest.raises(ReportError, match=r"no task or column 'gqa'. Columns: mme \(of 600\); pope F1; vqa"):
        choices(results, ["gqa"])


def test_the_command_says_what_to_take_and_why(folder: Path) -> None:
    text = run(folder, "--loss", 5)
    assert text.startswith("tiny, loss of less than 5: vtw,k=4, 0.25 (25.0%) GFLOPs.")
    shown, _, rest = text.partition("Not shown:")
    assert "vtw,k=8" in shown and "vtw,k=2" not in shown and "vtw,k=2" in rest and "fastv" in rest
    assert "Bonferroni" in rest and "all 4 cheaper settings" in rest
    text = run(folder, "--loss", 0.1, "--on", "vqa")
    assert "none: vqa has too few documents to show less than" in text
    assert "no task or column 'x'" in run(folder, "--on", "vqa,x", code=2)


def test_a_metric_without_evidence_is_refused_by_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, tasks=["shapes_vqa", "shapes_pope"])
    for cell in store.cells():
        if cell.spec.task == "shapes_vqa" and cell.spec.method == "baseline":
            wrong = cell.metrics["exact_match"].model_copy(update={"value": 0.123})
            store.save(cell.model_copy(update={"metrics": {"exact_match": wrong}}), store.samples(cell))
    assert "vqa: the samples give" in run(tmp_path, code=2)
    assert "loss of less than 50" in run(tmp_path, "--on", "pope", "--loss", 50)


def test_nothing_is_cheaper_than_the_unchanged_model_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=4"], tasks=["shapes_vqa"])
    for spec in store.index.cells:
        rows = samples_of("shapes_vqa", 80, lambda i, target: target)
        store.save(cell_of(spec, rows, 1e9 if spec.method == "baseline" else 2e9), rows)
    [choice] = choices(read_results(tmp_path))
    assert choice.candidates == () and evidence_table(choice).rows == []
    assert "none" in run(tmp_path)
