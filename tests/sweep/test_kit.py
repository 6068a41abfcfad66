"""Cells in VLMEvalKit against the same documents in lmms-eval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.sweep.conftest import PLAN, Finished
from vtw_eval.model_adapters.vlmeval.cells import convert, media_groups, read_scored_answers
from vtw_eval.model_adapters.vlmeval.names import expand_datasets
from vtw_eval.record.cell import Cell
from vtw_eval.record.metrics import aggregate
from vtw_eval.record.store import Store
from vtw_eval.sweep.harness import SampleError, Settings
from vtw_eval.sweep.plan import PlanError, parse_plan, resolve
from vtw_eval.sweep.runner import CellRunner
from vtw_eval.tasks.shapes.kit import SHAPES_DATASETS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Four cells, in this process, with one loaded checkpoint."""
    base = tmp_path_factory.mktemp("kit")
    (base / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(base / "data"))
        tasks = ["Shapes_MME", "Shapes_POPE", "Shapes_AI2D", "Shapes_VQA"]
        plan = {**PLAN, "methods": ["baseline", "vtw,k=2"], "harness": "vlmevalkit", "tasks": tasks}
        store = Store(base / "out")
        store.create(resolve(parse_plan(plan)).index())
        runner = CellRunner(store, Settings("cpu"))
        for spec in store.index.cells:
            runner.run(spec)
        yield store


def test_metrics_follow_from_the_samples(store: Store) -> None:
    assert store.problems() == []
    kinds = {}
    for cell in store.cells():
        samples = store.samples(cell)
        assert len(samples) == 8
        assert all(sample.question and re.fullmatch("[0-9a-f]{16}", sample.media) for sample in samples)
        for name, metric in cell.metrics.items():
            if metric.aggregate != "other":
                assert math.isclose(aggregate(metric.aggregate, name, samples), metric.value, abs_tol=1e-6)
                kinds[cell.spec.task, name] = metric.aggregate
        assert cell.costs is not None
        assert cell.methods == [cell.spec.method]
    vqa = {name for task, name in kinds if task == "Shapes_VQA"} - {"Overall"}
    assert vqa == {
        sample.category
        for cell in store.cells()
        for sample in store.samples(cell)[:8]
        if cell.spec.task == "Shapes_VQA"
    }
    assert kinds == {
        ("Shapes_MME", "perception"): "mme",
        ("Shapes_POPE", "Overall"): "f1",
        ("Shapes_POPE", "acc"): "mean",
        ("Shapes_AI2D", "Overall"): "mean",
        ("Shapes_VQA", "Overall"): "mean",
        **{("Shapes_VQA", category): "mean" for category in vqa},
    }


def test_the_same_documents_give_the_same_score_in_both_harnesses(store: Store, finished: Finished) -> None:
    def of(cells: list[Cell], task: str) -> list[Cell]:
        return [cell for cell in cells if cell.spec.task == task]

    theirs = Store(finished.folder)
    for kit, lmms in zip(of(store.cells(), "Shapes_MME"), of(theirs.cells(), "shapes_mme"), strict=True):
        assert kit.metrics["perception"].value == pytest.approx(lmms.metrics["mme_perception_score"].value)
        assert kit.costs is not None
        assert lmms.costs is not None
        assert kit.costs.prefill_flops == pytest.approx(lmms.costs.prefill_flops)
        pairs = list(zip(store.samples(kit), theirs.samples(lmms), strict=True))
        assert all(a.answer == b.answer and a.category == b.category for a, b in pairs)
        assert len({a.group for a, _ in pairs}) == len({b.group for _, b in pairs}) == 4


def test_questions_about_one_image_share_it(store: Store, tmp_path: Path) -> None:
    for cell in store.cells():
        shown = [sample.media for sample in store.samples(cell)]
        shares = len(set(shown)) < len(shown)
        assert cell.costs is not None
        assert (cell.environment.get("sharing"), cell.costs.latency_s is None) == ("images" if shares else None, shares)
    (shared,) = (c for c in store.cells() if c.spec.task == "Shapes_MME" and c.spec.method.startswith("vtw"))
    assert "sharing" in shared.environment
    other = Store(tmp_path / "out")
    other.create(store.index)
    CellRunner(other, Settings("cpu", sharing="off")).run(shared.spec)
    (alone,) = other.cells()
    assert alone.costs is not None
    assert (alone.environment.get("sharing"), alone.costs.latency_s is None) == (None, False)
    assert other.samples(alone) == store.samples(shared)
    assert alone.metrics == shared.metrics


def test_images_are_told_apart_through_references() -> None:
    image = "x" * 80
    groups = media_groups(pd.DataFrame({"index": [3, 5, 7], "image": [image, "3", "y" * 80]}))
    assert groups["3"] == groups["5"] != groups["7"]


def test_a_metric_that_the_answers_do_not_give_is_told_so() -> None:
    rows = pd.DataFrame({"index": [0, 1], "answer": ["a", "b"], "prediction": ["a", "x"]})
    judged = pd.DataFrame({"score": [1.0, 0.0]}, index=["0", "1"])
    metrics, samples, _ = convert({"Overall": 0.7, "acc": 50.0}, rows, judged, {"0": "g", "1": "h"})
    assert (metrics["Overall"].aggregate, metrics["Overall"].value) == ("other", 0.7)
    assert (metrics["acc"].aggregate, metrics["acc"].value) == ("mean", 0.5)
    assert [sample.scores for sample in samples] == [{"acc": 1.0}, {"acc": 0.0}]


def test_names() -> None:
    assert expand_datasets(["vtw_table8", "TextVQA", "POPE"]) == [
        "AI2D_TEST",
        "ScienceQA_TEST",
        "MMMU_DEV_VAL",
        "MMBench_DEV_EN",
        "POPE",
        "MME",
        "TextVQA_VAL",
    ]
    with pytest.raises(PlanError, match="unknown dataset 'MMEE' of VLMEvalKit; did you mean 'MME'"):
        expand_datasets(["MMEE"])
    with pytest.raises(PlanError, match="VLMEvalKit has no VQAv2"):
        expand_datasets(["VQAv2"])


def _written(folder: Path, name: str, rows: pd.DataFrame) -> Path:
    rows.to_excel(folder / name, index=False)
    return folder / name


def test_a_renamed_column_of_scores_is_refused(tmp_path: Path) -> None:
    answers = pd.DataFrame({"index": [0, 1], "answer": ["Yes", "No"], "prediction": ["Yes", "Yes"]})
    plain = _written(tmp_path, "m_POPE.xlsx", answers)
    right = _written(tmp_path, "m_POPE_auxmatch.xlsx", answers.assign(extracted=["Yes", "Yes"], score=[True, False]))
    found = read_scored_answers([plain, right])
    assert found is not None
    assert found["score"].to_dict() == {"0": 1.0, "1": 0.0}
    other = answers.assign(extracted=["Yes", "Yes"], correct=[True, False])
    renamed = _written(tmp_path, "m_POPE_auxmatch.xlsx", other)
    columns = "m_POPE_auxmatch.xlsx: index, answer, prediction, extracted, correct"
    with pytest.raises(SampleError, match=f"Columns: {columns}"):
        read_scored_answers([plain, renamed])
    assert read_scored_answers([plain, renamed], closed=False) is None, "nothing is guessed of open answers either"
    holes = _written(tmp_path, "m_POPE_auxmatch.xlsx", answers.assign(score=[1, None]))
    with pytest.raises(SampleError, match=r"score \(not a number in every row\)"):
        read_scored_answers([plain, holes])
    assert read_scored_answers([plain]) is None


def test_scores_of_open_answers_and_of_splits() -> None:
    splits = ["dev", "validation", "validation"]
    rows = pd.DataFrame({"index": [0, 1, 2], "split": splits, "prediction": ["a", "b", "c"]})
    judged = pd.DataFrame({"score": [1.0, 1.0, 0.0]}, index=["0", "1", "2"])
    groups = dict.fromkeys(judged.index, "g")
    values = {"split=dev|Overall": 1.0, "split=validation|Overall": 0.5}
    metrics, samples, _ = convert(values, rows, judged, groups)
    assert {name: metric.aggregate for name, metric in metrics.items()} == {
        "dev|Overall": "mean",
        "validation|Overall": "mean",
    }
    assert [sample.scores for sample in samples] == [
        {"dev|Overall": 1.0},
        {"validation|Overall": 1.0},
        {"validation|Overall": 0.0},
    ]


def test_scores_that_a_dataset_tells() -> None:
    rows = pd.DataFrame({"index": [7, 8], "prediction": pd.Series(["a\ud800", "b"], dtype=object)})
    own = pd.DataFrame({"exact": [1.0, 0.0], "colour": [None, 0.0]}, index=["7", "8"])
    values = {"exact": 0.5, "colour": 0.0, "speed": 0.3}
    metrics, samples, _ = convert(values, rows, None, {"7": "g", "8": "h"}, own=own, shares=True)
    assert {name: (metric.aggregate, metric.percent) for name, metric in metrics.items()} == {
        "exact": ("mean", True),
        "colour": ("mean", True),
        "speed": ("other", True),
    }
    assert [sample.scores for sample in samples] == [{"exact": 1.0}, {"exact": 0.0, "colour": 0.0}]
    assert samples[0].answer == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("name", ["ai2d", "caption", "mme", "pope", "vqa"])
def test_tables_show_as_many_columns_of_shapes_as_of_lmms_evals(name: str) -> None:
    from vtw_eval.report.columns import COLUMNS

    (dataset,) = (cls for cls in SHAPES_DATASETS if name == cls.TEST_SET)
    theirs, ours = COLUMNS[f"shapes_{name}"], COLUMNS[dataset.NAME]
    assert [column.title for column in ours] == [column.title for column in theirs]
    assert {metric for column in ours for metric in column.metrics} == set(dataset.SHOWN)
