"""VLMEvalKit's tables: what a spreadsheet makes of texts, and our own record of what was really said.

The kit keeps answers in a spreadsheet and reads it back before it scores them. On that way "=5" becomes the number 0,
a long address an empty cell, "NA" and "None" missing values, "007" the number 7, "3" beside a blank 3.0. Its tables of
questions are read the same way: an option "None" is never shown. The kit's own score stays the kit's own, but each
text that it reads otherwise is counted and named; and beside every table of answers stands a record of the answers as
the model gave them, from which our own datasets are scored.
"""

from __future__ import annotations

import ast
import hashlib
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from vtw_eval.files import write_atomically

COSTS = "extra_records"
"""Column of the costs in the kit's tables."""

OPTION_MISSING = "an option is left out, because its text is read as a missing value"
TEXT_CHANGED = "a text of the question's table is read as a number or as a missing value"
ANSWER_CHANGED = "the answer is scored as another text, because the table of answers changes it"
"""Reasons, as they stand in results."""

_TEXTS = frozenset({*string.ascii_uppercase, "question", "answer", "prediction", "category", "l2-category", "split"})
"""Columns of texts in the kit's tables of questions and answers; single letters are options. A hint "NA" is none."""


class TableError(RuntimeError):
    """A table of answers could not be written or read."""


@dataclass(frozen=True)
class AnswerRecord:
    """What stands in the record beside a table of answers, by the index of the question as text."""

    answers: Mapping[str, str]
    """As the model gave them."""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each answer, where the kit keeps them in the table."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """What the kit reads in the table in place of an answer, where it is another text."""


def record_file(table: Path) -> Path:
    """Return where the record of a table of answers stands."""
    return table.with_name(f"{table.stem}_answers.jsonl")


def read_record(table: Path) -> AnswerRecord | None:
    """Return the record beside a table of answers; None if there is none, or if the table is not the one it is of."""
    file = record_file(table)
    if not file.exists() or not table.exists():
        return None
    head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if head.get("sha256") != _sha256(table):
        return None
    return AnswerRecord(
        {row["index"]: row["prediction"] for row in rows},
        {row["index"]: row[COSTS] for row in rows if COSTS in row},
        {row["index"]: row["read"] for row in rows if "read" in row},
    )


def _write_record(table: Path, record: AnswerRecord) -> None:
    lines: list[dict[str, Any]] = [{"table": table.name, "sha256": _sha256(table) if table.exists() else None}]
    for index, answer in record.answers.items():
        line: dict[str, Any] = {"index": index, "prediction": answer}
        if index in record.changed:
            line["read"] = record.changed[index]
        if index in record.costs:
            line[COSTS] = record.costs[index]
        lines.append(line)
    write_atomically(record_file(table), "".join(json.dumps(line) + "\n" for line in lines))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def record_answers(
    original: Callable[..., Any], written: Callable[[Path, pd.DataFrame, AnswerRecord], None]
) -> Callable[..., Any]:
    """Return the kit's function that writes files, with a record beside each table of answers.

    Parameters
    ----------
    original
        The kit's own.
    written
        Told of each table: where it stands, what was written, and the record.

    Raises
    ------
    TableError
        From the function, if the table could not be written: the kit leaves a pickle instead, and goes on.
    """

    def dump(data: Any, f: Any, **given: Any) -> Any:
        if not isinstance(data, pd.DataFrame) or "prediction" not in data:
            return original(data, f, **given)
        table = Path(f)
        indices = [str(index) for index in data["index"]]
        answers = [str(answer) for answer in data["prediction"]]
        costs = dict(zip(indices, data[COSTS], strict=True)) if COSTS in data else {}
        record = AnswerRecord(dict(zip(indices, answers, strict=True)), costs)
        table.unlink(missing_ok=True)
        _write_record(table, record)
        result = original(data, f, **given)
        if not table.exists():
            raise TableError(
                f"VLMEvalKit could not write {table} (it left a .pkl instead), so it cannot score the answers, which "
                f"stand in {record_file(table)}. PRED_FORMAT=tsv writes another kind of table."
            )
        read = read_answers(table)
        changed = {i: new for i, old, new in zip(indices, answers, read, strict=True) if old != new}
        record = AnswerRecord(record.answers, costs, changed)
        _write_record(table, record)
        written(table, data, record)
        return result

    return dump


def writable(text: str) -> str:
    """Return a text with U+FFFD for a lone half of a surrogate pair, which no table and no JSON of the kit can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_answers(table: Path) -> list[str]:
    """Return the answers as the kit reads them in its table before it scores them.

    Raises
    ------
    TableError
        If it cannot read the table.
    """
    from vlmeval.smp import load

    try:
        return [str(answer) for answer in load(str(table))["prediction"]]
    except Exception as error:  # whatever pandas' engines raise
        raise TableError(f"VLMEvalKit cannot read its own table {table}: {error}") from error


@contextmanager
def preserve_record(table: Path) -> Iterator[None]:
    """Let the record stay valid while the kit scores a table: for some datasets it writes the table again."""
    record = read_record(table)
    try:
        yield
    finally:
        if record is not None and table.exists() and read_record(table) is None:
            _write_record(table, record)


def read_exactly(table: Path) -> pd.DataFrame:
    """Return a table of answers with all columns as texts, the answers as the model gave them.

    Without a record of ours beside the table, answers are what can still be read of it: its text, and not the value
    of the formula that a spreadsheet takes "=5" for. Blank cells are empty texts. Costs are dictionaries.

    Raises
    ------
    FileNotFoundError
        If there is no such table.
    TableError
        If it is of another kind than .xlsx, .tsv and .csv.
    """
    if table.suffix == ".xlsx":
        formulas = {"data_only": False}
        frame = pd.read_excel(table, dtype=str, keep_default_na=False, engine_kwargs=formulas)
    elif table.suffix in (".tsv", ".csv"):
        separator = "\t" if table.suffix == ".tsv" else ","
        frame = pd.read_csv(table, sep=separator, dtype=str, keep_default_na=False)
    else:
        raise TableError(f"{table} is no table of answers that can be read: set PRED_FORMAT to xlsx or tsv.")
    record = read_record(table)
    if record is not None:
        indices = list(frame["index"])
        frame["prediction"] = [record.answers.get(i, p) for i, p in zip(indices, frame["prediction"], strict=True)]
        if record.costs:
            frame[COSTS] = pd.Series([record.costs[i] for i in indices], index=frame.index, dtype=object)
            return frame
    if COSTS in frame:
        costs = [ast.literal_eval(text) for text in frame[COSTS]]
        frame[COSTS] = pd.Series(costs, index=frame.index, dtype=object)
    return frame


@dataclass(frozen=True)
class Reading:
    """A table of questions as its file has it, and what the kit reads otherwise."""

    texts: pd.DataFrame
    """Its columns of texts, by the index of the question as text; blank cells are missing values."""
    notes: Mapping[str, tuple[str, ...]]
    """Reasons by that index, for the questions of which something is read otherwise."""

    def covers(self, data: pd.DataFrame) -> bool:
        """Tell whether the questions of a dataset are from this table."""
        return "index" in data and {str(index) for index in data["index"]} <= set(self.texts.index)


def reading(guessed: pd.DataFrame, texts: pd.DataFrame) -> Reading:
    """Compare the kit's reading of a table with its texts.

    Parameters
    ----------
    guessed
        The table as the kit reads it.
    texts
        ``index`` and the columns of texts, every cell a text; the same rows.
    """
    kept = texts.drop(columns="index").replace("", None)
    notes: dict[int, list[str]] = {}
    for column in kept:
        for row in _differing(guessed[column], kept[column]):
            reason = OPTION_MISSING if len(column) == 1 and pd.isna(guessed[column].iloc[row]) else TEXT_CHANGED
            notes.setdefault(row, []).append(reason)
    indices = [_as_index(text) for text in texts["index"]]
    kept.index = pd.Index(indices)
    return Reading(kept, {indices[row]: tuple(dict.fromkeys(reasons)) for row, reasons in sorted(notes.items())})


def _differing(guessed: Sequence[Any] | pd.Series, texts: Sequence[Any] | pd.Series) -> list[int]:
    """Return the places of texts that are read otherwise; a blank cell is no text."""
    return [
        row
        for row, (value, text) in enumerate(zip(guessed, texts, strict=True))
        if not pd.isna(text) and (pd.isna(value) or str(value) != text)
    ]


def _as_index(text: str) -> str:
    """Return an index as the kit has it, which makes numbers of those that are some."""
    try:
        return str(int(text))
    except ValueError:
        return text


def restore_texts(frame: pd.DataFrame, texts: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the given texts in the columns of which something was read otherwise.

    Parameters
    ----------
    frame
        A table with a column ``index``; one with other questions, or without that column, is returned as it is.
    texts
        Columns of texts by the index of the question.
    """
    if "index" not in frame:
        return frame
    indices = [str(index) for index in frame["index"]]
    if not set(indices) <= set(texts.index):
        return frame
    own = texts.loc[indices]
    changed = {
        column: pd.Series(list(own[column]), index=frame.index, dtype=object)
        for column in own
        if column in frame and _differing(frame[column], own[column])
    }
    return frame.assign(**changed) if changed else frame


class _Pandas:
    """pandas, with other functions that read tables."""

    def __init__(self, changed: Callable[[pd.DataFrame, Path], pd.DataFrame]) -> None:
        self._changed = changed

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    def read_csv(self, file: Any, **given: Any) -> pd.DataFrame:
        return self._changed(pd.read_csv(file, **given), Path(file))

    def read_excel(self, file: Any, **given: Any) -> pd.DataFrame:
        return self._changed(pd.read_excel(file, **given), Path(file))


@contextmanager
def intercept_tables(changed: Callable[[pd.DataFrame, Path], pd.DataFrame]) -> Iterator[None]:
    """Let a function change what the kit's own function ``load`` reads of tables."""
    with mock.patch("vlmeval.smp.file.pd", _Pandas(changed)):
        yield


@contextmanager
def compare_questions(readings: list[Reading], exact: bool) -> Iterator[None]:
    """Compare each table of questions that the kit reads with its file.

    Parameters
    ----------
    readings
        Where the comparisons go.
    exact
        Give the kit the texts as they stand in the file.
    """

    def changed(guessed: pd.DataFrame, file: Path) -> pd.DataFrame:
        wanted = [column for column in guessed if column in _TEXTS]
        if file.suffix not in (".tsv", ".csv") or "index" not in guessed or not wanted:
            return guessed
        separator = "\t" if file.suffix == ".tsv" else ","
        texts = pd.read_csv(
            file, sep=separator, dtype=str, keep_default_na=False, usecols=lambda name: name in {"index", *wanted}
        )
        found = reading(guessed, texts)
        readings.append(found)
        return restore_texts(guessed, found.texts) if exact else guessed

    with intercept_tables(changed):
        yield


@contextmanager
def score_exactly(table: Path, data: pd.DataFrame) -> Iterator[None]:
    """Let the kit score the texts of a dataset and the answers in a record of ours, whatever its tables make of them.

    Parameters
    ----------
    table
        The table of answers.
    data
        The dataset's rows.
    """
    columns = [column for column in data if column in _TEXTS and column != "prediction"]
    texts = data[columns].set_axis([str(index) for index in data["index"]])
    answers = read_exactly(table)
    told = pd.Series(list(answers["prediction"]), index=pd.Index([str(i) for i in answers["index"]]), dtype=object)
    texts = texts.loc[texts.index.isin(told.index)].assign(prediction=told)
    with intercept_tables(lambda frame, _: restore_texts(frame, texts)):
        yield
