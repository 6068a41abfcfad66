"""The rows that VLMEvalKit asks about: which one it asks about now, and which of those to come show the same.

The kit asks one question at a time, but it hands over the whole table, and asks in its order. So a model can answer
questions about an image together, when the first of them is asked, and give each answer when its turn has come. That is
checked: an answer is given only to the very message that it was made for.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from vlmeval.smp import get_rank_and_world_size

from vtw_eval.model_adapters.vlmeval.prompts.base import KitQuestion, Part
from vtw_eval.models.failures import DocumentError, document_errors
from vtw_eval.record.cell import group_of_unknown

if TYPE_CHECKING:
    from vtw_eval.methods import Method
    from vtw_eval.model_adapters.vlmeval.pictures import TablePictures
    from vtw_eval.models.requests import Answer


AHEAD = 64
"""Most rows about an image that are answered with another: where a run breaks off, their answers are lost."""

_NOTHING = frozenset({"", "nan", "None", "[]"})
"""Cells of a table that show nothing."""


def media_groups(data: pd.DataFrame) -> dict[str, str]:
    """Return a name for what each question shows, by its index; questions on one image share it.

    Parameters
    ----------
    data
        A dataset's table. An image is base64 text, or the index of another row that has it.
    """
    indices = [str(index) for index in data["index"]]
    for column in ("image", "image_path", "video"):
        if column in data:
            values = dict(zip(indices, (str(value) for value in data[column]), strict=True))
            whole = {index: values.get(value, value) for index, value in values.items()}
            return {
                index: group_of_unknown(index) if value in _NOTHING else hashlib.sha256(value.encode()).hexdigest()[:16]
                for index, value in whole.items()
            }
    return {index: group_of_unknown(index) for index in indices}


@dataclass(frozen=True)
class Known:
    """An answer whose turn has not come."""

    question: KitQuestion
    method: Method
    answer: Answer


class Rows(ABC):
    """The rows of a dataset that the kit asks a model about.

    Parameters
    ----------
    dataset
        The kit's dataset, with its table ``data``.
    model
        The :class:`~vtw_eval.model_adapters.vlmeval.models.VTWKitModel` that is asked.
    """

    def __init__(self, dataset: Any, model: Any) -> None:
        self.dataset = dataset
        self.model = model
        self.indices = [str(index) for index in dataset.data["index"]]
        self.media = media_groups(dataset.data)
        """What each row shows, by its index."""
        self.foreseen = True
        """Whether messages were those that the table let expect."""
        self._places = {index: place for place, index in enumerate(self.indices)}
        self._groups: dict[str, list[int]] = {}
        for place, index in enumerate(self.indices):
            self._groups.setdefault(self.media[index], []).append(place)
        self.known: dict[str, Known] = {}
        """Answers whose turn has not come, by index."""

    @abstractmethod
    def asked(self) -> str:
        """Return the index of the row that is asked about, empty if that is not known, and forget it."""

    @abstractmethod
    def name(self, index: str) -> str:
        """Return how messages call a row, empty to call it by its question."""

    @abstractmethod
    def _message(self, place: int) -> tuple[Any, str]:
        """Return the message that the kit will make of a row, and the name of the dataset that it will say."""

    def take(self, index: str, question: KitQuestion, method: Method) -> Answer | None:
        """Return the answer to a row that was made before, and forget it; None if there is none to this question."""
        known = self.known.pop(index, None)
        if known is None or known.method != method:
            return None
        if known.question != question:
            self.foreseen = False
            return None
        return known.answer

    def behind(self, index: str, images: int) -> list[int]:
        """Return the places of the rows to come that are worth answering with a row.

        Parameters
        ----------
        index
            Of the row that is asked about.
        images
            How many different things they may show: first what the row itself shows.

        Returns
        -------
        list of int
            Without the row itself; those that another process is asked about, and those answered, are left out.
        """
        start = self._places.get(index)
        if start is None or not self.foreseen:
            return []
        _, step = get_rank_and_world_size()  # a process is asked about each step-th row
        shown: dict[str, None] = {}
        for place in range(start, len(self.indices), step):
            if self.indices[place] not in self.known:
                shown[self.media[self.indices[place]]] = None
            if len(shown) == images:
                break
        return [place for media in shown for place in self._to_come(media, start, step)[:AHEAD]]

    def _to_come(self, media: str, start: int, step: int) -> list[int]:
        """Return the places behind a row that this process is asked about, that show something and have no answer."""
        places = (p for p in self._groups[media] if p > start and (p - start) % step == 0)
        return [place for place in places if self.indices[place] not in self.known]

    def questions(self, places: Sequence[int]) -> Iterator[tuple[str, KitQuestion]]:
        """Yield index and question of rows, as the kit will ask; a row that has none is left out until it is asked."""
        for place in places:
            index = self.indices[place]
            try:
                with document_errors(f"{self.dataset.dataset_name}, index {index}"), _same_draws():
                    message, said = self._message(place)
                    parts: Sequence[Part] | None = self.model.preproc_content(message)
            except DocumentError:
                continue
            finally:
                self.asked()
            if parts is not None:
                yield index, KitQuestion(parts, said, self.model.nframe, self.model.fps)


class ImageRows(Rows):
    """Rows of an image dataset.

    Parameters
    ----------
    pictures
        Stands before the dataset, and notes which row is asked about.
    model
        The model that is asked.
    """

    def __init__(self, pictures: TablePictures, model: Any) -> None:
        super().__init__(pictures.dataset, model)
        self._pictures = pictures

    def asked(self) -> str:
        """Return the index of the row that is asked about, empty if that is not known, and forget it."""
        return self._pictures.asked()

    def name(self, index: str) -> str:
        """Return how messages call a row."""
        return self._pictures.name(index)

    def _message(self, place: int) -> tuple[Any, str]:
        row, name = self.dataset.data.iloc[place], self.dataset.dataset_name
        by_model = not getattr(self.dataset, "force_use_dataset_prompt", False) and self.model.use_custom_prompt(name)
        return self.model.build_prompt(row, name) if by_model else self.dataset.build_prompt(row), name


class VideoRows(Rows):
    """Rows of a video dataset, whose ``build_prompt`` is replaced in this object of it to see which one is asked."""

    def __init__(self, dataset: Any, model: Any) -> None:
        super().__init__(dataset, model)
        self._asked = ""
        self._build = type(dataset).build_prompt.__get__(dataset)
        dataset.build_prompt = self._noting

    def _noting(self, line: Any, *args: Any, **given: Any) -> Any:
        self._asked = self.indices[line] if isinstance(line, int) else str(line["index"])
        return self._build(line, *args, **given)

    def asked(self) -> str:
        """Return the index of the row that is asked about, empty if that is not known, and forget it."""
        index, self._asked = self._asked, ""
        return index

    def name(self, index: str) -> str:
        """Return nothing: a question about a video is called by its file."""
        return ""

    def _message(self, place: int) -> tuple[Any, str]:
        name = str(self.dataset.data.iloc[place].get("SUB_DATASET", self.dataset.dataset_name))
        return self.dataset.build_prompt(place, video_llm=self.model.VIDEO_LLM), name


def has_rows(dataset: Any) -> bool:
    """Whether a dataset of the kit has a table of rows."""
    data = getattr(dataset, "data", None)
    return isinstance(data, pd.DataFrame) and "index" in data and hasattr(type(dataset), "build_prompt")


@contextmanager
def _same_draws() -> Iterator[None]:
    """Leave the random numbers that follow as they are: some datasets of the kit word their questions by chance."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
