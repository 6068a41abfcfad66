"""Samples as the tasks of lmms-eval log them, aggregated by the tasks' own code, against what we make of them."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lmms_eval.api.metrics import mean
from lmms_eval.tasks.mmbench import en_utils
from lmms_eval.tasks.mme.utils import mme_aggregate_results
from lmms_eval.tasks.mmmu.utils import mmmu_aggregate_results, mmmu_process_results
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result
from lmms_eval.tasks.videomme.utils import videomme_aggregate_results, videomme_process_results
from loguru import logger
from PIL import Image

from tests.support.costs import COSTS
from vtw_eval.model_adapters.lmms.samples import Task, convert, media_groups, undefined_metrics
from vtw_eval.record.cell import Metric, Sample
from vtw_eval.record.metrics import aggregate
from vtw_eval.sweep.harness import SampleError

logger.disable("lmms_eval")

Aggregations = dict[str, Callable[..., Any]]


def logged(doc: int, answer: str, metrics: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"doc_id": doc, "target": "t", "resps": [[answer]], "filtered_resps": [answer]}
    row["token_counts"] = [COSTS.to_dict()]
    return {**row, **more, **metrics}


def run(
    aggregation: Aggregations,
    rows: Sequence[dict[str, Any]],
    *,
    arguments: Any = None,
    filters: Sequence[str] = ("none",),
) -> tuple[dict[str, float], dict[str, Metric], list[Sample]]:
    """Aggregate as lmms-eval does, and convert."""
    size = len(rows) // len(filters)
    values: dict[str, Any] = {"alias": "task"}
    for number, name in enumerate(filters):
        for metric, function in aggregation.items():
            items = [row[metric] for row in rows[number * size : (number + 1) * size] if metric in row]
            with contextlib.redirect_stdout(io.StringIO()):
                values[f"{metric},{name}"] = function(items, **({"args": arguments} if arguments else {}))
            values[f"{metric}_stderr,{name}"] = "N/A"
    task = Task(aggregation, filters, [f"image {i // 2}" for i in range(size)])
    metrics, samples = convert(task, values, dict.fromkeys(aggregation, True), rows)
    return {name: value for name, value in values.items() if "stderr" not in name and name != "alias"}, metrics, samples


def mme_rows(categories: dict[str, str], right: Callable[[int], bool]) -> list[dict[str, Any]]:
    rows = []
    for category, kind in categories.items():
        for i in range(8):
            record = {"question_id": f"{i // 2}.png", "category": category, "score": float(right(len(rows)))}
            rows.append(logged(len(rows), "Yes", {f"mme_{kind}_score": record}))
    return rows


@pytest.mark.parametrize("which", ["some", "none", "all", "half of each pair"])
def test_mme(which: str) -> None:
    draw = random.Random(1)
    right = {
        "some": lambda i: draw.random() < 0.7,
        "none": lambda i: False,
        "all": lambda i: True,
        "half of each pair": lambda i: i % 2 == 0,  # its sum is also 100 times a mean, for one category
    }[which]
    rows = mme_rows({"existence": "perception", "count": "perception", "code_reasoning": "cognition"}, right)
    names = ("mme_perception_score", "mme_cognition_score")
    values, metrics, samples = run(dict.fromkeys(names, mme_aggregate_results), rows)
    for name in names:
        assert metrics[name].aggregate == "mme"
        assert not metrics[name].percent
        assert metrics[name].value == values[f"{name},none"]
        assert math.isclose(aggregate("mme", name, samples), metrics[name].value, abs_tol=1e-9)
    # Pairs of different categories have the same question_id; they are different groups all the same.
    assert len({sample.group for sample in samples}) == 12
    assert samples[3].group == "existence/1.png"
    assert samples[-1].category == "code_reasoning"
    assert set(samples[-1].scores) == {"mme_cognition_score"}


POPE = {name: getattr(pope, f"pope_aggregate_{name.removeprefix('pope_')}") for name in (
    "pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio",
)}  # fmt: skip


@pytest.mark.parametrize("answers", ["mixed", "always yes", "always no", "right"])
def test_pope(answers: str) -> None:
    draw = random.Random(2)
    rows = []
    for i in range(40):
        truth = ("yes", "no")[i % 2]
        said = {"mixed": draw.choice(["Yes", "no", "maybe"]), "always yes": "yes", "always no": "No", "right": truth}[
            answers
        ]
        doc = {"question_id": i, "answer": truth}
        rows.append(logged(i, said, pope.pope_process_results(doc, [said])))
    values, metrics, samples = run(POPE, rows)
    # The kinds never depend on the answers, whatever coincides: always "yes" makes accuracy, precision and ratio equal.
    assert {name: metric.aggregate for name, metric in metrics.items()} == {
        "pope_accuracy": "mean",
        "pope_precision": "other",
        "pope_recall": "other",
        "pope_f1_score": "f1",
        "pope_yes_ratio": "other",
    }
    for name in ("pope_accuracy", "pope_f1_score"):
        assert math.isclose(aggregate(metrics[name].aggregate, name, samples), values[f"{name},none"], abs_tol=1e-12)
        assert metrics[name].percent
    assert samples[0].target == "yes"
    assert samples[0].prediction in ("yes", "no", "maybe")
    assert samples[0].answer == rows[0]["resps"][0][0]
    assert samples[0].group == samples[1].group == "image 0"


def test_plain_numbers_and_metrics_of_some_documents_only() -> None:
    rows = [logged(i, "a", {"exact_match": float(i % 3 == 0), **({"red": 1.0} if i % 2 else {})}) for i in range(10)]
    _, metrics, samples = run({"exact_match": mean, "red": mean}, rows)
    assert metrics["exact_match"] == Metric(value=0.4, aggregate="mean", percent=True)
    assert metrics["red"].value == 1.0
    assert [("red" in sample.scores) for sample in samples] == [False, True] * 5
    assert aggregate("mean", "exact_match", samples) == 0.4
    assert samples[0].costs == COSTS.untimed()


def test_an_aggregation_that_no_rule_knows_is_told_so() -> None:
    rows = [logged(i, "a", {"cider": float(i)}) for i in range(4)]
    _, metrics, samples = run({"cider": lambda items: max(items) * 7}, rows)
    assert metrics["cider"] == Metric(value=21.0, aggregate="other", percent=False)
    assert samples[0].scores == {}
    with pytest.raises(ValueError, match="cannot be computed"):
        aggregate("other", "cider", samples)


def test_mmmu() -> None:
    rows = []
    answers = ["A", "B", "(B)", "7", "I see a cat", "D"]
    for i, said in enumerate(answers):
        kind = "open" if said == "7" else "multiple-choice"
        doc = {
            "id": f"validation_{('Art', 'Math', 'Physics')[i % 3]}_{i}",
            "question_type": kind,
            "options": "['one', 'two', 'three', 'four']",
            "answer": "7" if kind == "open" else "B",
        }
        scored = mmmu_process_results(doc, [said])
        rows.append(logged(i, said, {"mmmu_acc": scored["mmmu_acc"]}))
    values, metrics, samples = run({"mmmu_acc": mmmu_aggregate_results}, rows)
    assert metrics["mmmu_acc"].aggregate == "mean"
    assert abs(aggregate("mean", "mmmu_acc", samples) - values["mmmu_acc,none"]) < 1e-5  # their code rounds
    assert [sample.scores["mmmu_acc"] for sample in samples[:4]] == [0.0, 1.0, 1.0, 1.0]
    assert samples[1].category == "Math"
    assert samples[1].prediction == "B"


def test_seedbench() -> None:
    rows = []
    for i, said in enumerate(["A", "b", "C. it is"]):
        doc = {"answer": "ABD"[i], "data_type": ("image", "video")[i % 2], "question_id": i}
        rows.append(logged(i, said, seed_process_result(doc, [said])))
    names = ("seed_image", "seed_video", "seed_all")
    values, metrics, samples = run(dict.fromkeys(names, seed_aggregation_result), rows)
    for name in names:
        assert metrics[name].aggregate == "mean"
        assert math.isclose(aggregate("mean", name, samples), values[f"{name},none"])
    assert [sample.scores["seed_all"] for sample in samples] == [1.0, 1.0, 0.0]


def test_mmbench_without_a_judge(tmp_path: Path) -> None:
    rows = []
    for i, said in enumerate(["A", "B. two", "two", "I cannot tell"]):
        doc = {"index": i, "question": "q", "answer": "B", "hint": "", "source": "s", "split": "dev", "category": "c",
               "L2-category": "l", "A": "one", "B": "two", "C": "three", "D": "four"}  # fmt: skip
        rows.append(
            logged(i, said, {"gpt_eval_score": en_utils.mmbench_process_results(doc, [said])["gpt_eval_score"]})
        )
    arguments = argparse.Namespace(output_path=str(tmp_path))
    values, metrics, samples = run(
        {"gpt_eval_score": en_utils.mmbench_aggregate_dev_results_static}, rows, arguments=arguments
    )
    assert values["gpt_eval_score,none"] > 1  # it comes in percent
    assert metrics["gpt_eval_score"].aggregate == "mean"
    assert math.isclose(aggregate("mean", "gpt_eval_score", samples) * 100, values["gpt_eval_score,none"])
    assert samples[0].category == "c"
    assert samples[0].scores["gpt_eval_score"] == 0.0
    assert samples[1].scores["gpt_eval_score"] == 1.0


def test_videomme() -> None:
    rows = []
    for i, said in enumerate(["A", "B.", "nothing"]):
        doc = {"question_id": str(i), "answer": "B", "duration": "short", "domain": "Knowledge",
               "videoID": f"v{i // 2}", "sub_category": "Humanity & History", "task_type": "OCR Problems"}  # fmt: skip
        rows.append(logged(i, said, videomme_process_results(doc, [said])))
    values, metrics, samples = run({"videomme_perception_score": videomme_aggregate_results}, rows)
    assert metrics["videomme_perception_score"].aggregate == "mean"
    assert math.isclose(metrics["videomme_perception_score"].value, 1 / 3)
    assert math.isclose(values["videomme_perception_score,none"], 100 / 3)
    assert samples[1].prediction == "B"


def test_two_filters_are_two_metrics() -> None:
    first = [logged(i, "x", {"exact_match": 0.0}) for i in range(4)]
    second = [logged(i, "x", {"exact_match": float(i == 1)}, filtered_resps=["y"]) for i in range(4)]
    _, metrics, samples = run({"exact_match": mean}, [*first, *second], filters=("strict", "flexible"))
    assert {name: metric.value for name, metric in metrics.items()} == {
        "exact_match,strict": 0.0,
        "exact_match,flexible": 0.25,
    }
    assert samples[1].scores == {"exact_match,strict": 0.0, "exact_match,flexible": 1.0}
    assert len(samples) == 4


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf, None, "n/a", np.float32("nan"), {"a": 1}, True])
def test_a_metric_without_a_number_costs_itself_only(lost: Any) -> None:
    def right(items: Sequence[float]) -> float:
        return sum(items) / len(items)

    rows = [logged(i, "x", {"a": 1.0, "b": float(i == 0)}) for i in range(4)]
    _, metrics, samples = run({"a": lambda items: lost, "b": right}, rows)
    assert {name: metric.value for name, metric in metrics.items()} == {"b": 0.25}
    assert [sample.scores for sample in samples] == [{"b": 1.0}, {"b": 0.0}, {"b": 0.0}, {"b": 0.0}]
    task = Task({"a": right, "b": right, "c": right}, ["none"], [])
    assert undefined_metrics(task, {"a,none": lost, "b,none": 0.25, "b_stderr,none": "N/A", "alias": "t"}) == {
        "a": str(lost),
        "c": "not reported",
    }
    several = undefined_metrics(Task({"a": right}, ["x", "y"], []), {"a,x": 1.0, "a,y": lost})
    assert several == {"a,y": str(lost)}


def test_a_document_whose_score_is_not_a_number_costs_no_cell() -> None:
    scores = [1.0, math.nan, 0.0, 1.0]
    rows = [logged(i, "x", {"a": score, "b": {"score": score, "pred": 1}}) for i, score in enumerate(scores)]
    aggregation: Aggregations = {"a": np.nanmean, "b": lambda items: np.float32(0.5)}
    _, metrics, samples = run(aggregation, rows)
    assert {name: (metric.value, metric.aggregate) for name, metric in metrics.items()} == {
        "a": (pytest.approx(2 / 3), "other"),  # does not follow from the documents' scores alone
        "b": (0.5, "other"),
    }
    assert not any(sample.scores for sample in samples)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    rows = [logged(i, "x", {"a": np.float32(i % 2), "b": np.bool_(i % 2)}) for i in range(4)]
    values = [np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.float64(0.5)]
    for value in values:
        _, metrics, samples = run({"a": lambda items, value=value: value, "b": lambda items, value=value: value}, rows)
        assert {name: (metric.value, metric.aggregate) for name, metric in metrics.items()} == {
            "a": (0.5, "mean"),
            "b": (0.5, "mean"),
        }
        assert [sample.scores for sample in samples] == [{"a": i % 2, "b": i % 2} for i in range(4)]


def test_samples_that_do_not_fit_are_refused() -> None:
    task = Task({}, ["none"], ["a", "b"])
    rows = [logged(0, "a", {"m": 1.0}), logged(0, "b", {"m": 1.0})]
    with pytest.raises(SampleError, match="stand twice"):
        convert(task, {"m,none": 1.0}, {}, rows)
    with pytest.raises(SampleError, match="reports no number"):
        convert(task, {"m,none": "n/a", "m_stderr,none": 0.1}, {}, rows)


def test_documents_that_share_an_image_are_one_group() -> None:
    def picture(shade: int) -> Image.Image:
        return Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8))

    one = datasets.Dataset.from_dict({"q": list("abcd"), "image": [picture(s) for s in (1, 2, 1, 2)]}).cast_column(
        "image", datasets.Image()
    )
    groups = media_groups(one, 4)
    assert groups[0] == groups[2] != groups[1] == groups[3]
    several = datasets.Dataset.from_dict(
        {"image_1": [picture(1), picture(1), picture(1), None], "image_2": [picture(2), picture(3), picture(2), None]},
        features=datasets.Features({"image_1": datasets.Image(), "image_2": datasets.Image()}),
    )
    groups = media_groups(several, 4)
    assert groups[0] == groups[2] != groups[1]
    assert groups[3] == "document 3"
    videos = datasets.Dataset.from_dict({"videoID": ["v", "w", "v"]})
    groups = media_groups(videos, 2)
    assert groups[0] != groups[1]
    assert media_groups(datasets.Dataset.from_dict({"q": ["a", "b"]}), 2) == ["document 0", "document 1"]
