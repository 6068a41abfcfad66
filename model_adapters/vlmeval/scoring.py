"""How VLMEvalKit scores what it cannot read: open questions of MMMU, and answers for which it guesses an option.

MMMU's open questions are scored as a choice between their answer, as option A, and "Other Answers", although no option
was shown: "Area A" is right. Where a judge does not tell which option an answer means, an option is drawn, so that the
same answer would be right in one run and wrong in the next.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pandas as pd

from vtw_eval.model_adapters.patches import Patches
from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT

OPEN_AS_CHOICE = "an open question is scored as a choice between its answer, as option A, and 'Other Answers'"
GUESSED = "the answer could not be read, and an option was guessed"
"""Reasons, as they stand in results."""

GUESSING = {"choice reader": "choice draw", "vmcbench reader": "vmcbench draw"}
"""By function that reads an answer: the module that it draws from; names among the patches."""


def open_questions(dataset: Any) -> list[str]:
    """Return the indices of the questions without options that a dataset of the kit scores as a choice."""
    if "MMMU" not in dataset.dataset_name or dataset.MODALITY != "IMAGE" or "A" not in dataset.data:
        return []
    rows = zip(dataset.data["index"], dataset.data["A"], strict=True)
    return [str(index) for index, option in rows if pd.isna(option)]


def is_correct(prediction: str, answer: str) -> bool:
    """Score an open question as MMMU's own code does, of which the kit has a copy.

    Parameters
    ----------
    prediction
        What the model said.
    answer
        The answer, or a list of answers as Python writes it.
    """
    from vlmeval.dataset.videommmu import eval_open, parse_open_response

    try:
        listed = ast.literal_eval(answer)
    except (SyntaxError, ValueError):
        listed = answer
    answers = [str(one) for one in listed] if isinstance(listed, list) else [answer]
    return bool(prediction.strip()) and bool(eval_open(answers, parse_open_response(prediction)))


@contextmanager
def score_open_questions(indices: Sequence[str]) -> Iterator[None]:
    """Let the kit score open questions by what was said, and not by the letter of an option that was not shown."""
    wanted = set(indices)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def extract_answer_from_item(model: Any, item: Any, dataset_name: str | None = None) -> dict[str, Any]:
            if str(item["index"]) not in wanted:
                return original(model, item, dataset_name)
            right = is_correct(str(item["prediction"]), str(item["answer"]))
            return {"opt": item["GT"] if right else "Z", "log": str(item["prediction"])}

        return extract_answer_from_item

    with Patches(VLMEVALKIT).replaced("choice reader", make):
        yield


class _Drawing(threading.local):
    """Draws for one answer; the kit reads answers in several threads."""

    seed = ""
    drawn = False

    def choice(self, options: Sequence[Any]) -> Any:
        self.drawn = True
        digest = hashlib.sha256(repr((self.seed, list(options))).encode()).digest()
        return random.Random(digest).choice(options)


@contextmanager
def reproducible_guesses(guessed: Callable[[str], None]) -> Iterator[None]:
    """Let the option that the kit guesses for an answer depend on the question and the answer only.

    Parameters
    ----------
    guessed
        Told the index of each question whose answer is guessed, where the kit says which it is.
    """
    patches = Patches(VLMEVALKIT)
    with ExitStack() as stack:
        for reader, draw in GUESSING.items():
            drawing = _Drawing()
            stack.enter_context(patches.exchanged(draw, drawing))
            make = functools.partial(_reading, drawing=drawing, guessed=guessed)
            stack.enter_context(patches.replaced(reader, make))
        yield


def _reading(original: Callable[..., Any], drawing: _Drawing, guessed: Callable[[str], None]) -> Callable[..., Any]:
    def read(*args: Any, **given: Any) -> Any:
        values = [*args, *given.values()]
        rows = [value for value in values if isinstance(value, pd.Series)]
        texts = [value for value in values if isinstance(value, str | list | dict)]
        drawing.seed = repr(
            [[str(row.get(key)) for key in ("index", "question", "prediction")] for row in rows] + texts
        )
        drawing.drawn = False
        found = original(*args, **given)
        if drawing.drawn and rows:
            guessed(str(rows[0]["index"]))
        return found

    return read
