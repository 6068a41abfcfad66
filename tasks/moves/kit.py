"""The moves test sets as VLMEvalKit datasets of videos: documents, prompts and scores of the lmms-eval tasks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pandas as pd
from PIL import Image
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.smp import LMUDataRoot
from vlmeval.utils import can_infer

from vtw_eval.files import folder_atomically
from vtw_eval.models.video import read_clip, uniform
from vtw_eval.shapes.moves.data import dataset_path, fingerprint
from vtw_eval.shapes.moves.scenes import FRAMES
from vtw_eval.shapes.questions import LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.tasks.kit_variant import Variant
from vtw_eval.tasks.shapes.kit import WordScores, kept_table, question_cells, question_text


def table(test_set: str) -> pd.DataFrame:
    """Return a test set in the kit's columns.

    Parameters
    ----------
    test_set
        One of :data:`vtw_eval.shapes.moves.data.TEST_SETS`.

    Returns
    -------
    pandas.DataFrame
        ``index``, ``video`` (a path within the test set, equal for rows about one video), ``question``, ``answer``,
        ``category``, and ``A`` to ``D`` for multiple choice.
    """
    documents = datasets.load_from_disk(str(dataset_path(test_set)))["test"]
    return pd.DataFrame(
        {"index": index, "video": row["path"], **question_cells(row)} for index, row in enumerate(documents)
    )


class MovesData(WordScores, VideoBaseDataset):
    """What the datasets share: one-word answers about videos of eight frames.

    Share of exact matches, 0 to 1, together and by category.

    Parameters
    ----------
    dataset
        Its name.
    nframe, fps
        Frames that models get which take no video file. One of the two.
    """

    NAME: ClassVar[str]
    """Name in VLMEvalKit."""
    TEST_SET: ClassVar[str]
    """One of :data:`vtw_eval.shapes.moves.data.TEST_SETS`."""
    SUFFIX: ClassVar[str] = SHORT_PROMPT
    """What follows a question."""
    TYPE = "Video-VQA"
    shares: ClassVar[bool] = True
    """Whether every number is a share of 1."""
    scores_exactly: ClassVar[bool] = True
    """Answers are scored as the model gave them."""
    force_use_dataset_prompt = True

    def __init__(self, dataset: str = "", nframe: int = FRAMES, fps: float = -1) -> None:
        super().__init__(dataset=dataset or self.NAME, nframe=nframe, fps=fps)
        data = self._table(Path(self.data_file))  # the kit's own reading would guess types
        self.data = data.assign(index=range(len(data)))

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """Return the name of the dataset."""
        return [cls.NAME]

    def prepare_dataset(self, dataset: str) -> dict[str, str]:
        """Return the folder of the test set and the file of the questions, made if they are not there."""
        file = Path(LMUDataRoot()) / f"{dataset}-{fingerprint()}.tsv"
        self._table(file)
        return {"root": str(dataset_path(self.TEST_SET)), "data_file": str(file)}

    def _table(self, file: Path) -> pd.DataFrame:
        return kept_table(file, partial(table, self.TEST_SET), ("index", "video", "question", "answer"))

    def save_video_frames(self, video: str) -> list[str]:
        """Return paths of the frames of a video, which the kit itself writes of MP4 files only."""
        stem = f"{Path(video).stem}-{self.nframe}-{fingerprint()}"
        folder = Path(self.frame_root) / stem
        if not folder.is_dir():
            clip = read_clip(str(Path(self.data_root) / video), uniform(self.nframe))
            with folder_atomically(folder, replace=False) as part:  # another process may be faster
                for number, frame in enumerate(clip.frames):
                    Image.fromarray(frame).save(part / f"{number}.png")
        return [str(folder / f"{number}.png") for number in range(self.nframe)]

    def build_prompt(self, line: Any, video_llm: bool) -> list[dict[str, str]]:
        """Return the video, or its frames as images, and the question of a row (a row or its number)."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        if video_llm:
            media = [{"type": "video", "value": str(Path(self.data_root) / row["video"])}]
        else:
            media = [{"type": "image", "value": frame} for frame in self.save_video_frames(row["video"])]
        return [*media, {"type": "text", "value": question_text(row, self.SUFFIX)}]

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, float]:
        """Name the score for the kit's summary."""
        return {"Overall": metrics["Overall"]} if metrics and "Overall" in metrics else {}


class MovesFrameQA(MovesData):
    """Who does something, in the wording of TGIF-QA's frame questions."""

    NAME = "Moves_FrameQA"
    TEST_SET = "frameqa"


class MovesCount(MovesData):
    """How often something blinks, as TGIF-QA's counting questions ask."""

    NAME = "Moves_Count"
    TEST_SET = "count"


class MovesAction(MovesData):
    """What an object does, and where to."""

    NAME = "Moves_Action"
    TEST_SET = "action"


class MovesOrder(MovesData):
    """Yes or no: what comes first, what is there."""

    NAME = "Moves_Order"
    TEST_SET = "order"


class MovesChoice(MovesData):
    """Four options, in Video-MME's form; the option is read from an answer as the kit reads it without a judge."""

    NAME = "Moves_Choice"
    TEST_SET = "choice"
    SUFFIX = LETTER_PROMPT
    TYPE = "Video-MCQ"

    def scores(self, prediction: str, row: pd.Series) -> dict[str, float]:
        """Return the score of one answer, 0 or 1."""
        chosen = can_infer(prediction, {letter: row[letter] for letter in "ABCD"})
        return {"Overall": float(chosen == row["answer"])}


MOVES_DATASETS: tuple[type[MovesData], ...] = (MovesFrameQA, MovesCount, MovesAction, MovesOrder, MovesChoice)
"""The datasets of this module."""


MOVES_VARIANTS = {cls.NAME: Variant(cls) for cls in MOVES_DATASETS}
"""By name; eight frames, as the videos have."""
