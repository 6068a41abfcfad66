"""Files that VLMEvalKit writes of a model and a dataset, and those of ours beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vtw_eval.files import write_atomically
from vtw_eval.tasks.kit_tables import COSTS, read_exactly
from vtw_eval.versions import UpstreamChangedError


def files_of(prediction_file: Path) -> tuple[Path, ...]:
    """Return the files of a model and a dataset beside their table of predictions, which is among them."""
    from vlmeval.smp.file import fetch_aux_files

    return tuple(sorted(Path(file) for file in fetch_aux_files(str(prediction_file))))


def remove_earlier(prediction_file: Path, dataset_name: str) -> None:
    """Remove what an earlier run left of a dataset: predictions, scores, and the parts of an unfinished run."""
    for file in {*files_of(prediction_file), *unfinished(prediction_file, dataset_name)}:
        file.unlink()


def read_predictions(prediction_file: Path) -> pd.DataFrame:
    """Return a table of predictions: all columns as texts, the answers as the model gave them, costs as dictionaries.

    Raises
    ------
    FileNotFoundError
        If the kit wrote none.
    """
    table = read_exactly(prediction_file)
    sidecar = costs_file(prediction_file)
    if COSTS not in table and sidecar.exists():
        costs = read_costs(sidecar)
        table[COSTS] = [costs.get(index) for index in table["index"]]
    return table


def costs_file(prediction_file: Path) -> Path:
    """Return where the costs of a video dataset's answers stand."""
    return prediction_file.with_name(f"{prediction_file.stem}_costs.jsonl")


def read_costs(file: Path) -> dict[str, dict[str, Any]]:
    """Return the costs of answers by the index of the question, as text."""
    if not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {str(row.pop("index")): row for row in rows}


def write_costs(file: Path, costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the costs of answers, a line each."""
    write_atomically(file, "".join(json.dumps({"index": index, **values}) + "\n" for index, values in costs.items()))


def part_costs(table: Path) -> dict[str, dict[str, Any]]:
    """Return the costs of the answers of all processes that have just been asked about videos, by index."""
    return {index: row for part in cost_parts(table) for index, row in read_costs(part).items()}


def cost_parts(table: Path) -> list[Path]:
    """Return where the processes of this run leave the costs of their answers about videos."""
    from vlmeval.smp import get_rank_and_world_size

    _, processes = get_rank_and_world_size()
    return [table.with_name(f"{i}{processes}_{table.stem}_costs.jsonl") for i in range(processes)]


def unfinished(prediction_file: Path, dataset_name: str) -> set[Path]:
    """Return the parts that the processes of an interrupted run left."""
    return {file for file in prediction_file.parent.glob("*.pkl") if is_part(file, prediction_file.stem, dataset_name)}


def is_part(file: Path, *stems: str) -> bool:
    """Tell whether a file is a process's part of answers, by the names that the kit may give the whole."""
    number, _, rest = file.name.partition("_")
    return number.isdigit() and rest in {f"{stem}.pkl" for stem in stems}


def check_part(file: Path, *stems: str) -> None:
    """Check that :func:`unfinished` would know a process's part of the answers, else a later run could take it.

    Raises
    ------
    UpstreamChangedError
        If the kit calls it otherwise.
    """
    if not is_part(file, *stems):
        raise UpstreamChangedError(
            f"VLMEvalKit writes a process's answers for {stems[0]} to {file.name}, where vtw-eval would not find "
            "those that an interrupted run leaves",
            "ms-vlmeval",
        )
