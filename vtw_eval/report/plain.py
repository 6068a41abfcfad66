"""The output folder of a plain ``lmms_eval`` run: its scores as lmms-eval reports them, beside our costs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vtw_eval.media import summary
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.costs import TimedCosts
from vtw_eval.record.metrics import is_called_share, mean
from vtw_eval.record.reported import label_of, numbers_of
from vtw_eval.report.columns import Column, columns_of
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Outcome, Result, Results

FILES = "*_results.json"

_NO_EVIDENCE = "lmms-eval's output does not tell which documents share an image; vtw-eval sweep does"


def read_lmms_output(folder: Path) -> Results:
    """Read the scores and costs of runs of ``lmms_eval --output_path FOLDER --log_samples`` with our models.

    Of several runs of a model, method and task the last one counts.

    Parameters
    ----------
    folder
        Holds ``*_results.json``, itself or in folders of it, with the ``*_samples_TASK.jsonl`` beside each.

    Raises
    ------
    ReportError
        If a file cannot be read, if samples have no costs (they were not logged, or are another model's), or if
        methods answered different numbers of documents of a task.
    """
    found: dict[tuple[str, str, str], Result] = {}
    for file in sorted(folder.rglob(FILES), key=lambda path: path.name):  # names begin with the time
        for result in _run(file):
            key = (result.spec.model, result.spec.method, result.spec.task)
            found.pop(key, None)
            found[key] = result
    if not found:
        raise ReportError(f"{folder} holds no results of lmms-eval ({FILES}).")
    counts: dict[tuple[str, str], dict[int, str]] = {}
    for (model, method, task), result in found.items():
        counts.setdefault((model, task), {})[result.documents] = method
    for (model, task), by_count in counts.items():
        if len(by_count) > 1:
            told = ", ".join(f"{method} {count}" for count, method in sorted(by_count.items()))
            raise ReportError(f"{folder}: of {task}, {model} answered different numbers of documents ({told}).")
    return Results(str(folder), tuple(found.values()))


def _run(file: Path) -> Iterator[Result]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        tasks = [task for task in told["configs"] if task in told["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{file} is no file of results of lmms-eval: {error}") from error
    time = file.name.removesuffix(FILES[1:])
    for task in tasks:
        samples = file.with_name("_".join((time, "samples", f"{task}.jsonl")))
        try:
            rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, ValueError) as error:
            raise ReportError(f"{samples} cannot be read ({error}): run lmms_eval with --log_samples.") from error
        try:
            costs = [TimedCosts.model_validate((row.get("token_counts") or [None])[0]) for row in rows]
        except ValidationError:
            costs = []
        if not costs:
            raise ReportError(f"{samples} holds no costs: it is not of one of vtw-eval's models (llava_vtw, ...).")
        yield _result(told, task, rows, costs)


def _result(
    told: Mapping[str, Any], task: str, rows: Sequence[Mapping[str, Any]], costs: Sequence[TimedCosts]
) -> Result:
    config = told.get("config", {})
    limit = config.get("limit")
    spec = CellSpec(
        model=str(told.get("model_name") or "model"),
        adapter=str(told.get("model_source") or config.get("model") or "unknown"),
        pretrained=str(told.get("model_name") or "unknown"),
        method=costs[0].asked or costs[0].method,
        task=task,
        limit=int(limit) if limit and limit >= 1 else None,
    )
    metrics = _metrics(told["results"][task])
    better = told.get("higher_is_better", {}).get(task, {})
    noted: dict[str, list[str]] = {}
    for row, cost in zip(rows, costs, strict=True):
        for note in cost.media:
            noted.setdefault(note, []).append(str(row["doc_id"]))
    answers = json.dumps([(str(row["doc_id"]), row.get("filtered_resps")) for row in rows], default=str)
    return Result(
        spec=spec,
        state="done",
        methods=tuple(dict.fromkeys(cost.method for cost in costs)),
        documents=len(rows),
        flops={"eq1": mean([cost.prefill_flops for cost in costs])},
        layers=len(costs[0].tokens_per_layer),
        environment={
            "device": str(config.get("device")),
            "batch_size": str(config.get("batch_size")),
            "methods": "; ".join(dict.fromkeys(cost.verified for cost in costs)),
            **({"media": "; ".join(summary(noted))} if noted else {}),
            **({"sharing": "images"} if any(cost.latency_s is None for cost in costs) else {}),
        },
        outcomes={column.title: _outcome(column, metrics, better) for column in columns_of(task, metrics)},
        answers_sha256=hashlib.sha256(answers.encode()).hexdigest(),
    )


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a task by metric, with the filter where there are several."""
    values = {name: value for name, value in numbers_of(results).items() if math.isfinite(value)}
    filters = list({name.rpartition(",")[2] for name in values})
    return {label_of(name, filters): value for name, value in values.items()}


def _outcome(column: Column, metrics: Mapping[str, float], better: Mapping[str, Any]) -> Outcome:
    shown = math.fsum(_shown(name, metrics[name]) for name in column.metrics)
    higher = better.get(column.metrics[0].partition(",")[0]) is not False
    return Outcome(column.metrics, shown, 1.0, higher, None, _NO_EVIDENCE)


def _shown(name: str, value: float) -> float:
    return 100 * value if abs(value) <= 1 and is_called_share(name) else value
