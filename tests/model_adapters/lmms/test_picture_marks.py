"""Marks of pictures in MMMU's questions, and options that its code draws."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval")

from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks.mmmu.utils import mmmu_doc_to_messages, mmmu_doc_to_messages_qwen3vl, mmmu_process_results

from vtw_eval.model_adapters.lmms.guesses import reproducible_guesses
from vtw_eval.model_adapters.lmms.picture_marks import PICTURES_SWAPPED, WORDS_LOST, AtMarks, renumber_marks

PICTURES = {f"image_{i}": Image.new("RGB", (8 * i, 8), (i, 0, 0)) for i in range(1, 8)}
KEYWORDS = {"multiple_choice_prompt": "Letter?", "open_ended_prompt": "Say.", "prompt_type": "format"}


def document(question: str, options: list[str] | None = None, **values: Any) -> dict[str, Any]:
    given = {"question": question, "options": str(options or ["one", "two"]), "question_type": "multiple-choice"}
    return {**given, "id": "validation_Art_1", "answer": "B", **PICTURES, **values}


def messages(doc: dict[str, Any]) -> Any:
    return mmmu_doc_to_messages(doc, KEYWORDS)


def written(shown: Any) -> str:
    """The content of a message, with the width of a picture over eight, which is its number, for the picture."""
    return " ".join(
        f"[{part['url'].width // 8}]" if part["type"] == "image" else " ".join(part["text"].split())
        for part in shown[0]["content"]
    )


END = "A. one B. two Letter?"
CASES = {
    "in order": ("Compare <image 1> with <image 2>. Which?", f"Compare [1] with [2] . Which? {END}", ()),
    "only the second": ("Look at <image 2>. Which?", f"Look at [2] . Which? {END}", ()),
    "no picture": ("Which?", f"Which? {END}", ()),
    "named twice": (
        "Seed <image 1> grows into <image 1> after rain.",
        f"Seed [1] grows into [1] after rain. {END}",
        (WORDS_LOST,),
    ),
    "out of order": (
        "First <image 2> and then <image 1>. Which?",
        f"First [2] and then [1] . Which? {END}",
        (PICTURES_SWAPPED,),
    ),
    "both": (
        "From <image 3> over <image 1> to <image 3> back.",
        f"From [3] over [1] to [3] back. {END}",
        (WORDS_LOST, PICTURES_SWAPPED),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pictures_stand_at_their_marks(name: str) -> None:
    question, right, notes = CASES[name]
    shown = AtMarks(messages, "harness")
    assert written(shown(document(question))) == written(messages(document(question))), "as lmms-eval shows it"
    assert shown.notes == notes
    assert (written(messages(document(question))) == right) is not bool(notes)
    upright = AtMarks(messages, "upright")
    assert written(upright(document(question))) == right
    assert upright.notes == ()


def test_marks_in_options_count() -> None:
    doc = document("Which of <image 2> and <image 1>?", ["<image 1>", "<image 2>"])
    shown = AtMarks(messages, "harness")
    shown(doc)
    assert shown.notes == (WORDS_LOST, PICTURES_SWAPPED)
    assert written(AtMarks(messages, "upright")(doc)) == "Which of [2] and [1] ? A. [1] B. [2] Letter?"


def test_a_protocol_that_keeps_the_marks_loses_nothing() -> None:
    def keeping(doc: dict[str, Any]) -> Any:
        return mmmu_doc_to_messages_qwen3vl(doc, {"format": "qwen3_vl"})

    doc = document("First <image 2> and then <image 1>. Which?")
    for media in ("harness", "upright"):
        shown = AtMarks(keeping, media)
        assert written(shown(doc)) == written(keeping(doc))
        assert shown.notes == ()


@pytest.mark.parametrize(
    "other",
    [
        {"question": "<image 1> <image 1> <image 1> <image 1> <image 1> <image 1> <image 1> <image 1>"},
        {"question": "<image 2> and <image 1>", "image_2": None},
        {"question": ["<image 2>"]},
        {"question": "<image 2>", "options": ["<image 1>"]},
        {"text": "<image 2>"},
    ],
    ids=["eight marks", "no such picture", "no text", "options are no text", "no question"],
)
def test_documents_of_another_form_stay(other: dict[str, Any]) -> None:
    assert renumber_marks({**PICTURES, **other}) is None


TASK: Any = SimpleNamespace(
    OUTPUT_TYPE="generate_until", config=SimpleNamespace(task="mmmu_val", process_results=mmmu_process_results)
)


def parsed(doc: dict[str, Any], answer: str) -> str:
    return ConfigurableTask.process_results(TASK, doc, [answer])["mmmu_acc"]["parsed_pred"][0]


def test_the_same_answer_gets_the_same_guess() -> None:
    docs = [document("Which?", id=f"validation_Art_{i}") for i in range(40)]
    random.seed(0)
    state = random.getstate()
    with reproducible_guesses() as guessed:
        first = [parsed(doc, "zebra") for doc in docs]
        assert guessed == [doc["id"] for doc in docs]
        again = [parsed(doc, "zebra" if i % 2 else "B") for i, doc in enumerate(docs)]
        other = [parsed(doc, "giraffe") for doc in docs]
    assert again == [guess if i % 2 else "B" for i, guess in enumerate(first)]
    assert {*first} == {*other} == {"A", "B"}, "all options are drawn"
    assert first != other, "by the answer"
    assert random.getstate() == state, "other draws are what they were"
    with reproducible_guesses() as guessed:
        assert parsed(docs[0], "B") == "B"
    assert guessed == []
    free = [[parsed(doc, "zebra") for doc in docs] for _ in range(2)]
    assert free[0] != free[1], "lmms-eval's own code draws anew"


def test_draws_of_numpy_count() -> None:
    def scored(doc: Any, results: Any) -> dict[str, int]:
        return {"acc": int(np.random.randint(1000))}  # noqa: NPY002

    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=SimpleNamespace(task="t", process_results=scored))
    with reproducible_guesses() as guessed:
        twice = [ConfigurableTask.process_results(task, {"id": 1}, ["x"])["acc"] for _ in range(2)]
    assert twice[0] == twice[1]
    assert guessed == ["1"]


def test_documents_are_scored_in_several_threads() -> None:
    """lmms-eval does so: threads must not draw for each other, nor be taken for one that draws."""

    def scored(doc: Any, results: Any) -> dict[str, list[float]]:
        drawn = []
        for _ in range(3):
            time.sleep(0.001)  # lets another thread go on
            drawn.append(random.random() if doc["id"] % 2 else 0.0)
        return {"acc": drawn}

    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=SimpleNamespace(task="t", process_results=scored))
    docs = [{"id": i} for i in range(24)]

    def score(doc: Any) -> list[float]:
        return ConfigurableTask.process_results(task, doc, ["x"])["acc"]

    with reproducible_guesses():
        alone = [score(doc) for doc in docs]
    with reproducible_guesses() as guessed, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(score, docs)) == alone
    assert sorted(guessed, key=int) == [str(i) for i in range(1, 24, 2)]
