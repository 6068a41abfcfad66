"""Comparison with older results, from a sweep or from what was committed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from tests.report.made import TASKS, cell_of, make_store, samples_of
from vtw_eval.cli import app
from vtw_eval.files import write_atomically
from vtw_eval.record.store import Store
from vtw_eval.report import ReportError, analyse, changes_between, read_results
from vtw_eval.report.summary import read_summary, summary_text
from vtw_eval.report.tables import interval_table, paired_table

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = runner.invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_a_summary_holds_all_that_tables_and_tests_need(tmp_path: Path) -> None:
    make_store(tmp_path / "sweep", models=["one", "two"])
    results = read_results(tmp_path / "sweep")
    (tmp_path / "summary.json").write_text(summary_text(results))
    again = read_results(tmp_path)
    assert summary_text(again) == summary_text(results)
    for a, b in zip(analyse(results), analyse(again), strict=True):
        assert interval_table(a) == interval_table(b)
        first, second = paired_table(a), paired_table(b)
        assert first is not None and second is not None
        assert [row[:-1] for row in first.rows] == [row[:-1] for row in second.rows]
        assert {row[-1] for row in second.rows} == {"-"}  # answers are not kept, so their identity is not known
    for x, y in zip(results.cells, again.cells, strict=True):
        for title, outcome in x.outcomes.items():
            other = y.outcomes[title].evidence
            assert outcome.evidence is not None and other is not None
            assert outcome.evidence.documents == other.documents
            assert np.array_equal(outcome.evidence.contributions, other.contributions)


@pytest.mark.parametrize("damage", ["cut", "version", "codes", "extra"])
def test_a_damaged_summary_is_refused(damage: str, tmp_path: Path) -> None:
    make_store(tmp_path / "sweep", tasks=["shapes_vqa"], count=10)
    file = tmp_path / "summary.json"
    text = summary_text(read_results(tmp_path / "sweep"))
    content = json.loads(text)
    if damage == "version":
        content["version"] = 2
    if damage == "codes":
        content["cells"][0]["columns"]["vqa"]["codes"] = "AAAA"
    if damage == "extra":
        content["cells"][0]["surprise"] = 1
    file.write_text(text[: len(text) // 2] if damage == "cut" else json.dumps(content))
    with pytest.raises(ReportError, match=r"summary\.json is (damaged|not a summary)"):
        read_summary(file)


@pytest.mark.parametrize("kept", ["sweep", "summary"])
def test_equal_results_show_no_change(kept: str, tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    make_store(tmp_path / "new")
    old = tmp_path / "old"
    if kept == "summary":
        run(old, "-o", tmp_path / "results" / "README.md")  # writes summary.json beside it
        old = tmp_path / "results"
    text, _ = run(tmp_path / "new", "--compare", old, "--fail-on-regression")
    assert "0 of 9 scores significantly worse, 0 better, 0 differ within noise" in text
    assert "answers differ in 0 of 9 cells, FLOPs in 0." in text


@pytest.mark.parametrize("kept", ["sweep", "summary"])
def test_a_significant_regression_fails_and_is_shown(kept: str, tmp_path: Path) -> None:
    make_store(tmp_path / "old", wrong={"vtw,k=4": 0.02})
    make_store(tmp_path / "new", wrong={"vtw,k=4": 0.6})
    old = tmp_path / "old"
    if kept == "summary":
        old = tmp_path / "results"
        write_atomically(old / "summary.json", summary_text(read_results(tmp_path / "old")))
    text, message = run(tmp_path / "new", "--compare", old, "--fail-on-regression", code=3)
    assert "worse than before" in message  # the report is written all the same: it says what is worse
    assert "**Compared with" in text and "3 of 9 scores significantly worse" in text
    assert "| tiny | vtw,k=4,position=keep | vqa |" in text
    run(tmp_path / "new", "--compare", old)
    better, _ = run(tmp_path / "old", "--compare", tmp_path / "new", "--fail-on-regression")
    assert "3 better" in better and "▲" in better


def test_the_p_value_of_a_change_is_adjusted_for_all_changes(tmp_path: Path) -> None:
    # 6 lost of 6 is p = 0.031 alone; among nine scores it is no regression.
    make_store(tmp_path / "old")
    store = make_store(tmp_path / "new")
    cell = next(c for c in store.cells() if c.spec.task == "shapes_vqa")
    rows = store.samples(cell)
    right = [i for i, row in enumerate(rows) if row.scores["exact_match"] == 1]
    for i in right[:12:2]:
        rows[i] = rows[i].model_copy(update={"answer": "x", "prediction": "x", "scores": {"exact_match": 0.0}})
    store.save(cell_of(cell.spec, rows, 1e9), rows)
    changes = changes_between(read_results(tmp_path / "new"), read_results(tmp_path / "old"))
    [changed] = [change for change in changes.compared if change.comparison.difference]
    assert changed.comparison.p < 0.05 < changed.holm_p
    assert not changes.regressed
    assert changes.answers == 1


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    make_store(tmp_path / "old", ["baseline", "vtw,k=2", "vtw,k=3"], count=80)
    store = make_store(tmp_path / "new", ["baseline", "vtw,k=2", "vtw,k=4"], count=80)
    spec = next(s for s in store.index.cells if s.method == "baseline" and s.task == "shapes_pope")
    failed = {"status": "failed", "error": "RuntimeError: x", "metrics": {}}
    store.save(cell_of(spec, samples_of("shapes_pope", 4, lambda i, t: t), 1e9, **failed), [])
    changes = changes_between(read_results(tmp_path / "new"), read_results(tmp_path / "old"))
    assert changes.broken == ("tiny / baseline / shapes_pope: failed",)
    assert changes.regressed
    assert changes.added == tuple(f"tiny / vtw,k=4,position=keep / {task}" for task in TASKS)
    assert changes.removed == tuple(f"tiny / vtw,k=3,position=keep / {task}" for task in TASKS)
    run(tmp_path / "new", "--compare", tmp_path / "old", "--fail-on-regression", code=3)


def test_other_documents_and_other_costs_are_told(tmp_path: Path) -> None:
    make_store(tmp_path / "old", tasks=["shapes_vqa"], count=80)
    store = make_store(tmp_path / "new", tasks=["shapes_vqa"], count=80)
    shorter = make_store(tmp_path / "shorter", tasks=["shapes_vqa"], count=60)
    cell = store.cells()[0]
    store.save(cell_of(cell.spec, store.samples(cell), 7e9), store.samples(cell))
    text, _ = run(tmp_path / "new", "--compare", tmp_path / "old")
    assert "tiny / baseline / shapes\\_vqa: 1e+09 → 7e+09 FLOPs (eq1)" in text
    assert "FLOPs in 2." in text  # by both conventions
    text, _ = run(shorter.root, "--compare", tmp_path / "old")
    assert "tiny / baseline / shapes\\_vqa, vqa: different documents (60 and 80" in text
    _, message = run(shorter.root, "--compare", tmp_path / "old", "--fail-on-regression", code=2)
    assert "can be compared" in message  # a gate that checks nothing does not pass


def test_fail_on_regression_needs_something_to_compare_with(tmp_path: Path) -> None:
    make_store(tmp_path, tasks=["shapes_vqa"], count=10)
    assert "needs --compare" in run(tmp_path, "--fail-on-regression", code=2)[1]
    assert "is not a folder" in run(tmp_path, "--compare", tmp_path / "nothing", code=2)[1]


SEEDED = ["baseline", *(f"rand,k=2,seed={seed}" for seed in range(3))]


def of_images(store: Store, seeds: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Mean score over seeds of each picture (two questions) of ``rand``, straight from the samples of shapes_vqa."""
    scores = [
        [sample.scores["exact_match"] for sample in store.samples(cell)]
        for cell in store.cells()
        if cell.spec.task == "shapes_vqa" and cell.spec.method in [f"rand,k=2,seed={seed}" for seed in seeds]
    ]
    return np.mean(scores, axis=0).reshape(-1, 2).mean(axis=1)


def test_runs_with_several_seeds_are_one_comparison(tmp_path: Path) -> None:
    tasks = ["shapes_vqa", "shapes_pope"]
    wrong = {f"rand,k=2,seed={seed}": 0.25 for seed in range(3)}
    old = make_store(tmp_path / "old", SEEDED, tasks=tasks, count=40)
    new = make_store(tmp_path / "new", SEEDED, tasks=tasks, count=40, seed=1, wrong=wrong)
    changes = changes_between(read_results(new.root), read_results(old.root))
    assert [(c.method, c.title) for c in changes.compared] == [
        ("baseline", "vqa"),
        ("baseline", "pope F1"),
        ("rand,k=2 (3 seeds)", "vqa"),
        ("rand,k=2 (3 seeds)", "pope F1"),
    ]
    found = changes.compared[2]
    before, after = of_images(old), of_images(new)
    assert found.old == pytest.approx(100 * before.mean()) and found.new == pytest.approx(100 * after.mean())
    assert found.comparison.difference == pytest.approx(after.mean() - before.mean())
    # Pictures whose answers are all swapped between old and new: the signs of their differences.
    exact = stats.permutation_test(
        (after - before,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert found.comparison.p == pytest.approx(exact.pvalue, abs=0.01)
    ps = sorted(c.comparison.p for c in changes.compared)
    by_hand = [min(1.0, max((4 - j) * ps[j] for j in range(i + 1))) for i in range(4)]
    assert sorted(c.holm_p for c in changes.compared) == pytest.approx(by_hand)
    assert changes.cells == 8
    text, _ = run(new.root, "--compare", old.root)
    assert "of 4 scores significantly worse" in text
    assert "Runs of a method with different seeds are compared once, by their mean." in text
    assert "| tiny | rand,k=2 (3 seeds) | vqa |" in text


def test_seeds_that_are_not_done_in_both_are_left_out_of_both_means(tmp_path: Path) -> None:
    old = make_store(tmp_path / "old", SEEDED, tasks=["shapes_vqa"], count=40)
    new = make_store(tmp_path / "new", [*SEEDED, "rand,k=2,seed=7"], tasks=["shapes_vqa"], count=40, seed=1)
    [lost] = [cell.spec for cell in new.cells() if cell.spec.method == "rand,k=2,seed=1"]
    (new.folder(lost) / "samples.jsonl").write_text("{}\n")
    changes = changes_between(read_results(new.root), read_results(old.root))
    assert changes.broken == ("tiny / rand,k=2,seed=1 / shapes_vqa: corrupt",)
    assert changes.added == ("tiny / rand,k=2,seed=7 / shapes_vqa",)
    [found] = [change for change in changes.compared if change.seeds > 1]
    assert found.method == "rand,k=2 (2 seeds)"
    assert found.old == pytest.approx(100 * of_images(old, (0, 2)).mean())
    assert found.new == pytest.approx(100 * of_images(new, (0, 2)).mean())


def test_equal_runs_with_several_seeds_show_no_change(tmp_path: Path) -> None:
    for name in ("old", "new"):
        make_store(tmp_path / name, SEEDED, tasks=["shapes_vqa"], count=20)
    changes = changes_between(read_results(tmp_path / "new"), read_results(tmp_path / "old"))
    assert [(c.comparison.difference, c.comparison.p) for c in changes.compared] == [(0.0, 1.0)] * 2
    assert not changes.regressed


def test_a_score_that_one_seed_lacks_is_not_compared(tmp_path: Path) -> None:
    old = make_store(tmp_path / "old", SEEDED, tasks=["shapes_vqa"], count=20)
    new = make_store(tmp_path / "new", SEEDED, tasks=["shapes_vqa"], count=20)
    cell = next(cell for cell in new.cells() if cell.spec.method == "rand,k=2,seed=1")
    new.save(cell.model_copy(update={"metrics": {}}), new.samples(cell))
    changes = changes_between(read_results(new.root), read_results(old.root))
    assert [change.method for change in changes.compared] == ["baseline"]
    assert changes.incomparable == (
        "tiny / rand,k=2 (3 seeds) / shapes_vqa, vqa: there is no such score any more with 1 of 3 seeds",
    )


def test_seeds_over_other_documents_are_told(tmp_path: Path) -> None:
    new = make_store(tmp_path / "new", SEEDED, tasks=["shapes_vqa"], count=20)
    old = make_store(tmp_path / "old", SEEDED, tasks=["shapes_vqa"], count=20)
    cell = next(cell for cell in old.cells() if cell.spec.method == "rand,k=2,seed=1")
    rows = old.samples(cell)[:-4]
    old.save(cell_of(cell.spec, rows, 1e9), rows)
    [told] = changes_between(read_results(new.root), read_results(old.root)).incomparable
    assert "seeds of rand,k=2,seed=0 cover different documents (20 and 16" in told
