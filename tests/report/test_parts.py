"""Another method of reference, a part of the results, a plan that ran in part, runs with several seeds, notes."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.report.made import documents, make_store, scored, yes_no
from tests.report.test_report import markdown_tables, run
from vtw_eval.record.store import Store
from vtw_eval.report import analyse, compare, read_results
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import families
from vtw_eval.report.part import parse_only
from vtw_eval.report.seeds import seed_groups
from vtw_eval.report.stats.aggregate import by_category, value_of
from vtw_eval.report.stats.evidence import repeated

SEEDED = ["baseline", "vtw,k=4", *(f"random_vision,k={k},seed={seed}" for k in (2, 4) for seed in (0, 1, 2))]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("seeded"), SEEDED)


def records(*arguments: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv"))))


def test_methods_are_compared_with_the_method_that_is_named(seeded: Store) -> None:
    [table] = analyse(read_results(seeded.root), reference="vtw,k=4")  # the spec without its defaults
    assert table.reference is not None and table.reference.method == "vtw,k=4,position=keep"
    rows = {row.label: row for row in table.rows}
    [usual] = analyse(read_results(seeded.root))
    other = next(row for row in usual.rows if row.label == "vtw,k=4")
    for title in table.columns:
        assert rows["vtw,k=4"].scores[title].comparison is None
        ours, theirs = rows["baseline"].scores[title].comparison, other.scores[title].comparison
        assert ours is not None and theirs is not None
        assert ours.difference == pytest.approx(-theirs.difference)
        assert (ours.lost, ours.won) == (theirs.won, theirs.lost)
        assert ours.p == pytest.approx(theirs.p, abs=0.03)  # five errors of 10,000 random swaps
    text = run(seeded.root, "--reference", "vtw,k=4")
    assert "Differences to vtw,k=4" in text and "worse or better than vtw,k=4, p" in text
    assert "Method minus vtw,k=4 on" in text and "to the baseline" not in text


def test_a_reference_that_did_not_run_is_refused(seeded: Store) -> None:
    message = run(seeded.root, "--reference", "vtw,k=5", code=2)
    assert "no cell is of the reference 'vtw,k=5'. Methods here: baseline; vtw,k=4; " in message


def test_a_model_without_the_reference_is_not_compared(tmp_path: Path) -> None:
    store = make_store(tmp_path, models=["a", "b"], tasks=["shapes_vqa"], count=8)
    for spec in store.index.cells:
        if spec.model == "b" and spec.method.startswith("vtw,k=4"):
            (store.folder(spec) / "cell.json").unlink()
    text = run(tmp_path, "--reference", "vtw,k=4")
    assert text.count("There is no method of reference among the methods, so no difference is tested.") == 1
    assert text.count("Differences to vtw,k=4") == 1


def test_only_a_part_is_shown_and_the_baseline_with_it(seeded: Store) -> None:
    chosen = {(r["method"], r["task"]) for r in records(seeded.root, "--only", "method=vtw*", "--only", "task=*_vqa")}
    assert chosen == {(method, "shapes_vqa") for method in ("baseline", "vtw,k=4,position=keep")}
    text = run(seeded.root, "--only", "method=vtw,k=4")
    assert "A part of the results: method=vtw,k=4, 6 of 24 cells." in text
    assert "adjustment for the 3 differences of this table" in text  # what is not shown is not counted
    both = records(seeded.root, "--only", "task=*_vqa", "--only", "task=*_pope", "--only", "method=base*")
    assert [r["task"] for r in both] == ["shapes_pope", "shapes_vqa"]


def test_patterns_that_match_nothing_or_are_none_are_refused(seeded: Store) -> None:
    assert "--only task=mmmu matches nothing" in run(seeded.root, "--only", "task=mmmu", code=2)
    assert "write method=PATTERN, model=PATTERN, task=PATTERN" in run(seeded.root, "--only", "vtw*", code=2)


def test_the_summary_beside_a_part_is_whole(seeded: Store, tmp_path: Path) -> None:
    run(seeded.root, "-o", tmp_path / "part.md", "--only", "method=vtw*")
    assert len(read_results(tmp_path).cells) == 24


def test_of_a_plan_that_ran_in_part_that_part_is_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=2", "vtw,k=4", "fastv"], models=["a", "b"], count=20)
    for spec in store.index.cells:
        if spec.model == "b" or spec.task == "shapes_mme" or spec.method.startswith(("fastv", "vtw,k=4")):
            (store.folder(spec) / "cell.json").unlink()
    text = run(tmp_path)
    table = markdown_tables(text)[0]
    assert table[0] == ["method", "GFLOPs ↓", "pope F1 ↑", "vqa ↑"]
    assert [row[0] for row in table[1:]] == ["baseline", "vtw,k=2"]
    assert "20 of 24 cells are not done" in text and text.count(": missing") == 3
    assert "a / vtw,k=4,position=keep; fastv,k=2,r=0.5,seed=0 / all tasks: missing" in text


def test_a_plan_of_which_nothing_ran_is_shown_as_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path, tasks=["shapes_vqa"], count=8)
    for spec in store.index.cells:
        (store.folder(spec) / "cell.json").unlink()
    assert "| baseline | missing |" in run(tmp_path)


def test_runs_with_several_seeds_are_one_row_and_one_comparison(seeded: Store) -> None:
    [table] = analyse(read_results(seeded.root))
    assert [row.label for row in table.rows[2:]] == [f"random_vision,k={k},r=0.5 (3 seeds)" for k in (2, 4)]
    assert table.comparisons == 9  # three methods on three tasks
    for row in table.rows[2:]:
        for title in table.columns:
            values = [run.scores[title].outcome.value for run in row.seeds]
            score = row.scores[title]
            assert score.outcome.value == pytest.approx(statistics.fmean(values))
            assert score.spread == pytest.approx(np.std(values, ddof=1))
            assert score.interval is not None and score.interval.low < score.outcome.value < score.interval.high
            assert score.comparison is not None and score.comparison.test == "permutation"
            base = table.rows[0].scores[title].outcome.value
            assert score.outcome.scale * score.comparison.difference == pytest.approx(statistics.fmean(values) - base)
    text = run(seeded.root)
    shown = table.rows[2].scores["vqa"]
    assert f"{shown.outcome.value:.2f}** ± {shown.spread:.2f}" in text.replace("▼", "").replace(" \n", "\n")
    lines = [r for r in records(seeded.root, "--only", "task=*_vqa") if r["method"].startswith("random_vision,k=2")]
    assert [bool(r["difference"]) for r in lines] == [False, False, False, True]
    assert lines[-1]["seeds"] == "3" and float(lines[-1]["spread"]) == shown.spread
    [family] = families((row.method for row in table.rows), table.pooled)
    assert (family.parameter, family.values) == ("k", (2, 4))


def test_a_seed_that_failed_is_told(tmp_path: Path) -> None:
    store = make_store(
        tmp_path, ["baseline", *(f"rand,k=2,seed={s}" for s in range(3))], tasks=["shapes_vqa"], count=30
    )
    (store.folder(next(s for s in store.index.cells if "seed=1" in s.method)) / "samples.jsonl").write_text("{}\n")
    text = run(tmp_path)
    assert "(2 of 3 seeds)" in text and "1 of 4 cells are not done" in text


def test_seeds_over_different_documents_are_an_error(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a", ["baseline", "rand,k=2,seed=0", "rand,k=2,seed=1"], tasks=["shapes_vqa"])
    other = make_store(tmp_path / "b", ["rand,k=2,seed=1"], tasks=["shapes_vqa"], count=60)
    [cell] = other.cells()
    first.save(cell, other.samples(cell))
    assert "tiny / shapes_vqa: seeds of rand,k=2,seed=0 cover different documents (80 and 60" in run(first.root, code=2)


def test_only_seeds_may_differ() -> None:
    specs = [
        "fastv,k=2,seed=1",
        "fastv,k=2",
        "fastv,k=3",
        "fastv+vtw,fastv.seed=1,vtw.k=9",
        "fastv+vtw,vtw.k=9",
        "x,seed=1",
    ]
    assert seed_groups(specs) == [(specs[0], specs[1]), (specs[2],), (specs[3], specs[4]), (specs[5],)]


def test_a_mean_over_seeds_is_tested_by_the_signs_of_its_differences() -> None:
    """For a metric that is a mean, swapping whole documents is the test of signs of the paired differences."""
    rng = np.random.default_rng(0)
    docs = documents(12)
    runs = [scored("mean", docs, rng.random(12) < 0.8) for _ in range(3)]
    base = scored("mean", docs, rng.random(12) < 0.3)
    differences = np.mean([r.scores for r in runs], axis=0) - base.scores
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert compare(repeated(runs), base).p == pytest.approx(exact, abs=0.01)
    assert compare(base, repeated(runs)).difference == pytest.approx(-differences.mean())
    twice = compare(repeated(runs), repeated([base, base]))
    assert twice.p == pytest.approx(exact, abs=0.01) and twice.difference == pytest.approx(differences.mean())


def test_means_over_seeds_are_means_of_the_metric_not_of_documents() -> None:
    rng = np.random.default_rng(1)
    docs = documents(40, [f"p{i // 2}" for i in range(40)], [f"c{i // 20}" for i in range(40)])
    targets = np.arange(40) % 2 == 0
    for runs in (
        [scored("mme", docs, rng.random(40) < 0.7) for _ in range(3)],
        [yes_no(docs, rng.random(40) < 0.7, targets) for _ in range(3)],
    ):
        together = repeated(runs)
        assert value_of(together) == pytest.approx(np.mean([value_of(one) for one in runs]))
        for name, value in by_category(together).items():
            assert value == pytest.approx(np.mean([by_category(one)[name] for one in runs]))
        assert compare(together, together).p == 1.0
    with pytest.raises(ReportError, match="different documents"):
        repeated([scored("mean", documents(3), [1, 0, 1]), scored("mean", documents(2), [1, 0])])


def test_equal_runs_say_as_much_as_one() -> None:
    rng = np.random.default_rng(2)
    docs = documents(60, [f"g{i // 3}" for i in range(60)])
    one, base = scored("mean", docs, rng.random(60) < 0.6), scored("mean", docs, rng.random(60) < 0.8)
    assert compare(repeated([one, one, one]), base) == compare(one, base)


def test_what_cells_note_of_documents_stands_under_the_tables(tmp_path: Path) -> None:
    store = make_store(tmp_path, count=20)
    turned = "turned by its orientation tag: 2 documents (3; 7)"
    for cell in store.cells():
        noted = {"media": turned} if cell.spec.task == "shapes_vqa" else {}
        if cell.spec.task == "shapes_pope" and cell.spec.method == "baseline":
            noted = {"guessed": "an option was drawn: 1 document (5)"}
        changed = cell.model_copy(update={"environment": {**cell.environment, **noted}})
        store.save(changed, store.samples(cell))
    text = run(tmp_path).replace("\\", "")
    assert f"- Noted of documents, tiny / shapes_vqa: {turned}." in text and text.count(turned) == 1
    assert "tiny / shapes_pope (1 of 3 methods): an option was drawn: 1 document (5)." in text


def test_a_bad_pattern_is_no_pattern() -> None:
    for text in ("method=", "kind=x", "=x"):
        with pytest.raises(ReportError, match="write method=PATTERN"):
            parse_only([text])
