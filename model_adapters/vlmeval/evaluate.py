"""An evaluation of one model on one dataset with VLMEvalKit's own functions, in this process."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from vtw_eval.media import Media
from vtw_eval.model_adapters.vlmeval.files import costs_file, files_of, read_costs, remove_earlier
from vtw_eval.model_adapters.vlmeval.patches import replace_argv
from vtw_eval.model_adapters.vlmeval.session import WITHOUT_JUDGE, Session, check_count, session, with_notes
from vtw_eval.tasks.kit_tables import ANSWER_CHANGED, COSTS, restore_texts


@dataclass(frozen=True)
class KitResult:
    """What an evaluation of one dataset gave."""

    metrics: dict[str, float]
    """Numbers by name, nested names joined by "|", in the kit's own scales."""
    predictions: pd.DataFrame
    """The dataset's table without images, with ``index``, ``prediction`` and ``extra_records`` (costs). Its texts
    are those of the dataset's file and of the model, whatever the kit's tables make of them."""
    files: tuple[Path, ...]
    """Files that the kit wrote for the dataset."""
    scores: pd.DataFrame | None = None
    """Of a :class:`ScoredDataset`: what each question contributes to a metric, by its index as text and by metric."""
    closed: bool = False
    """Whether the questions have answers of a list, of which the kit keeps the scores."""
    shares: bool = False
    """Whether every number is known to be a share of 1."""
    noted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By reason: indices of the questions whose media or texts were shown or scored otherwise than they are."""


@runtime_checkable
class ScoredDataset(Protocol):
    """A dataset that tells the scores of single answers."""

    def document_scores(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return what each question contributes to a metric, by its index as text and by metric.

        Parameters
        ----------
        predictions
            ``index``, ``prediction`` and the dataset's own columns, as texts.
        """


def evaluate(
    model: Any,
    model_name: str,
    dataset: str | Mapping[str, Any],
    *,
    work_dir: Path,
    limit: int | None = None,
    judge: str | None = None,
) -> KitResult:
    """Evaluate one model on one dataset in this process.

    Parameters
    ----------
    model
        A :class:`~vtw_eval.model_adapters.vlmeval.models.VTWKitModel`.
    model_name
        How files call it; what ``work_dir/model_name`` holds of this dataset from an earlier call is replaced.
    dataset
        A dataset's name, or its entry in a ``--config`` file: ``{"class": "VideoMME", "dataset": "Video-MME",
        "nframe": 8}``.
    work_dir
        Folder for the kit's files.
    limit
        First questions to ask; all if None.
    judge
        The kit's name of a judge. None: exact matching where that is possible, else the kit's choice.

    Raises
    ------
    Exception
        Whatever fails: a missing dataset, a question that cannot be answered, a score that cannot be computed.
    """
    from vlmeval import run
    from vlmeval.smp.status_report import flatten_summary_metrics

    with session({}) as kit:
        kit.media = media_option(model)
        args = kit_arguments(run, [] if judge is None else ["--judge", judge])
        if isinstance(dataset, str):
            built = run.build_dataset(dataset)
        else:
            label = str(dataset.get("dataset", "dataset"))
            built = run.build_dataset_from_config({label: dict(dataset)}, label)
        name = built.dataset_name
        check_limit(limit, [name])
        folder = Path(work_dir).resolve() / model_name
        folder.mkdir(parents=True, exist_ok=True)
        file = run.get_pred_file_path(str(folder), model_name, name, use_env_format=True)
        remove_earlier(Path(file), name)
        given = {"work_dir": str(folder), "model_name": model_name, "dataset": built, "limit": limit}
        if built.MODALITY == "VIDEO":
            run.infer_data_job_video(model, result_file=file, **given)
        elif built.TYPE == "MT":
            raise ValueError(f"{name} is a conversation of several turns, which these models do not hold.")
        else:
            run.infer_data_job(model, **given)
        kit.patches.require(["videos", "video table"] if built.MODALITY == "VIDEO" else ["images", "image table"])
        check_count(built, limit)
        scores = built.evaluate(file, **run.get_judge_kwargs(name, built.TYPE, args))
        metrics = {
            key: float(value)
            for key, value in flatten_summary_metrics(scores).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if not metrics:
            raise RuntimeError(f"{name}: the kit computed no score.")
        table = predictions_of(kit, built, Path(file))
        own = built.document_scores(table) if isinstance(built, ScoredDataset) else None
        noted = kit.noted[kit.name_of(built)]
        shares = bool(getattr(built, "shares", False))
        return KitResult(metrics, table, files_of(Path(file)), own, built.TYPE in WITHOUT_JUDGE, shares, noted)


def check_limit(limit: int | None, datasets: Sequence[str]) -> None:
    """Raise ``ValueError`` for a number of questions that cannot be asked of one of the datasets."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} is out of range: it must be 1 or more.")
    if limit is not None and limit % 2 and "MME" in datasets:
        raise ValueError(f"limit {limit} would cut a pair of questions of MME: choose an even number.")


def kit_arguments(run: Any, words: Sequence[str], program: str = "vtw-vlmeval") -> Namespace:
    """Return the kit's command-line arguments for some words, by its own parser."""
    with replace_argv(program, words):
        return run.parse_args()


def media_option(model: Any) -> Media:
    """Return how a model is shown media: as its option says, and as the kit shows them to a model of its own."""
    runner = getattr(model, "runner", None)
    return "harness" if runner is None else runner.options.media


def predictions_of(kit: Session, dataset: Any, table: Path) -> pd.DataFrame:
    """Return the answers that the kit has just written to a table, see :attr:`KitResult.predictions`."""
    name = kit.name_of(dataset)
    frame = kit.answers[table].drop(columns="image", errors="ignore")
    if name in kit.readings:
        frame = restore_texts(frame, kit.readings[name].texts)
    if COSTS not in frame and (sidecar := costs_file(table)).exists():
        costs = read_costs(sidecar)
        frame = frame.assign(**{COSTS: [costs.get(str(index)) for index in frame["index"]]})
    changed = set(kit.noted[name].get(ANSWER_CHANGED, ()))
    if COSTS in frame and changed:
        rows = zip(frame["index"], frame[COSTS], strict=True)
        noted = [with_notes(row, [ANSWER_CHANGED] if str(index) in changed else []) for index, row in rows]
        frame = frame.assign(**{COSTS: noted})
    return frame
