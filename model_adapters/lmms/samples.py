"""From the samples that lmms-eval logs to ours: scores per metric, groups of documents that share an image, costs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vtw_eval.record.cell import Aggregate, Metric, Sample, group_of_unknown, media_of, shortened
from vtw_eval.record.costs import TimedCosts
from vtw_eval.record.metrics import f1, is_called_share, mean, mme_points, scale_of
from vtw_eval.record.reported import label_of, number_of, numbers_of, reported
from vtw_eval.sweep.harness import SampleError

if TYPE_CHECKING:
    from vtw_eval.models.requests import Answer

_ALONE = frozenset({"mmmu_aggregate_results", "mmbench_aggregate_dev_results_static"})
"""Aggregations that read the answers themselves, and that can score one document alone without asking a judge."""

_VIDEO_COLUMNS = ("videoID", "video_id", "video_name", "video", "gif_name")
"""Columns that name the video of a document, the first that a task has counts."""

_LONGEST = 200
"""Characters that are shown of what a task reports in place of a number."""


@dataclass(frozen=True)
class Task:
    """What is needed to know of a task of lmms-eval."""

    aggregation: Mapping[str, Callable[..., Any]]
    """By metric, as the task has it."""
    filters: Sequence[str]
    """Its filters, in the order in which it logs samples."""
    groups: Sequence[str]
    """Of each document, by its number: which media it shows."""


@dataclass(frozen=True)
class Record:
    """What a task kept of one metric of one document."""

    score: float | None
    """What the document contributes, if that is a number."""
    category: str = ""
    question: str = ""
    """Name that the two questions of a pair share."""
    prediction: str = ""
    target: str = ""


def convert(
    task: Task, results: Mapping[str, Any], better: Mapping[str, bool | None], logged: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Metric], list[Sample]]:
    """Return the metrics and the samples of one task.

    Parameters
    ----------
    task
        The task.
    results
        What lmms-eval reports for it: values by ``metric,filter``.
    better
        By metric: whether higher is better.
    logged
        Its logged samples.

    A metric whose value is no finite number is left out (:func:`undefined_metrics` names it); the others, and what its
    records tell of the documents, stay.

    Raises
    ------
    SampleError
        If the task reports no number, or its samples do not fit.
    """
    values = numbers_of(results)
    if not values:
        raise SampleError("the task reports no number.")
    by_filter = _by_filter(task.filters, logged)
    documents = by_filter[task.filters[0]]
    scores: dict[int, dict[str, float]] = {doc: {} for doc in documents}
    facts: dict[int, Record] = {}
    pairs: dict[int, str] = {}
    metrics: dict[str, Metric] = {}
    for name, value in values.items():
        metric, _, chosen = name.rpartition(",")
        label = label_of(name, task.filters)
        rows = {doc: row[metric] for doc, row in by_filter[chosen].items() if metric in row}
        function = task.aggregation.get(metric)
        records, kind, value = _judge(metric, function, rows, value)
        defined = math.isfinite(value)
        for doc, record in records.items():
            if record.score is not None and kind != "other" and defined:
                scores[doc][label] = record.score
            # The kinds that need more than a score decide what the prediction and the pair are.
            if doc not in facts or kind in ("f1", "mme"):
                facts[doc] = record
            if kind == "mme":
                pairs[doc] = record.question
        if not defined:
            continue
        share = kind in ("mean", "f1") or (kind == "other" and is_called_share(metric))
        metrics[label] = Metric(
            value=value, aggregate=kind, percent=share, higher_is_better=better.get(metric) is not False
        )
    samples = [
        _sample(doc, row, (pairs.get(doc), task.groups[doc]), facts.get(doc, Record(None)), scores[doc])
        for doc, row in documents.items()
    ]
    return metrics, samples


def undefined_metrics(task: Task, results: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics of a task that have no finite value, each with what was reported in its place.

    Parameters
    ----------
    task
        The task.
    results
        What lmms-eval reports for it: values by ``metric,filter``.
    """
    values = reported(results)
    lost = {label_of(name, task.filters): value for name, value in values.items()}
    found = {
        label: _shortened(value)
        for label, value in lost.items()
        if (number := number_of(value)) is None or not math.isfinite(number)
    }
    told = {name.rpartition(",")[0] for name in values}
    return {**found, **{metric: "not reported" for metric in task.aggregation if metric not in told}}


def _shortened(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _by_filter(filters: Sequence[str], logged: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Return rows by filter and document; lmms-eval logs all documents of one filter after those of another."""
    if not filters or not logged or len(logged) % len(filters):
        raise SampleError(f"{len(logged)} samples do not fit {len(filters)} filters.")
    size = len(logged) // len(filters)
    blocks = {name: logged[i * size : (i + 1) * size] for i, name in enumerate(filters)}
    found = {name: {int(row["doc_id"]): row for row in rows} for name, rows in blocks.items()}
    if any(len(rows) != size or rows.keys() != found[filters[0]].keys() for rows in found.values()):
        raise SampleError("documents stand twice among the samples, or are missing for a filter.")
    return {name: dict(sorted(rows.items())) for name, rows in found.items()}


def _judge(
    metric: str, function: Callable[..., Any] | None, rows: Mapping[int, Any], value: float
) -> tuple[dict[int, Record], Aggregate, float]:
    """Return the records of a metric, how they make its value, and that value (as a share where it is one)."""
    records = {doc: _record(row) for doc, row in rows.items()}
    if rows and all(record.score is None for record in records.values()):
        alone = _alone(function, rows)
        records = {
            doc: Record(alone.get(doc), record.category, record.question, record.prediction, record.target)
            for doc, record in records.items()
        }
    scored = [record.score for record in records.values() if record.score is not None]
    if not math.isfinite(value) or not scored or len(scored) < len(records):
        return records, "other", value
    every = list(records.values())
    if metric.startswith("mme_"):
        points = mme_points([(r.category, r.question, score) for r, score in zip(every, scored, strict=True)])
        return records, *_as_reported("mme", points, value)
    if any(isinstance(row, Mapping) for row in rows.values()):
        if "f1" in metric:
            return records, *_as_reported("f1", f1([(record.prediction, record.target) for record in every]), value)
        if any(part in metric for part in ("precision", "recall", "ratio")):
            return records, "other", value  # equal to a mean by chance only
    return records, *_as_reported("mean", mean(scored), value)


def _as_reported(kind: Aggregate, computed: float, value: float) -> tuple[Aggregate, float]:
    """Return a kind that explains a value, and the value in the unit of the samples; "other" if it does not."""
    scale = scale_of(kind, computed, value)
    return ("other", value) if scale is None else (kind, value / scale)


def _record(value: Any) -> Record:
    if isinstance(value, bool | np.bool_) or number_of(value) is not None:
        return Record(_finite(value))
    if not isinstance(value, Mapping):
        return Record(None)
    prediction = next((value[key] for key in ("prediction", "pred_answer", "pred", "parsed_pred") if key in value), "")
    target = next((value[key] for key in ("ground_truth", "answer") if key in value), "")
    score = value.get("score")
    if not isinstance(score, bool | np.bool_) and number_of(score) is None:
        # SEED's records: an answer and the right one, compared when they are aggregated.
        both = isinstance(value.get("pred"), str) and isinstance(target, str)
        score = float(value["pred"].lower().strip() == target.lower().strip()) if both else None
    return Record(
        score=None if score is None else _finite(score),
        category=_text(next((value[key] for key in ("category", "subdomain") if value.get(key)), "")),
        question=f"{value.get('category', '')}/{value['question_id']}" if "question_id" in value else "",
        prediction=_text(prediction),
        target=_text(target),
    )


def _finite(score: Any) -> float | None:
    """Return a document's score as a float, None where it is infinite or not a number."""
    return float(score) if math.isfinite(float(score)) else None


def _alone(function: Callable[..., Any] | None, rows: Mapping[int, Any]) -> dict[int, float]:
    """Return what a task's aggregation says of each document alone, as a share; nothing where it cannot be asked."""
    if function is None or function.__name__ not in _ALONE:
        return {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        files = {"args": argparse.Namespace(output_path=folder)}  # MMBench's writes its details
        given = files if "args" in inspect.signature(function).parameters else {}
        told = {doc: number_of(function([row], **given)) for doc, row in rows.items()}
    alone = {doc: score for doc, score in told.items() if score is not None and math.isfinite(score)}
    scale = 100 if any(score > 1 for score in alone.values()) else 1
    return {doc: score / scale for doc, score in alone.items()}


def _sample(
    doc: int,
    row: Mapping[str, Any],
    names: tuple[str | None, str],
    record: Record,
    scores: Mapping[str, float],
) -> Sample:
    """Return the sample of a document; its names are those of its pair of questions, if any, and of what it shows."""
    pair, shown = names
    answer = _first(row.get("resps"))
    read = _first(row.get("filtered_resps"))
    counts = (row.get("token_counts") or [None])[0]
    asked = next(iter(row.get("arguments") or ()), None)  # the context; its pictures are left out
    return Sample(
        doc_id=str(doc),
        group=pair or shown,
        category=record.category,
        target=record.target or _text(row.get("target")),
        answer=_text(answer),
        prediction=record.prediction or (_text(read) if read != answer else ""),
        question=shortened(asked) if isinstance(asked, str) else "",
        media=media_of(shown),
        scores=dict(scores),
        costs=TimedCosts.model_validate(counts).untimed() if counts else None,
    )


def unscored_sample(doc: int, group: str, answer: Answer) -> Sample:
    """Return the sample of a document that was answered, but whose task was not scored because another one failed."""
    costs = answer.costs.untimed()
    media = media_of(group)
    return Sample(doc_id=str(doc), group=group, target="", answer=answer.text, media=media, scores={}, costs=costs)


def _first(value: Any) -> Any:
    while isinstance(value, list | tuple):
        value = value[0] if value else ""
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)


def media_groups(dataset: Any, count: int) -> list[str]:
    """Return a name for what each of the first documents shows; documents that share an image share it.

    Parameters
    ----------
    dataset
        A ``datasets.Dataset``. Images are identified by their bytes, without decoding them; videos by their name.
    count
        How many documents.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        return [group_of_unknown(number) for number in range(count)]
    columns = [name for name, feature in dataset.features.items() if _holds_images(feature)]
    video = next((name for name in _VIDEO_COLUMNS if name in dataset.column_names), None)
    if not columns and video is None:
        return [group_of_unknown(number) for number in range(count)]
    names = columns or [video]
    rows = dataset.select(range(count)).select_columns(names).with_format("arrow")
    found: list[str] = []
    for start in range(0, count, 64):  # images of a few documents at a time
        batch = rows[start : min(start + 64, count)].to_pylist()
        found += [_media_name([row[name] for name in names], start + i) for i, row in enumerate(batch)]
    return found


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    inner = getattr(feature, "feature", None)
    return inner is not None and _holds_images(inner)


def _media_name(values: Sequence[Any], number: int) -> str:
    digest = hashlib.sha256()
    some = False
    for part in _leaves(values):
        some = True
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:16] if some else group_of_unknown(number)


def _leaves(value: Any) -> Iterator[bytes]:
    """Yield the bytes, or the path, of each image or video."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(value.get("bytes") or value.get("path"))
    elif isinstance(value, bytes):
        yield value
    elif value is not None:
        yield str(value).encode()
