"""Locally made documents as VLMEvalKit reads them: tables with pictures in base64, and Video-MME with its videos.

They are the documents of :mod:`tests.support.harness_data`, so that both harnesses can be asked the same questions:

    python -m tests.support.kit_data ROOT
    LMUData=ROOT/LMUData HF_HOME=ROOT/hf_home HF_HUB_OFFLINE=1 python -m tests.model_adapters.vlmeval.drive ...

The kit checks the official tables by their MD5 sums and downloads them again where they differ, so tests must empty
its ``DATASET_MD5`` (:func:`accept_any_sum`).
"""

from __future__ import annotations

import argparse
import base64
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tests.support.harness_data import picture_bytes, question, write_video

OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}
ROTATED = 1_000_000
"""The kit rotates the options of MMBench in copies whose index is larger by a multiple of this."""


def encoded(seed: int) -> str:
    """Return a picture of :mod:`tests.support.harness_data` in base64."""
    return base64.b64encode(picture_bytes(seed)["bytes"]).decode()


def mme(count: int) -> list[dict[str, Any]]:
    """Pairs of questions; the second of a pair refers to the first for its picture."""
    return [
        {
            "index": 2 * i + j,
            "image": encoded(i) if j == 0 else str(2 * i),
            "image_path": f"{('existence', 'code_reasoning')[i % 2]}/{i:04d}.png",
            "question": f"{question(2 * i + j)} Please answer yes or no.",
            "answer": answer,
            "category": ("existence", "code_reasoning")[i % 2],
        }
        for i in range(count)
        for j, answer in enumerate(("Yes", "No"))
    ]


def pope(count: int) -> list[dict[str, Any]]:
    """Yes-or-no questions."""
    return [
        {
            "index": i,
            "image": encoded(100 + i),
            "question": question(100 + i),
            "answer": ("Yes", "No")[i % 2],
            "category": ("adversarial", "popular", "random")[i % 3],
        }
        for i in range(count)
    ]


def ai2d(count: int) -> list[dict[str, Any]]:
    """Four options per diagram."""
    return [
        {
            "index": i,
            "image": encoded(200 + i),
            "question": question(200 + i),
            **OPTIONS,
            "answer": "ABCD"[i % 4],
            "category": "foodChains",
        }
        for i in range(count)
    ]


def scienceqa(count: int) -> list[dict[str, Any]]:
    """Two or three options, every other question with a hint."""
    return [
        {
            "index": i,
            "image": encoded(300 + i),
            "question": question(300 + i),
            "hint": "A disc is round." if i % 2 else None,
            "A": "yes",
            "B": "no",
            "C": "maybe" if i % 2 else None,
            "answer": "AB"[i % 2],
            "category": "physics",
            "split": "test",
        }
        for i in range(count)
    ]


def mmbench(count: int) -> list[dict[str, Any]]:
    """Questions with rotated copies: only those answered right in every rotation count."""
    return [
        {
            "index": 10 + i + ROTATED * turn,
            "image": encoded(600 + i) if turn == 0 else str(10 + i),
            "question": question(600 + i),
            "hint": None,
            **{letter: ("one", "two", "three", "four")[(j + turn) % 4] for j, letter in enumerate("ABCD")},
            "answer": "ABCD"[(i - turn) % 4],
            "category": "object_localization",
            "l2-category": "finegrained_perception (instance-level)",
            "split": "dev",
        }
        for turn in range(4)
        for i in range(count)
    ]


def mmmu(count: int) -> list[dict[str, Any]]:
    """Questions with one or two pictures among their text, some of them open."""
    return [
        {
            "index": i + 1,
            "id": f"validation_Art_{i + 1}",
            "image": str([encoded(400 + 10 * i + j) for j in range(1, 2 + i % 2)]),
            "question": f"Compare <image 1> with <image 2>. {question(400 + i)}"
            if i % 2
            else f"<image 1> {question(i)}",
            **(OPTIONS if i % 3 != 2 else dict.fromkeys(OPTIONS)),
            "answer": "2" if i % 3 == 2 else "B",
            "question_type": "open" if i % 3 == 2 else "multiple-choice",
            "category": "Art",
            "l2-category": "Art & Design",
            "split": ("dev", "validation")[i % 2],
        }
        for i in range(count)
    ]


TABLES: Mapping[str, Callable[[int], list[dict[str, Any]]]] = {
    "MME": mme,
    "POPE": pope,
    "AI2D_TEST": ai2d,
    "ScienceQA_TEST": scienceqa,
    "MMBench_DEV_EN": mmbench,
    "MMMU_DEV_VAL": mmmu,
}
"""Rows of each table, by the name of the dataset."""


def make_tables(folder: Path, count: int) -> None:
    """Write ``count`` documents (for MME, pairs of documents) of every dataset, as ``LMUData`` holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in TABLES.items():
        pd.DataFrame(rows(count)).to_csv(folder / f"{name}.tsv", sep="\t", index=False)


def make_videomme(folder: Path, count: int) -> None:
    """Write the files of the Hub's dataset ``lmms-lab/Video-MME``: a table, zipped videos, zipped subtitles."""
    (folder / "videomme").mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "videoID": f"video{i}",
            "duration": ("short", "medium", "long")[i % 3],
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "task_type": "Counting Problem",
            "question": question(500 + i),
            "options": ["A. one.", "B. two.", "C. three.", "D. four."],
            "answer": "ABCD"[i % 4],
        }
        for i in range(count)
    ]
    pd.DataFrame(rows).to_parquet(folder / "videomme" / "test-00000-of-00001.parquet")
    with zipfile.ZipFile(folder / "videos_chunked_01.zip", "w") as videos:
        for i in range(count):
            write_video(file := folder / f"video{i}.mp4", seed=i)
            videos.write(file, f"data/video{i}.mp4")
            file.unlink()
    with zipfile.ZipFile(folder / "subtitle.zip", "w") as subtitles:
        subtitles.writestr("subtitle/video0.srt", "1\n00:00:00,000 --> 00:00:02,000\nA disc.\n")


def make_kit_data(root: Path, count: int = 4) -> Path:
    """Write everything: ``LMUData``, and Video-MME in the Hub's cache below ``hf_home``, and return the folder."""
    make_tables(root / "LMUData", count)
    repository = root / "hf_home" / "hub" / "datasets--lmms-lab--Video-MME"
    revision = "0" * 40
    make_videomme(repository / "snapshots" / revision, count)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    return root


def accept_any_sum() -> None:
    """Let the kit take tables that are not the official ones."""
    from vlmeval.dataset import DATASET_CLASSES

    for cls in DATASET_CLASSES:
        if isinstance(getattr(cls, "DATASET_MD5", None), dict):
            cls.DATASET_MD5 = {}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4, help="documents per dataset (default 4)")
    arguments = parser.parse_args()
    print(make_kit_data(arguments.folder, arguments.count))


if __name__ == "__main__":
    main()
