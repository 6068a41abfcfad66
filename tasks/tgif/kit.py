"""TGIF-QA's frame questions as a VLMEvalKit dataset: documents, prompt and scores of the lmms-eval task."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.smp import dump, get_intermediate_file_path

from vtw_eval.tasks.kit_tables import read_exactly
from vtw_eval.tasks.kit_variant import Variant
from vtw_eval.tasks.tgif.data import TABLE, VIDEOS, prepared, video_path
from vtw_eval.tasks.tgif.scoring import scores

SHORT_PROMPT = "\nAnswer the question using a single word or phrase."
"""What follows a question, as in tgif_frameqa.yaml."""


class TGIFQA(VideoBaseDataset):
    """Open questions about GIFs; share of exact and of contained answers, 0 to 1.

    Parameters
    ----------
    dataset
        Always ``TGIF-QA``.
    nframe, fps
        Frames that models get which take no video file; the kit samples them. One of the two.

    Raises
    ------
    FileNotFoundError
        If the data is not prepared, with what to do.
    """

    TYPE = "Video-VQA"
    shares: ClassVar[bool] = True
    """Whether every number is a share of 1."""
    scores_exactly: ClassVar[bool] = True
    """Answers are scored as the model gave them."""
    force_use_dataset_prompt = True

    def __init__(self, dataset: str = "TGIF-QA", nframe: int = 8, fps: float = -1) -> None:
        super().__init__(dataset=dataset, nframe=nframe, fps=fps)
        # pandas would guess types and take words such as "null" for missing
        data = pd.read_csv(self.data_file, sep="\t", dtype=str, keep_default_na=False)
        self.data = data.assign(index=range(len(data)))

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """Return the name of the dataset."""
        return ["TGIF-QA"]

    def prepare_dataset(self, dataset: str) -> dict[str, str]:
        """Return the folder of the videos and the file of the questions."""
        return {"root": str(prepared(VIDEOS)), "data_file": str(prepared(TABLE))}

    def build_prompt(self, line: Any, video_llm: bool) -> list[dict[str, str]]:
        """Return the video, or its frames as images, and the question of a row (a row or its number)."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        path = video_path(row["video"])
        if video_llm:
            media = [{"type": "video", "value": path}]
        else:
            media = [{"type": "image", "value": frame} for frame in self.save_video_frames(row["video"])]
        return [*media, {"type": "text", "value": f"{row['question']}{SHORT_PROMPT}"}]

    @staticmethod
    def document_scores(predictions: pd.DataFrame) -> pd.DataFrame:
        """Return both scores of each answer, 0 or 1, by the index of the question as text.

        Parameters
        ----------
        predictions
            ``index``, ``prediction`` and ``answer``, as texts.
        """
        found = [scores(p, a) for p, a in zip(predictions["prediction"], predictions["answer"], strict=True)]
        return pd.DataFrame(found, index=pd.Index([str(index) for index in predictions["index"]]))

    @classmethod
    def evaluate(cls, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:
        """Return the mean of each score, and write them beside the predictions.

        Answers are those that the model gave, whatever the table makes of them.
        """
        if judge_kwargs.get("model") not in (None, "exact_matching"):
            warnings.warn(f"TGIF-QA is scored without a judge; {judge_kwargs['model']} is not asked.", stacklevel=2)
        means = {
            str(name): float(value) for name, value in cls.document_scores(read_exactly(Path(eval_file))).mean().items()
        }
        dump(means, get_intermediate_file_path(eval_file, "_score", "json"))
        return means

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, float]:
        """Name the score for the kit's summary."""
        return {"exact_match": metrics["exact_match"]} if metrics and "exact_match" in metrics else {}


TGIF_VARIANTS = {"TGIF-QA_8frame": Variant(TGIFQA, nframe=8)}
"""By name; 8 frames as in VTW's Table 3."""
