"""Cells in VLMEvalKit, in process through its own functions."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from vlmeval.smp import LMUDataRoot

from vtw_eval.checkpoints import checkpoint
from vtw_eval.errors import named
from vtw_eval.methods import parse_method
from vtw_eval.model_adapters.errors import DatasetError
from vtw_eval.model_adapters.vlmeval.evaluate import evaluate
from vtw_eval.model_adapters.vlmeval.models import CLASSES
from vtw_eval.model_adapters.vlmeval.rows import media_groups
from vtw_eval.models.weights import told_of
from vtw_eval.record.cell import Aggregate, CellSpec, Metric, Sample, media_of, shortened
from vtw_eval.record.costs import TimedCosts
from vtw_eval.record.metrics import aggregate, scale_of
from vtw_eval.sweep.costs import CostModel
from vtw_eval.sweep.harness import Evaluation, Progress, SampleError, Settings
from vtw_eval.sweep.provenance import data_read
from vtw_eval.tasks.kit import register_kit_datasets
from vtw_eval.tasks.kit_tables import writable
from vtw_eval.tasks.tgif.data import read_by

_REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
"""MME's categories of cognition, which the kit calls reasoning."""

_SCORES = ("score", "hit", "eval_score")
"""Names of the kit's column of scores: of yes-or-no, multiple-choice and open questions."""


class KitModel:
    """A checkpoint behind one of our adapters, under VLMEvalKit.

    Parameters
    ----------
    spec
        A cell of the checkpoint.
    settings
        Device and batch size.
    """

    def __init__(self, spec: CellSpec, settings: Settings) -> None:
        register_kit_datasets()
        options: dict[str, Any] = {**spec.model_args, "pretrained": checkpoint(spec.pretrained), "method": "baseline"}
        if settings.device:
            options["device"] = settings.device
        if settings.sharing == "off":
            options["sharing"] = "off"
        self.model = CLASSES[spec.adapter](verify=settings.verify, batch_size=settings.batch_size, **options)
        self.runner = self.model.runner
        self.costs = CostModel(self.runner.family.model.config, self.runner.family.model.dtype)
        self._shown: dict[str, dict[str, str]] = {}

    def evaluate(self, spec: CellSpec, progress: Progress) -> Evaluation:
        """Evaluate a cell, see :class:`vtw_eval.sweep.harness.OpenModel`."""
        method = parse_method(spec.method)
        self.runner.exchange(method)
        self.runner.refuse_search("VLMEvalKit, which asks one question at a time")
        groups = self._groups(spec.task)
        total = min(len(groups), spec.limit or len(groups))
        answered = 0

        def count(_: int, __: int) -> None:
            nonlocal answered
            answered += 1
            progress(min(answered, total), total)

        self.runner.on_answer = count
        with tempfile.TemporaryDirectory() as folder:
            result = evaluate(self.model, "model", spec.task, work_dir=Path(folder), limit=spec.limit)
            judged = read_scored_answers(result.files, result.closed) if result.scores is None else None
        metrics, samples, seconds = convert(
            result.metrics, result.predictions, judged, groups, own=result.scores, shares=result.shares
        )
        environment = {
            "ms-vlmeval": version("ms-vlmeval"),
            "device": str(self.runner.family.device),
            "batch_size": str(self.runner.batch_size),
            "dtype": str(self.runner.family.model.dtype).removeprefix("torch."),
            **told_of(self.runner.family.model),
            "methods": str(self.runner.verdict),
        }
        if None in seconds:
            environment["sharing"] = "images"
        costs = self.costs.of(samples, seconds)
        undefined = {name: str(value) for name, value in result.metrics.items() if not math.isfinite(value)}
        read = data_read([Path(LMUDataRoot()) / f"{spec.task}.tsv", *read_by(spec.task)])
        return Evaluation(metrics, samples, costs, environment, read, undefined)

    def _groups(self, dataset: str) -> dict[str, str]:
        """Return what each question shows, by its index."""
        if dataset not in self._shown:
            from vlmeval.dataset import build_dataset

            try:
                built = build_dataset(dataset)
            except Exception as error:  # whatever a download meets
                reason = named(error)
                raise DatasetError(
                    f"dataset {dataset}: it cannot be loaded. Its files belong in {LMUDataRoot()}. {reason}"
                ) from error
            if built is None:
                raise ValueError(f"VLMEvalKit cannot build the dataset {dataset!r}.")
            self._shown[dataset] = media_groups(built.data)
        return self._shown[dataset]


def read_scored_answers(files: Sequence[Path], closed: bool = True) -> pd.DataFrame | None:
    """Return the kit's table of scored answers, with the score in a column ``score``; None if it wrote none.

    Parameters
    ----------
    files
        Those of one model and dataset. The table of answers, which is not scored, has the shortest name.
    closed
        Whether the dataset's questions have answers of a list, so that the kit keeps a score of each.

    Raises
    ------
    SampleError
        If no table that the kit wrote beside a closed dataset's answers has scores under a name that is known.
    """
    found = [file for file in files if file.suffix in (".xlsx", ".tsv")]
    answers = min(found, key=lambda file: len(file.stem), default=None)
    seen = {}
    for file in found:
        table = _table(file)
        column = next((name for name in _SCORES if name in table), None)
        if "index" not in table or (column is None and file == answers):
            continue
        if column is not None and (numbers := _numbers(table[column])).notna().all():
            return table.assign(score=numbers).set_index("index")
        columns = [str(name) for name in table]
        seen[file.name] = ", ".join(columns) if column is None else f"{column} (not a number in every row)"
    if seen and closed:
        listed = "; ".join(f"{name}: {columns}" for name, columns in seen.items())
        raise SampleError(
            f"VLMEvalKit's tables of scored answers have no column {' or '.join(_SCORES)} of numbers, so that nobody "
            f"knows which answers are right. Columns: {listed}."
        )
    return None


def _table(file: Path) -> pd.DataFrame:
    """Return one of the kit's tables with the index as text and cells as they are written."""
    options: dict[str, Any] = {"dtype": {"index": str}, "keep_default_na": False}
    return pd.read_excel(file, **options) if file.suffix == ".xlsx" else pd.read_csv(file, sep="\t", **options)


def _numbers(values: pd.Series) -> pd.Series:
    """Return numbers, and 1 or 0 for true or false; NaN for anything else."""
    words = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0}
    return pd.to_numeric(values.map(lambda value: words.get(str(value), value)), errors="coerce").astype(float)


def convert(
    values: Mapping[str, float],
    predictions: pd.DataFrame,
    judged: pd.DataFrame | None,
    groups: Mapping[str, str],
    *,
    own: pd.DataFrame | None = None,
    shares: bool = False,
) -> tuple[dict[str, Metric], list[Sample], list[float | None]]:
    """Return metrics, samples and seconds of one dataset.

    Parameters
    ----------
    values
        The kit's numbers by name.
    predictions
        Its table of answers.
    judged
        See :func:`read_scored_answers`.
    groups
        What each question shows, by index.
    own
        Scores by index and metric, of datasets that tell them.
    shares
        Whether every number is a share of 1.
    """
    rows = predictions.to_dict("records")
    costs = [TimedCosts.model_validate(told) if (told := row.get("extra_records")) else None for row in rows]
    scores: list[dict[str, float]] = [{} for _ in rows]
    is_mme = "perception" in values and "reasoning" in values
    read = judged is not None and "extracted" in judged

    def samples() -> list[Sample]:
        made = zip(rows, scores, costs, strict=True)
        return [_sample(row, judged, groups, own, cost, is_mme, read) for row, own, cost in made]

    metrics: dict[str, Metric] = {}
    for name, value in values.items():
        label = re.sub(r"^split=((none|Overall)\|)?", "", name)
        if not math.isfinite(value):
            continue  # costs this number only; the cell names it
        metrics[label] = Metric(value=value, aggregate="other", percent=shares)
        chosen = _scores(label, rows, judged, own)
        if not chosen:
            continue
        for i, score in chosen.items():
            scores[i][label] = score
        kind: Aggregate = "mme" if label in ("perception", "reasoning") else "f1" if _is_f1(label, values) else "mean"
        if (scale := scale_of(kind, aggregate(kind, label, samples()), value)) is not None:
            metrics[label] = Metric(value=value / scale, aggregate=kind, percent=kind != "mme")
        else:
            for i in chosen:
                del scores[i][label]
    return metrics, samples(), [cost.latency_s for cost in costs if cost is not None]


def _scores(
    label: str, rows: Sequence[Mapping[str, Any]], judged: pd.DataFrame | None, own: pd.DataFrame | None
) -> dict[int, float]:
    """Return the scores that a metric may be made of, by the places of the rows; none where nobody knows them."""
    indices = [str(row["index"]) for row in rows]
    if own is not None:
        column = own[label].to_dict() if label in own else {}
        return {i: float(column[index]) for i, index in enumerate(indices) if not pd.isna(column.get(index))}
    chosen = _documents(label, rows)
    if judged is None or {indices[i] for i in chosen} - set(judged.index):
        return {}
    return {i: float(judged.loc[indices[i], "score"]) for i in chosen}


def _is_f1(label: str, values: Mapping[str, float]) -> bool:
    """Return whether a metric is the kit's F1 of yes-or-no questions, which stands beside their accuracy."""
    return label == "Overall" and "split=Overall|acc" in values


def _documents(label: str, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of the rows that a metric is about; none where its name does not tell."""
    if label in ("Overall", "acc"):
        return list(range(len(rows)))
    if label in ("perception", "reasoning"):
        wanted = label == "reasoning"
        return [i for i, row in enumerate(rows) if (row["category"] in _REASONING) == wanted]
    split, _, name = label.partition("|")
    return [i for i, row in enumerate(rows) if name == "Overall" and str(row.get("split")) == split]


def _text(value: Any) -> str:
    """Return the text of a cell; a blank one is an empty text."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else writable(str(value))


def _sample(
    row: Mapping[str, Any],
    judged: pd.DataFrame | None,
    groups: Mapping[str, str],
    scores: Mapping[str, float],
    costs: TimedCosts | None,
    is_mme: bool,
    read: bool,
) -> Sample:
    index, category = str(row["index"]), _text(row.get("category"))
    target = _text(row.get("answer"))
    prediction = str(judged.loc[index, "extracted"]).lower() if read and judged is not None else ""
    return Sample(
        doc_id=index,
        group=f"{category}/{row['image_path']}" if is_mme else groups[index],
        category=category,
        target=target.lower() if read else target,
        answer=writable(str(row["prediction"])),
        prediction=prediction,
        question=shortened(_text(row.get("question"))),
        media=media_of(groups[index]),
        scores=dict(scores),
        costs=costs and costs.untimed(),
    )
