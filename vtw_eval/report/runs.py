"""Reading what lmms-eval wrote: one folder per method, named by its spec."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RunError(ValueError):
    """A folder that does not hold a complete evaluation."""


@dataclass(frozen=True)
class Run:
    """One evaluation of one method."""

    label: str
    """The method as it was asked for, with the parameters that the model decides."""
    methods: Mapping[str, str]
    """The method that ran, by task; it differs from the label where a parameter was searched."""
    scores: Mapping[tuple[str, str], float]
    """Value by task and metric, as the task reports it."""
    documents: Mapping[str, int]
    """Number of documents by task."""
    prefill_flops: float
    """Mean over all documents, by Eq. 1 of the VTW paper."""
    config: Mapping[str, Any]
    """lmms-eval's record of its arguments."""


def read_runs(folder: Path) -> list[Run]:
    """Read all evaluations below a folder, in the order of the folders' names.

    Parameters
    ----------
    folder
        Holds one folder per method, which lmms-eval got as ``--output_path`` (with ``--log_samples``).

    Raises
    ------
    RunError
        If there is none, or if one is incomplete, unreadable or present twice.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.")
    runs = [_read(path, found) for path, found in _results(folder)]
    if not runs:
        raise RunError(f"{folder} holds no evaluation: run lmms_eval with --output_path {folder}/METHOD --log_samples.")
    return runs


def _results(folder: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        found = sorted(path.rglob("*_results.json"))
        if len(found) != 1:
            raise RunError(f"{path} holds {len(found)} results files, expected one.")
        yield path, found[0]


def _read(path: Path, found: Path) -> Run:
    content = _json(found.read_text(encoding="utf-8"), found)
    try:
        documents = {task: int(n["effective"]) for task, n in content["n-samples"].items()}
        scores = {
            (task, name.partition(",")[0]): float(value)
            for task in documents
            for name, value in content["results"][task].items()
            if isinstance(value, int | float) and "," in name and "_stderr" not in name
        }
        config = content["config"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{found} is not a results file of lmms-eval: {error!r}.") from error
    by_task = {task: _costs(found, task, n) for task, n in documents.items()}
    methods = {task: str(costs[0]["method"]) for task, costs in by_task.items()}
    costs = [cost for own in by_task.values() for cost in own]
    asked = {str(cost["asked"]) for cost in costs}
    if len(asked) != 1:
        raise RunError(f"{path} mixes methods: {', '.join(sorted(asked))}.")
    flops = math.fsum(cost["prefill_flops"] for cost in costs) / len(costs)
    return Run(asked.pop(), methods, scores, documents, flops, config)


def _costs(found: Path, task: str, documents: int) -> list[dict[str, Any]]:
    """Return what each document of a task has cost."""
    samples = found.with_name(found.name.replace("_results.json", f"_samples_{task}.jsonl"))
    if not samples.is_file():
        raise RunError(f"{samples} is missing: run lmms_eval with --log_samples.")
    lines = [line for line in samples.read_text(encoding="utf-8").split("\n") if line]
    if len(lines) != documents:
        raise RunError(f"{samples} holds {len(lines)} samples, the results file counts {documents}.")
    try:
        costs = [_json(line, samples)["token_counts"][0] for line in lines]
        return [{name: cost[name] for name in ("method", "asked", "prefill_flops")} for cost in costs]
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(f"{samples} holds no costs: was it made by one of our adapters, without --use_cache?") from error


def _json(text: str, source: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{source} is not valid JSON ({error}): the run did not finish.") from error
