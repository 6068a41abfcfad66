"""The shapes test sets as VLMEvalKit datasets: the documents and the prompts of the lmms-eval tasks, the kit's scores.

Boards and moves build on these classes. Scores are on one scale, that of lmms-eval: shares of 1, but for MME's points.
Answers are those that the model gave, whatever the kit's tables make of them.

VLMEvalKit reads a dataset from a TSV file in its data folder (``$LMUData``, else ``~/LMUData``). These files are made
on first use. A hash of the code that makes the scenes is in their names, so changed scenes never mix with old ones.
"""

from __future__ import annotations

import base64
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import ImageMCQDataset
from vlmeval.dataset.image_yorn import ImageYORNDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path

from vtw_eval.files import write_atomically
from vtw_eval.shapes import data
from vtw_eval.shapes.arrow import Rows
from vtw_eval.shapes.questions import LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.tasks.kit_tables import read_exactly, score_exactly
from vtw_eval.tasks.shapes.captions import object_f1

EXACT = {"model": "exact_matching"}
"""The kit's name for scoring without a judge; every shapes answer is a closed one."""


def question_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kit's cells of a document: ``category``, ``question``, ``answer``, ``A`` to ``D`` for its options.

    Parameters
    ----------
    row
        The document; the answer to one with options is the number of the right one, from 0.
    """
    cells: dict[str, Any] = {key: row[key] for key in ("category", "question", "answer") if key in row}
    if "options" in row:
        cells.update(zip("ABCD", row["options"], strict=True))
        cells["answer"] = "ABCD"[int(row["answer"])]
    return cells


def question_text(row: pd.Series, suffix: str) -> str:
    """Return the question of a row of the kit's, its options and what follows, as lmms-eval's task has them."""
    options = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD" if letter in row)
    return f"{row['question']}{options}{suffix}"


def table(documents: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a test set of images in the kit's columns.

    Parameters
    ----------
    documents
        Its rows.

    Returns
    -------
    pandas.DataFrame
        ``index``, ``question``, ``answer``, ``category`` where there is one, ``A`` to ``D`` for multiple choice,
        ``image_path`` (equal for rows about one image) and ``image``: the PNG file in base64 or, for an image that
        an earlier row has, that row's index.
    """
    first: dict[bytes, int] = {}
    rows = []
    for index, row in enumerate(documents):
        png = row["image"]["bytes"]
        place = first.setdefault(png, index)
        image = base64.b64encode(png).decode() if place == index else str(place)
        rows.append({"index": index, **question_cells(row), "image_path": f"{place:04d}.png", "image": image})
    return pd.DataFrame(rows)


def kept_table(file: Path, make: Callable[[], pd.DataFrame], columns: Iterable[str]) -> pd.DataFrame:
    """Return a test set's table with every cell a text, made and written to its TSV file if that is not there.

    Parameters
    ----------
    file
        The file; it is written whole.
    make
        Makes the table.
    columns
        Without these it is no such table.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    if not file.exists():
        write_atomically(file, make().to_csv(sep="\t", index=False))
    try:
        frame = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
        frame[list(columns)]
    except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{file} is damaged ({error}); delete it, and it is made again.") from error
    return frame


@dataclass(frozen=True)
class Source:
    """Where test sets come from."""

    makers: Mapping[str, Callable[[], Rows]]
    """By name."""
    fingerprint: Callable[[], str]
    """Returns a hash of the code that makes them."""


class ImageData(ImageBaseDataset):
    """What datasets of images share: file and prompt."""

    NAME: ClassVar[str]
    """Name in VLMEvalKit."""
    TEST_SET: ClassVar[str]
    """Its name in :attr:`SOURCE`."""
    SOURCE: ClassVar[Source] = Source(data.TEST_SETS, data.fingerprint)
    """Of the documents."""
    SUFFIX: ClassVar[str] = SHORT_PROMPT
    """What follows a question."""
    SHOWN: ClassVar[tuple[str, ...]] = ("Overall",)
    """Metrics in the kit's summary."""
    shares: ClassVar[bool] = True
    """Whether every number is a share of 1."""
    scores_exactly: ClassVar[bool] = True
    """Answers are scored as the model gave them."""
    force_use_dataset_prompt = True
    """The kit's own flag: no model changes these prompts, so that answers compare with lmms-eval's."""

    def __init__(self, dataset: str = "", skip_noimg: bool = True) -> None:
        super().__init__(dataset or self.NAME, skip_noimg)

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """Return the name of the dataset."""
        return [cls.NAME]

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Return the rows, after making their file if it is not there.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        stem = f"{dataset}-{self.SOURCE.fingerprint()}"
        self.img_root = str(Path(LMUDataRoot()) / "images" / stem)
        columns = ("index", "question", "answer", "image", "image_path")
        made = self.SOURCE.makers[self.TEST_SET]
        return kept_table(Path(LMUDataRoot()) / f"{stem}.tsv", lambda: table(made()), columns)

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, float]:
        """Name the scores for the kit's summary; a table's row for all questions is called none or Overall."""
        given = metrics or {}
        places = ("{}", "split=none|{}", "split=Overall|{}")
        keys = {name: next((p.format(name) for p in places if p.format(name) in given), None) for name in cls.SHOWN}
        return {name: given[key] for name, key in keys.items() if key is not None}

    def build_prompt(self, line: Any) -> list[dict[str, str]]:
        """Return image and text of a row (a row or its number), in that order, as lmms-eval's task has them."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        (image,) = self.dump_image(row)
        return [{"type": "image", "value": image}, {"type": "text", "value": question_text(row, self.SUFFIX)}]


class ShapesMME(ImageData, ImageYORNDataset):
    """MME's form; the kit's MME score over existence, count and color, at most 600."""

    NAME = "Shapes_MME"
    TEST_SET = "mme"
    SHOWN = ("perception",)
    shares = False

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Return the kit's MME table: ``perception`` and the categories."""
        with score_exactly(Path(eval_file), self.data):
            return super().evaluate(eval_file, **{**judge_kwargs, **EXACT})


class ShapesPOPE(ImageData, ImageYORNDataset):
    """POPE's form; the kit's POPE score: F1 of "yes", 0 to 1, under ``Overall``."""

    NAME = "Shapes_POPE"
    TEST_SET = "pope"

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Return the rows; the kit wants answers with a capital."""
        frame = super().load_data(dataset)
        frame["answer"] = frame["answer"].str.capitalize()
        return frame

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Return the kit's POPE table as shares: F1, accuracy, precision and recall, together and by category."""
        with score_exactly(Path(eval_file), self.data):
            percent = super().evaluate(eval_file, **{**judge_kwargs, **EXACT})
        numbers = percent.select_dtypes("number")
        return percent.assign(**{str(name): numbers[name] / 100 for name in numbers})


class ShapesAI2D(ImageData, ImageMCQDataset):
    """AI2D's form; the kit's accuracy over multiple-choice questions, 0 to 1."""

    NAME = "Shapes_AI2D"
    TEST_SET = "ai2d"
    SUFFIX = LETTER_PROMPT

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Return the kit's accuracy table."""
        with score_exactly(Path(eval_file), self.data):
            return super().evaluate(eval_file, **{**judge_kwargs, **EXACT})


def plain(text: str) -> str:
    """Return lower case without punctuation: how lmms-eval's exact match compares with GQA's and AI2D's options."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))


class WordScores:
    """Scores of one-word answers, for datasets of which every number is a share of 1."""

    def scores(self, prediction: str, row: pd.Series) -> dict[str, float]:
        """Return the scores of one answer, 0 to 1."""
        score = float(plain(prediction) == plain(str(row["answer"])))
        return {"Overall": score, str(row["category"]): score}

    def document_scores(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the scores of each answer, 0 to 1, by the index of the question as text; NaN where there is none.

        Parameters
        ----------
        predictions
            ``index``, ``prediction``, ``answer`` and ``category``, as texts.
        """
        found = [self.scores(row["prediction"], row) for _, row in predictions.iterrows()]
        return pd.DataFrame(found, index=pd.Index([str(index) for index in predictions["index"]]))

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:
        """Return the mean of each score, and write the means beside the predictions."""
        means = {
            str(name): float(value)
            for name, value in self.document_scores(read_exactly(Path(eval_file))).mean().items()
        }
        dump(means, get_intermediate_file_path(eval_file, "_score", "json"))
        return means


class ShapesVQA(WordScores, ImageData):
    """One-word answers; share of exact matches, 0 to 1, together and by category."""

    NAME = "Shapes_VQA"
    TEST_SET = "vqa"
    TYPE = "VQA"


class ShapesCaption(ShapesVQA):
    """Captions; share of exact matches and mean F1 of the named objects, 0 to 1."""

    NAME = "Shapes_Caption"
    TEST_SET = "caption"
    SUFFIX = ""
    SHOWN = ("Overall", "object_f1")

    def scores(self, prediction: str, row: pd.Series) -> dict[str, float]:
        """Return the scores of one caption, 0 to 1."""
        answer = str(row["answer"])
        return {"Overall": float(plain(prediction) == plain(answer)), "object_f1": object_f1(prediction, answer)}


SHAPES_DATASETS: tuple[type[ImageData], ...] = (ShapesMME, ShapesPOPE, ShapesAI2D, ShapesVQA, ShapesCaption)
"""The datasets of this module."""
