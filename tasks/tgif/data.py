"""Where the prepared TGIF-QA documents are; ``dataset_kwargs`` of the task file names :data:`frameqa`.

:mod:`vtw_eval.tasks.tgif.prepare` writes them.
"""

from __future__ import annotations

from pathlib import Path

from vtw_eval.files import cache_home

DOCUMENTS = "frameqa.jsonl"
"""One document a line: ``question_id``, ``video`` (a name), ``question``, ``answer``."""
TABLE = "frameqa.tsv"
"""The same for VLMEvalKit."""
VIDEOS = "videos"
"""Folder of ``NAME.mp4``."""

HOW_TO_GET = (
    "Questions: Test_frameqa_question.csv of https://github.com/YunseokJANG/tgif-qa; GIFs: "
    "https://github.com/raingo/TGIF-Release; or a copy of Video-LLaVA's TGIF_Zero_Shot_QA folder (test_q.json, "
    "test_a.json, mp4/). Then: vtw-eval prepare-tgif FOLDER_OR_HUB_ID"
)


def dataset_folder() -> Path:
    """Return the folder of the prepared data, in the user's cache (XDG base directory convention)."""
    return cache_home() / "tgif"


def read_by(task: str) -> list[Path]:
    """Return the prepared files and folders that a task reads; none if it is not TGIF-QA's in either harness."""
    return [dataset_folder() / name for name in (DOCUMENTS, VIDEOS)] if "tgif" in task.casefold() else []


def prepared(name: str) -> Path:
    """Return a prepared file or folder.

    Raises
    ------
    FileNotFoundError
        If TGIF-QA was not prepared, with what to do.
    """
    path = dataset_folder() / name
    if not path.exists():
        raise FileNotFoundError(f"TGIF-QA is not prepared: {path} does not exist. {HOW_TO_GET}")
    return path


def video_path(name: str) -> str:
    """Return the path of a prepared video.

    Raises
    ------
    FileNotFoundError
        If it is gone (videos are links to the files that they were prepared from).
    """
    path = dataset_folder() / VIDEOS / f"{name}.mp4"
    if not path.exists():
        raise FileNotFoundError(f"the TGIF-QA video {path} is gone; run vtw-eval prepare-tgif again.")
    return str(path)


def __getattr__(name: str) -> str:
    """Return the path of the documents as ``frameqa``; looked for when a task is loaded, not when tasks are listed."""
    if name != "frameqa":
        raise AttributeError(name)
    return str(prepared(DOCUMENTS))
