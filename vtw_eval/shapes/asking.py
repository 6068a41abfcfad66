"""Held-out scenes of any sort and questions about them: what the test sets of shapes, boards and moves share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from vtw_eval.shapes.questions import Question

_Scene = TypeVar("_Scene")
_Asked = TypeVar("_Asked")


@dataclass(frozen=True)
class Sample(Generic[_Scene]):
    """A test scene, its image (uint8, [height, width, 3]) and a question about it."""

    scene: _Scene
    image: np.ndarray
    question: Question


def generators(seed: int, name: str, count: int) -> Iterator[tuple[int, np.random.Generator]]:
    """Yield the numbers of the scenes of a test set and a source of randomness for each, whatever their count."""
    for number in range(count):
        yield number, np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def until_asked(draw: Callable[[], _Scene], ask: Callable[[_Scene], _Asked | None]) -> tuple[_Scene, _Asked]:
    """Draw scenes until one allows what is asked of it; return both."""
    while True:
        scene = draw()
        asked = ask(scene)
        if asked is not None:
            return scene, asked


def ask_each(
    ask: Callable[..., Question | None], types: Sequence[str], scene: Any, rng: np.random.Generator
) -> list[Question] | None:
    """Ask a question of each type, no two alike; None if the scene does not allow them all."""
    asked: list[Question] = []
    for type in types:
        question = ask(type, scene, rng)
        if question is None or question.text in {earlier.text for earlier in asked}:
            return None
        asked.append(question)
    return asked


def question_columns(question: Question) -> dict[str, Any]:
    """Return the columns of a question; the answer to one with options is the number of the right one, from 0."""
    columns = {"category": question.type.removeprefix("open_"), "question": question.text, "answer": question.answer}
    if question.options:
        return {**columns, "options": list(question.options), "answer": str("ABCD".index(question.answer))}
    return columns


def samples(
    type: str,
    count: int,
    seed: int,
    sample_scene: Callable[..., _Scene],
    ask: Callable[..., Question | None],
    render: Callable[[_Scene, np.random.Generator], np.ndarray],
) -> list[Sample[_Scene]]:
    """Return held-out questions of one type, one per scene; number ``i`` does not depend on ``count``.

    Parameters
    ----------
    type
        Of the questions.
    count
        How many.
    seed
        Seed of the scenes.
    sample_scene, ask, render
        Of a sort of scenes. Those that do not allow such a question are skipped.
    """
    found = []
    for _, rng in generators(seed, type, count):
        scene, question = until_asked(partial(sample_scene, rng, test=True), partial(ask, type, rng=rng))
        found.append(Sample(scene, render(scene, rng), question))
    return found
