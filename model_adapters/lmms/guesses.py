"""Options that lmms-eval's tasks draw for answers that they cannot read.

MMMU's code, and that of others, draws an option where an answer names none. The draw goes on from one document to the
next, so that the same answer to the same question would be right with one method and wrong with another.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL
from vtw_eval.model_adapters.patches import Patches


@contextmanager
def reproducible_guesses(patches: Patches | None = None) -> Iterator[list[str]]:
    """Let what a task draws for an answer depend on the document and the answer only.

    Parameters
    ----------
    patches
        What else is replaced in lmms-eval.

    Yields
    ------
    list of str
        Names of the documents for whose answers something was drawn, each once.
    """
    guessed: list[str] = []
    # lmms-eval scores documents in several threads, which all draw from the same generators.
    one_at_a_time = threading.RLock()

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def process_results(self: Any, doc: Any, results: Any, *args: Any, **given: Any) -> Any:
            with one_at_a_time:
                return alone(self, doc, results, *args, **given)

        def alone(self: Any, doc: Any, results: Any, *args: Any, **given: Any) -> Any:
            states = random.getstate(), np.random.get_state()  # noqa: NPY002  tasks draw from it
            key = repr((self.config.task, _plain(doc), results))
            digest = hashlib.sha256(key.encode(errors="backslashreplace")).digest()
            random.seed(digest)
            np.random.seed(int.from_bytes(digest[:4], "big"))  # noqa: NPY002
            before = _state()
            try:
                return original(self, doc, results, *args, **given)
            finally:
                if _state() != before and (name := _name(doc)) not in guessed:
                    guessed.append(name)
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002

        return process_results

    with (patches or Patches(LMMS_EVAL)).replaced("scores", make):
        yield guessed


def _state() -> tuple[Any, bytes, int]:
    _, keys, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return random.getstate(), np.asarray(keys).tobytes(), int(place)


def _name(document: Any) -> str:
    """Return what a document calls itself, or its question."""
    values = document if isinstance(document, Mapping) else {}
    names = ("id", "question_id", "index", "idx", "question")
    return next((str(values[name]) for name in names if name in values), "a document")


def _plain(document: Any) -> list[tuple[str, str]]:
    """Return what of a document are texts and numbers."""
    items = document.items() if isinstance(document, Mapping) else []
    return sorted((str(name), str(value)) for name, value in items if isinstance(value, str | int | float))
