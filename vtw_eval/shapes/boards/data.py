"""The held-out test sets of boards: made from test scenes, the same everywhere, built on first use and kept on disk.

A test set is a Hugging Face ``DatasetDict`` in Arrow files with a single split ``test``. Its columns are those that the
scoring code of the benchmark it imitates reads, and it asks as many questions of an image as the benchmark does or
nearly so; ``image_id`` tells which rows share one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vtw_eval.files import cache_home
from vtw_eval.shapes import asking
from vtw_eval.shapes import questions as wording
from vtw_eval.shapes import scenes as kinds
from vtw_eval.shapes.arrow import Rows, hash_of, kept, png
from vtw_eval.shapes.asking import Sample, ask_each, generators, question_columns, samples, until_asked
from vtw_eval.shapes.boards import questions, scenes
from vtw_eval.shapes.boards.questions import (
    OPEN,
    TWO_STEP,
    ask,
    ask_color,
    ask_count,
    ask_exist,
    ask_mark,
    ask_position,
)
from vtw_eval.shapes.boards.scenes import Scene, render, sample_scene
from vtw_eval.shapes.questions import Question, absent_kinds, exist_text
from vtw_eval.shapes.scenes import KINDS

SEED = 20261125
"""Seed of the test sets."""

MME = {
    "existence": ask_exist,
    "count": ask_count,
    "color": ask_color,
    "position": ask_position,
    "OCR": ask_mark,
}
"""MME's names of its kinds of question, and who asks them; each at most 200 points of the score."""


def held_out(type: str, count: int, seed: int = SEED) -> list[Sample[Scene]]:
    """Return held-out questions about boards, of one of :data:`~vtw_eval.shapes.boards.questions.TYPES`.

    See :func:`vtw_eval.shapes.asking.samples`; images are [128, 128, 3].
    """
    return samples(type, count, seed, sample_scene, ask, render)


def _pair(category: str, scene: Scene, rng: np.random.Generator) -> tuple[Question, Question] | None:
    """Ask for Yes and for No, if the scene allows both."""
    yes, no = (MME[category](scene, rng, answer) for answer in (True, False))
    return (yes, no) if yes and no else None


def mme_rows() -> Rows:
    """Make 1,200 questions in MME's form: a Yes/No pair about each of 120 images for each of five kinds.

    Kinds take turns, so that the first ones of the set are of all kinds.
    """
    rows: Rows = []
    for category in MME:
        for number, rng in generators(SEED, f"mme {category}", 120):
            # MME needs its pairs.
            scene, pair = until_asked(partial(sample_scene, rng, test=True), partial(_pair, category, rng=rng))
            name = f"{category}/{number:04d}.png"
            image = png(render(scene, rng))
            rows += [
                {
                    "question_id": name,
                    "image_id": name,
                    "category": category,
                    "question": question.text,
                    "answer": question.answer,
                    "image": image,
                }
                for question in pair
            ]
    return sorted(rows, key=lambda row: str(row["image_id"]).partition("/")[2])


def pope_rows() -> Rows:
    """Make 1,440 questions in POPE's form: about each of 80 images 3 for Yes and 3 for No in each of three settings.

    ``random`` asks about absent kinds, ``popular`` about absent ones of the twelve kinds that are most frequent in this
    test set, ``adversarial`` about absent kinds that are easy to confuse with what is there, as far as there are enough
    of them. As in POPE the questions for Yes are the same in all settings.
    """
    scenes_drawn = [(number, rng, sample_scene(rng, 3, test=True)) for number, rng in generators(SEED, "pope", 120)]
    images = [each for each in scenes_drawn if len({item.kind for item in each[2].items}) >= 3][:80]
    frequency = Counter(item.kind for _, _, scene in images for item in scene.items)
    popular = sorted(KINDS, key=lambda kind: (-frequency[kind], KINDS.index(kind)))[: len(KINDS) // 2]
    rows: Rows = []
    for number, rng, scene in images:
        image = png(render(scene, rng))
        present = sorted({item.kind for item in scene.items})
        there = [present[i] for i in rng.permutation(len(present))[:3]]
        absent = absent_kinds(scene, "random")
        confused = absent_kinds(scene, "adversarial")
        for category, pool in (
            ("random", absent),
            ("popular", [kind for kind in popular if kind not in present]),
            ("adversarial", confused),
        ):
            drawn = [pool[i] for i in rng.permutation(len(pool))[:3]]
            rest = [kind for kind in absent if kind not in drawn]
            drawn += [rest[i] for i in rng.permutation(len(rest))[: 3 - len(drawn)]]
            for asked, answer in ((there, "yes"), (drawn, "no")):
                rows += [
                    {
                        "question_id": str(len(rows) + place),
                        "image_id": f"{number:04d}",
                        "image_source": f"{number:04d}",
                        "category": category,
                        "question": exist_text(kind),
                        "answer": answer,
                        "image": image,
                    }
                    for place, kind in enumerate(asked)
                ]
    return rows


def _rows(name: str, types: Sequence[str], images: int) -> Rows:
    """Make rows of an image with a question of each type; a scene that does not allow them all is drawn again."""
    rows: Rows = []
    for number, rng in generators(SEED, name, images):
        scene, asked = until_asked(partial(sample_scene, rng, test=True), partial(ask_each, ask, types, rng=rng))
        image = png(render(scene, rng))
        for question in asked:
            row = {"question_id": str(len(rows)), "image_id": f"{number:04d}", "image": image}
            rows.append(row | question_columns(question))
    return rows


def ai2d_rows() -> Rows:
    """Make 1,000 questions in AI2D's form, four of an image: four options, the answer is the right one's number."""
    return _rows("ai2d", ("choice",) * 4, 250)


def vqa_rows() -> Rows:
    """Make 1,200 questions with a one-word answer, six of an image: colour, shape, number, digit, row and column."""
    return _rows("vqa", OPEN, 200)


def gqa_rows() -> Rows:
    """Make 1,200 questions of two steps, six of an image: two on a neighbour, two on likeness, two on two kinds."""
    return _rows("gqa", TWO_STEP * 2, 200)


def caption_rows() -> Rows:
    """Make 500 requests for a caption."""
    return _rows("caption", ("caption",), 500)


TEST_SETS: dict[str, Callable[[], Rows]] = {
    "mme": mme_rows,
    "pope": pope_rows,
    "ai2d": ai2d_rows,
    "vqa": vqa_rows,
    "gqa": gqa_rows,
    "caption": caption_rows,
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
    return kept(TEST_SETS, name, cache or cache_home() / "boards", fingerprint())
