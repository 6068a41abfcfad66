"""What VLMEvalKit does while it evaluates, made honest where the kit would give a wrong number without a word.

What is changed while :func:`session` lasts, without a change to the kit's files:

- without ``--reuse`` a dataset starts afresh: the kit would take answers and scores that an earlier run, perhaps of
  another method, left in the folder;
- with it, answers of other arguments are refused;
- costs survive for video datasets, and where answers are reused;
- beside each table of answers stands a record of what the model said (:mod:`~vtw_eval.tasks.kit_tables`);
  what the tables change is counted and named, and not changed with ``media=upright``;
- ``--limit`` holds for video datasets too, and the frames of one do not depend on the one before it;
- multiple-choice and yes-or-no answers are scored by exact matching unless a judge is named;
- a dataset that does not exist is an error that names the closest one.

A kit that no longer calls what is changed is refused, see :class:`Session`.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from vtw_eval.errors import suggest
from vtw_eval.media import Media, summary
from vtw_eval.model_adapters.patches import Make, Patches
from vtw_eval.model_adapters.vlmeval.files import (
    check_part,
    cost_parts,
    costs_file,
    part_costs,
    read_costs,
    read_predictions,
    remove_earlier,
    unfinished,
    write_costs,
)
from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT, replace_model, replace_scoring
from vtw_eval.model_adapters.vlmeval.scoring import (
    GUESSED,
    OPEN_AS_CHOICE,
    open_questions,
    reproducible_guesses,
    score_open_questions,
)
from vtw_eval.tasks.kit_tables import (
    ANSWER_CHANGED,
    COSTS,
    AnswerRecord,
    Reading,
    TableError,
    compare_questions,
    preserve_record,
    read_record,
    record_answers,
    score_exactly,
    writable,
)
from vtw_eval.versions import UpstreamChangedError

WITHOUT_JUDGE = frozenset({"MCQ", "Y/N", "MCQ_MMMU_Pro", "Video-MCQ"})
"""Types of datasets whose answers are scored by exact matching unless a judge is named."""

FORMATS = ("xlsx", "tsv")
"""Kinds of tables of answers, as ``PRED_FORMAT`` names them, that the kit can score."""


@dataclass
class Session:
    """What is replaced in the kit, and the datasets that it built meanwhile."""

    patches: Patches = field(default_factory=lambda: Patches(VLMEVALKIT))
    built: dict[str, Any] = field(default_factory=dict)
    """The kit's datasets by the names that it was given."""
    asked: Any = None
    """The dataset whose questions the kit is asking."""
    table: Path = Path()
    """Where the answers about videos go that the kit is asking for."""
    media: Media = "harness"
    """As the option of the model that is evaluated."""
    readings: dict[str, Reading] = field(default_factory=dict)
    """What the kit reads otherwise of the datasets' tables, by the names that it was given."""
    answers: dict[Path, pd.DataFrame] = field(default_factory=dict)
    """Tables of answers as they were before they were written."""
    noted: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """By that name and by reason: indices of the questions that were shown or scored otherwise."""
    watched: dict[type, Any] = field(default_factory=dict)
    """Classes of datasets whose scoring is watched, with the function that they had."""
    stack: ExitStack = field(default_factory=ExitStack)
    """Ends the watching."""

    def take(self, name: str, dataset: Any, readings: Sequence[Reading]) -> Any:
        """Take note of a dataset that the kit has built, and return it.

        Parameters
        ----------
        name
            The kit was given it.
        dataset
            The dataset.
        readings
            Comparisons of the tables that were read for it.
        """
        self.built[name] = dataset
        self.noted[name] = {}
        self.readings.pop(name, None)
        data = getattr(dataset, "data", None)
        found = next((one for one in readings if isinstance(data, pd.DataFrame) and one.covers(data)), None)
        if found is not None:
            self.readings[name] = found
        cls = type(dataset)
        if cls not in self.watched and (original := inspect.getattr_static(cls, "evaluate", None)) is not None:
            self.watched[cls] = original
            self.stack.enter_context(replace_scoring(cls, _watched(original, self)))
        return dataset

    def name_of(self, dataset: Any) -> str:
        """Return the name that the kit was given of a dataset that it built."""
        return next((name for name, built in self.built.items() if built is dataset), str(dataset.dataset_name))

    def notes_on(self, dataset: Any) -> Mapping[str, tuple[str, ...]]:
        """Return why questions of a dataset are shown or scored otherwise than they are written, by index."""
        if self.media == "upright":
            return {}
        found = self.readings.get(self.name_of(dataset))
        notes = dict(found.notes) if found is not None else {}
        for index in open_questions(dataset):
            notes[index] = (*notes.get(index, ()), OPEN_AS_CHOICE)
        return notes

    def note_answers(self, table: Path, data: pd.DataFrame, record: AnswerRecord) -> None:
        """Keep answers that are written to a table, and what is noted of them.

        Parameters
        ----------
        table
            Where the kit writes them.
        data
            What it writes.
        record
            The record beside the table.
        """
        self.answers[table] = data
        self.note(self.asked, record, record.costs or part_costs(table))

    def note(self, dataset: Any, record: AnswerRecord, costs: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what is noted of the answers to a dataset's questions, and warn of what the kit's tables change."""
        from vlmeval.smp import get_logger

        noted: dict[str, list[str]] = {}
        for index in record.answers:
            for reason in (costs.get(index) or {}).get("media", ()):
                noted.setdefault(reason, []).append(index)
        if record.changed and self.media == "harness" and not scores_exactly(dataset):
            noted[ANSWER_CHANGED] = list(record.changed)
        name = self.name_of(dataset)
        self.noted[name] = noted
        ours = {reason for reasons in self.notes_on(dataset).values() for reason in reasons} | {ANSWER_CHANGED}
        for line in summary({reason: indices for reason, indices in noted.items() if reason in ours}):
            get_logger("vtw_eval").warning(
                f"{name}: {line}, as VLMEvalKit does; media=upright reads and scores what stands there"
            )

    def note_guesses(self, dataset: Any, indices: Sequence[str]) -> None:
        """Note questions whose answers the kit could not read, and warn of them."""
        from vlmeval.smp import get_logger

        name = self.name_of(dataset)
        self.noted.setdefault(name, {})[GUESSED] = list(indices)
        (line,) = summary({GUESSED: indices})
        get_logger("vtw_eval").warning(f"{name}: {line}; the same answer gets the same guess")

    def check(self, name: str, args: Namespace, since: Mapping[str, int]) -> None:
        """Check that the kit evaluated a dataset, on the main process, through the functions that are replaced.

        Parameters
        ----------
        name
            The dataset.
        args
            The kit's arguments.
        since
            Calls of the replacements before the dataset.

        Raises
        ------
        UpstreamChangedError
            If one of them was not called, or more questions were asked than the limit allows.
        """
        self.patches.require(["build|configured", "judge", "fresh"], since)
        dataset = self.built[name]
        if args.mode == "eval":
            return
        if dataset.MODALITY == "VIDEO":
            # Where all answers are there, the kit does not come to ask.
            self.patches.require(["video job"] if args.reuse else ["video job", "videos", "video table"], since)
        elif dataset.TYPE != "MT":
            self.patches.require(["images", "image table"], since)
        check_count(dataset, args.limit)


def check_count(dataset: Any, limit: int | None) -> None:
    """Raise :class:`UpstreamChangedError` if the kit has asked more questions of a dataset than the limit allows."""
    if limit is not None and len(dataset.data) > limit:
        raise UpstreamChangedError(
            f"{dataset.dataset_name} was asked {len(dataset.data)} questions with a limit of {limit}", "ms-vlmeval"
        )


@contextmanager
def session(arguments: Mapping[str, Any]) -> Iterator[Session]:
    """Change the kit's functions as the module says, until the end of the block.

    Parameters
    ----------
    arguments
        What makes each model of ours, by its name; ``--reuse`` compares it.

    Yields
    ------
    Session
        Ask it whether the kit called what was changed.

    Raises
    ------
    ValueError
        If the environment asks the kit to go on after errors, or names a data folder that does not exist.
    UpstreamChangedError
        If the kit does not have one of the functions, or it takes other arguments.
    """
    _check_environment()
    if find_spec("modelscope") is None:  # the kit's default, whether or not it is installed
        os.environ.setdefault("VLMEVALKIT_USE_MODELSCOPE", "0")
    kit = Session()
    changes: Mapping[str, Make] = {
        "fresh": functools.partial(_fresh_or_same, arguments=arguments),
        "build": functools.partial(_existing, kit=kit),
        "configured": functools.partial(_configured, kit=kit),
        "judge": _without_judge,
        "images": functools.partial(_keeping_records, kit=kit),
        "image table": functools.partial(_recorded, kit=kit),
        "videos": functools.partial(_keeping_costs, kit=kit),
        "video table": functools.partial(_recorded, kit=kit),
        "video job": functools.partial(_limited, kit=kit),
    }
    with kit.stack as stack:
        for name, make in changes.items():
            stack.enter_context(kit.patches.replaced(name, make))
        yield kit


def scores_exactly(dataset: Any) -> bool:
    """Tell whether a dataset scores answers as the model gave them, whatever the kit's tables make of them; ours do."""
    return bool(getattr(dataset, "scores_exactly", False))


def _check_environment() -> None:
    if (form := os.environ.get("PRED_FORMAT", "").lower()) not in ("", *FORMATS):
        raise ValueError(
            f"PRED_FORMAT={form} is not possible: VLMEvalKit scores answers in tables of {' and '.join(FORMATS)} only"
            f"{' (it can write JSON, but not score it)' if form == 'json' else ''}."
        )
    if os.environ.get("SKIP_ERR") == "1":
        raise ValueError("SKIP_ERR=1 turns failures into answers, which would be scored: unset it.")
    if (root := os.environ.get("LMUData")) is not None and not Path(root).is_dir():  # noqa: SIM112
        raise ValueError(f"LMUData={root} is not a folder; the kit would silently take ~/LMUData instead.")


def _fresh_or_same(original: Callable[..., Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    def prepare_reuse_files(**given: Any) -> Any:
        table, model_name = Path(given["result_file"]), given["model_name"]
        note = table.with_name(f"{table.stem}_arguments.json")
        ours = json.loads(json.dumps(arguments.get(model_name)))
        if given["reuse"]:
            made_by = json.loads(note.read_text()) if note.exists() else None
            left = [table] if table.exists() else sorted(unfinished(table, given["dataset"].dataset_name))
            if left and made_by != ours:
                raise ValueError(
                    f"{left[0]} holds answers of {made_by or 'another model'}, not of {ours}: leave out --reuse, "
                    f"or choose another --work-dir."
                )
        else:
            remove_earlier(table, given["dataset"].dataset_name)
        if ours is not None:
            note.write_text(json.dumps(ours))
        return original(**given)

    return prepare_reuse_files


def _watched(original: Any, kit: Session) -> Callable[..., Any]:
    """Return the function of a dataset's class that scores a table of answers, scoring texts exactly if asked to."""

    def evaluate(self: Any, eval_file: str, *args: Any, **given: Any) -> Any:
        table = Path(eval_file)
        if not table.exists():
            raise TableError(f"{table} could not be written, or is gone: there are no answers to score.")
        guesses: set[str] = set()
        if table not in kit.answers and (record := read_record(table)) is not None:  # of an earlier run
            kit.note(self, record, record.costs or read_costs(costs_file(table)))
        with ExitStack() as stack:
            stack.enter_context(preserve_record(table))
            stack.enter_context(reproducible_guesses(guesses.add))
            if kit.media == "upright" and not scores_exactly(self):
                stack.enter_context(score_exactly(table, self.data))
                stack.enter_context(score_open_questions(open_questions(self)))
            found = original.__get__(self, type(self))(eval_file, *args, **given)
        if guesses:
            kit.note_guesses(self, sorted(guesses))
        return found

    return evaluate


def _recorded(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    """Write a record beside each table of answers, and note what the kit will score otherwise."""
    return record_answers(original, kit.note_answers)


def _existing(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    def build_dataset(dataset_name: str, **given: Any) -> Any:
        from vlmeval.dataset import SUPPORTED_DATASETS
        from vlmeval.dataset.video_dataset_config import supported_video_datasets
        from vlmeval.smp import LMUDataRoot

        # The kit itself hands all its command-line arguments to video datasets, which take none of them.
        is_video = dataset_name in supported_video_datasets
        readings: list[Reading] = []
        with compare_questions(readings, kit.media == "upright"):
            dataset = original(dataset_name) if is_video else original(dataset_name, **given)
        if dataset is None:
            names = [*SUPPORTED_DATASETS, *supported_video_datasets]
            raise ValueError(
                f"unknown dataset {dataset_name!r}{suggest(dataset_name, names)} A dataset of your own needs a "
                f"table {dataset_name}.tsv with a column 'question' in {LMUDataRoot()}."
            )
        return kit.take(dataset_name, dataset, readings)

    return build_dataset


def _configured(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    def build_dataset_from_config(config: Mapping[str, Any], dataset_name: str) -> Any:
        from vlmeval.dataset.video_dataset_config import supported_video_datasets

        if "class" not in config[dataset_name] and dataset_name not in supported_video_datasets:
            raise ValueError(
                f"{dataset_name} needs a 'class' in the config, for instance {{'class': 'ImageYORNDataset', 'dataset': "
                f"'MME'}}; only the kit's names of video settings go without."
            )
        readings: list[Reading] = []
        with compare_questions(readings, kit.media == "upright"):
            dataset = original(config, dataset_name)
        return kit.take(dataset_name, dataset, readings)

    return build_dataset_from_config


def _without_judge(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_judge_kwargs(dataset_name: str, dataset_type: str, args: Namespace) -> dict[str, Any]:
        given = original(dataset_name, dataset_type, args)
        named = args.judge is not None or "model" in json.loads(args.judge_args or "{}")
        return given if named or dataset_type not in WITHOUT_JUDGE else {**given, "model": "exact_matching"}

    return get_judge_kwargs


def _structured(value: Any) -> bool:
    return isinstance(value, dict) and "prediction" in value and COSTS in value


def _keeping_records(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    """Give reused answers, which the kit takes from its table, their text and their costs back.

    The kit writes the costs of no answer unless all of a dataset's have some, and then writes those that have as the
    text of the dictionary.
    """

    def infer_data(*, model_name: str, work_dir: str, dataset: Any, out_file: str, **given: Any) -> Any:
        from vlmeval.smp import dump, get_pred_file_path, load

        kit.asked = dataset
        check_part(Path(out_file), dataset.dataset_name, f"{model_name}_{dataset.dataset_name}")
        table = Path(get_pred_file_path(work_dir, model_name, dataset.dataset_name, use_env_format=True))
        earlier: dict[str, dict[str, Any]] = {}
        if table.exists() and COSTS in (rows := read_predictions(table)):
            earlier = {row["index"]: {"prediction": row["prediction"], COSTS: row[COSTS]} for _, row in rows.iterrows()}
        with _telling_media(given) as asked:
            model = asked[0] = original(
                model_name=model_name, work_dir=work_dir, dataset=dataset, out_file=out_file, **given
            )
        answers = load(out_file)
        if not earlier and not any(_structured(value) for value in answers.values()):
            return model
        notes = kit.notes_on(dataset)
        for index, value in answers.items():
            if not _structured(value):
                value = earlier.get(str(index), {"prediction": str(value), COSTS: {}})
            costs = with_notes(value[COSTS], notes.get(str(index), ()))
            answers[index] = {**value, "prediction": writable(str(value["prediction"])), COSTS: costs}
        dump(answers, out_file)
        return model

    return infer_data


def with_notes(costs: Any, notes: Sequence[str]) -> Any:
    """Return the costs of an answer with more reasons why the question was shown or scored otherwise."""
    if not notes or not isinstance(costs, Mapping):
        return costs
    return {**costs, "media": list(dict.fromkeys([*costs.get("media", ()), *notes]))}


@contextmanager
def _telling_media(given: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Let our model tell which media it was shown otherwise, at the end of a dataset, also if a question failed.

    Parameters
    ----------
    given
        Arguments of the kit's function, with the model or its name.

    Yields
    ------
    list
        The model, to be exchanged for the one that the kit made of its name.
    """
    from vtw_eval.model_adapters.vlmeval.models import VTWKitModel

    asked = [given.get("model")]
    try:
        yield asked
    finally:
        if isinstance(asked[0], VTWKitModel):
            asked[0].runner.tell_media()


@contextmanager
def _showing(given: Mapping[str, Any]) -> Iterator[None]:
    """Let our model know the video dataset that it is asked about, also if the kit is yet to make it of its name.

    Of an image dataset the kit tells it itself.
    """
    from vlmeval.config import supported_VLM

    from vtw_eval.model_adapters.vlmeval.models import VTWKitModel

    model, name, dataset = given.get("model"), given["model_name"], given["dataset"]
    if isinstance(model, VTWKitModel):
        model.show_videos(dataset)
    maker = supported_VLM.get(name)
    if not isinstance(model, str) or maker is None:
        yield
        return

    def make(**arguments: Any) -> Any:
        made = maker(**arguments)
        if isinstance(made, VTWKitModel):
            made.show_videos(dataset)
        return made

    with replace_model(name, make):
        yield


def _keeping_costs(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    """Write the costs of a process's answers beside its part of the answers, which become text."""

    def infer_data(*, out_file: str, **given: Any) -> Any:
        from vlmeval.smp import dump, load

        from vtw_eval.model_adapters.vlmeval.models import CostedAnswer

        kit.asked = dataset = given["dataset"]
        check_part(Path(out_file), kit.table.stem, dataset.dataset_name)
        earlier: dict[str, str] = {}
        if kit.table.exists():
            rows = read_predictions(kit.table)
            earlier = dict(zip(rows["index"], rows["prediction"], strict=True))
        with _telling_media(given) as asked, _showing(given):
            model = asked[0] = original(out_file=out_file, **given)
        if not Path(out_file).exists():  # all answers were there before
            return model
        answers = load(out_file)
        notes = kit.notes_on(dataset)
        costs: dict[str, Any] = {}
        texts: dict[Any, str] = {}
        for index, value in answers.items():
            if isinstance(value, CostedAnswer) or _structured(value):
                own = value.costs if isinstance(value, CostedAnswer) else value[COSTS]
                costs[str(index)] = with_notes(own, notes.get(str(index), ()))
                texts[index] = writable(str(value["prediction"] if _structured(value) else value))
            else:
                texts[index] = earlier.get(str(index), str(value))
        if costs or earlier:
            write_costs(costs_file(Path(out_file)), costs)
            dump(texts, out_file)
        return model

    return infer_data


def _limited(original: Callable[..., Any], kit: Session) -> Callable[..., Any]:
    def infer_data_job_video(model: Any, **given: Any) -> Any:
        from vlmeval.smp import get_rank_and_world_size

        from vtw_eval.model_adapters.vlmeval.models import VTWKitModel

        dataset, table = given["dataset"], Path(given["result_file"])
        kit.table = table
        if limit := given.get("limit"):
            dataset.data = dataset.data.iloc[:limit].copy()
        if isinstance(model, VTWKitModel):
            model.reset_frames()
        model = original(model, **given)
        rank, _ = get_rank_and_world_size()
        if rank == 0:
            if found := part_costs(table):
                write_costs(costs_file(table), {**read_costs(costs_file(table)), **found})
            for part in cost_parts(table):
                part.unlink(missing_ok=True)
        return model

    return infer_data_job_video
