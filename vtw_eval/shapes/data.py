"""The held-out test sets: made from test scenes, the same everywhere, built on first use and kept on disk.

A test set is a Hugging Face ``DatasetDict`` in Arrow files with a single split ``test``. Its columns are those
that the scoring code of the benchmark it imitates reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from vtw_eval.files import cache_home
from vtw_eval.shapes import asking, questions, scenes
from vtw_eval.shapes.arrow import Rows, hash_of, kept, png
from vtw_eval.shapes.asking import Sample, generators, samples, until_asked
from vtw_eval.shapes.questions import OPEN, Question, ask, ask_color, ask_count, ask_exist, exist_text
from vtw_eval.shapes.scenes import KINDS, Scene, render, sample_scene

SEED = 20240605
"""Seed of the test sets."""


def held_out(type: str, count: int, seed: int = SEED) -> list[Sample[Scene]]:
    """Return held-out questions about shapes, of one of :data:`vtw_eval.shapes.questions.TYPES`.

    See :func:`vtw_eval.shapes.asking.samples`; images are [64, 64, 3].
    """
    return samples(type, count, seed, sample_scene, ask, render)


def _mme_question(category: str, scene: Scene, rng: np.random.Generator, answer: bool) -> Question:
    if category == "existence":
        return ask_exist(scene, rng, answer)
    if category == "count":
        return ask_count(scene, rng, answer)
    question = ask_color(scene, rng, answer)
    assert question is not None, "scenes without an object that its shape singles out are not drawn"
    return question


def mme_rows() -> Rows:
    """Make 1,200 questions in MME's form: for each of 200 images a Yes/No pair on existence, count and color."""
    rows: Rows = []
    for number, rng in generators(SEED, "mme", 200):
        # MME needs its pairs: every image must allow every category.
        scene, _ = until_asked(partial(sample_scene, rng, test=True), partial(ask_color, rng=rng, answer=True))
        image = png(render(scene, rng))
        for category in ("existence", "count", "color"):
            for answer in (True, False):
                question = _mme_question(category, scene, rng, answer)
                rows.append(
                    {
                        "question_id": f"{category}/{number:04d}.png",
                        "category": category,
                        "question": question.text,
                        "answer": question.answer,
                        "image": image,
                    }
                )
    return rows


def pope_rows() -> Rows:
    """Make 1,200 questions in POPE's form: for each of 200 images a yes/no pair in each of POPE's three settings.

    ``random`` asks about any absent kind, ``popular`` about an absent one of the twelve kinds that are most frequent in
    this test set, ``adversarial`` about an absent kind whose colour and shape are there.
    """
    images = [(number, rng, sample_scene(rng, test=True)) for number, rng in generators(SEED, "pope", 200)]
    frequency = Counter(item.kind for _, _, scene in images for item in scene.items)
    popular = sorted(KINDS, key=lambda kind: (-frequency[kind], KINDS.index(kind)))[: len(KINDS) // 2]
    rows: Rows = []
    for number, rng, scene in images:
        image = png(render(scene, rng))
        present = {item.kind for item in scene.items}
        unseen = [kind for kind in popular if kind not in present]
        for category in ("random", "popular", "adversarial"):
            if category == "popular":
                no = exist_text(unseen[int(rng.integers(len(unseen)))])
            else:
                no = ask_exist(scene, rng, False, category).text
            for question, answer in ((ask_exist(scene, rng, True).text, "yes"), (no, "no")):
                rows.append(
                    {
                        "question_id": str(len(rows)),
                        "category": category,
                        "image_source": f"{number:04d}",
                        "question": question,
                        "answer": answer,
                        "image": image,
                    }
                )
    return rows


def ai2d_rows() -> Rows:
    """Make 1,000 questions in AI2D's form: four options, the answer is the number of the right one."""
    return [
        {
            "question_id": str(number),
            "question": sample.question.text,
            "options": list(sample.question.options),
            "answer": str("ABCD".index(sample.question.answer)),
            "image": png(sample.image),
        }
        for number, sample in enumerate(held_out("choice", 1000))
    ]


def vqa_rows() -> Rows:
    """Make 1,200 questions with a one-word answer: 400 each on a colour, a shape and the number of objects."""
    columns = [held_out(type, 400) for type in OPEN]
    return [
        {
            "question_id": str(number),
            "category": sample.question.type.removeprefix("open_"),
            "question": sample.question.text,
            "answer": sample.question.answer,
            "image": png(sample.image),
        }
        for number, sample in enumerate(sample for group in zip(*columns, strict=True) for sample in group)
    ]


def caption_rows() -> Rows:
    """Make 1,000 requests for a caption."""
    return [
        {
            "question_id": str(number),
            "question": sample.question.text,
            "answer": sample.question.answer,
            "image": png(sample.image),
        }
        for number, sample in enumerate(held_out("caption", 1000))
    ]


TEST_SETS: dict[str, Callable[[], Rows]] = {
    "mme": mme_rows,
    "pope": pope_rows,
    "ai2d": ai2d_rows,
    "vqa": vqa_rows,
    "caption": caption_rows,
}
"""The makers of the test sets by name."""


def fingerprint() -> str:
    """Return a hash of the code that makes the test sets, so that changed code never reads stale data."""
    return hash_of((asking.__file__, scenes.__file__, questions.__file__, __file__))


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
    return kept(TEST_SETS, name, cache or cache_home() / "shapes", fingerprint())
