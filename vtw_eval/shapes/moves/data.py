"""The held-out test sets of moves: made from test scenes, the same everywhere, built on first use and kept on disk.

A test set is a Hugging Face ``DatasetDict`` in Arrow files with a single split ``test``; its videos are AVI files
beside them, ``path`` names a row's. ``video_id`` tells which rows share one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vtw_eval.files import cache_home
from vtw_eval.shapes import asking
from vtw_eval.shapes import questions as wording
from vtw_eval.shapes import scenes as kinds
from vtw_eval.shapes.arrow import Rows, hash_of, kept
from vtw_eval.shapes.asking import ask_each, generators, question_columns, until_asked
from vtw_eval.shapes.moves import questions, scenes
from vtw_eval.shapes.moves.questions import ask
from vtw_eval.shapes.moves.scenes import render, sample_scene

SEED = 20261129
"""Seed of the test sets."""
RATE = 4
"""Frames per second."""


def video(frames: np.ndarray) -> bytes:
    """Return frames as an AVI file that keeps them exactly (FFV1); a GIF would be a picture to harnesses.

    Parameters
    ----------
    frames
        uint8, [frames, height, width, 3].
    """
    import av  # heavy

    exact = {"flags": "+bitexact"}  # no mark of version or time
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi", container_options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("ffv1", rate=RATE, options=exact)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in (*(av.VideoFrame.from_ndarray(each, format="rgb24") for each in frames), None):
            container.mux(stream.encode(frame and frame.reformat(format=stream.pix_fmt)))
    return buffer.getvalue()


def _rows(name: str, types: Sequence[str], videos: int) -> Rows:
    """Make rows of a video with a question of each type; a scene that does not allow them all is drawn again."""
    rows: Rows = []
    for number, rng in generators(SEED, name, videos):
        scene, asked = until_asked(partial(sample_scene, rng, test=True), partial(ask_each, ask, types, rng=rng))
        file = video(render(scene, rng))
        for question in asked:
            row = {
                "question_id": str(len(rows)),
                "video_id": f"{number:04d}",
                "test_set": name,
                "path": f"videos/{number:04d}.avi",
                "file": file,
            }
            rows.append(row | question_columns(question))
    return rows


def frameqa_rows() -> Rows:
    """Make 400 questions in the form of TGIF-QA's frame questions: who does something; one of a video."""
    return _rows("frameqa", ("actor",), 400)


def count_rows() -> Rows:
    """Make 400 questions in the form of TGIF-QA's counting questions: how often something blinks; one of a video."""
    return _rows("count", ("repeat",), 400)


def action_rows() -> Rows:
    """Make 600 questions: what an object does, and where another, or the same, moves; two of a video."""
    return _rows("action", ("action", "direction"), 300)


def order_rows() -> Rows:
    """Make 600 yes/no questions, on what comes first and on what is there; two of a video."""
    return _rows("order", ("order", "exist"), 300)


def choice_rows() -> Rows:
    """Make 600 questions in Video-MME's form, two of a video: four options, the answer is the right one's number."""
    return _rows("choice", ("choice",) * 2, 300)


TEST_SETS: dict[str, Callable[[], Rows]] = {
    "frameqa": frameqa_rows,
    "count": count_rows,
    "action": action_rows,
    "order": order_rows,
    "choice": choice_rows,
}
"""The makers of the test sets by name."""


def fingerprint() -> str:
    """Return a hash of the code that makes the test sets, so that changed code never reads stale data."""
    return hash_of((asking.__file__, kinds.__file__, wording.__file__, scenes.__file__, questions.__file__, __file__))


def dataset_path(name: str, cache: Path | None = None) -> Path:
    """Return the directory of a test set, making it first if it is not there, see :func:`vtw_eval.shapes.arrow.kept`.

    Parameters
    ----------
    name
        One of :data:`TEST_SETS`.
    cache
        Where test sets are kept; None means the user's cache.

    Raises
    ------
    ValueError
        If there is no such test set.
    """
    return kept(TEST_SETS, name, cache or cache_home() / "moves", fingerprint())
