"""An answer while it is made: told as it grows, timed, stopped, and brought from one thread to another."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

Result = TypeVar("Result")


class Listener(BaseStreamer):
    """Told each token by ``generate``; tells the text so far.

    Parameters
    ----------
    decode
        From token ids, long ``[1, tokens]``, to their text.
    told
        Gets the whole text so far, each time that it has changed.
    """

    def __init__(self, decode: Callable[[Tensor], str], told: Callable[[str], None]) -> None:
        self.decode = decode
        self.told = told
        self.times: list[float] = []
        """When each token of the answer was there."""
        self._tokens: list[int] = []
        self._text = ""
        self._begun = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first, or a token."""
        if not self._begun:
            self._begun = True
            return
        self.times.append(time.perf_counter())
        self._tokens += value.flatten().tolist()
        text = self.decode(torch.tensor([self._tokens]))
        if not text.endswith("\ufffd"):  # a character of several tokens is not whole yet
            self._tell(text)

    def end(self) -> None:
        """Tell the whole answer, with a character that will not become whole any more."""
        self._tell(self.decode(torch.tensor([self._tokens])))

    def _tell(self, text: str) -> None:
        if text != self._text:
            self._text = text
            self.told(text)


class Stop(StoppingCriteria):
    """Ends an answer when somebody asks for it.

    Parameters
    ----------
    stopped
        Whether somebody has.
    """

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return for each row whether it has ended."""
        return torch.full((len(input_ids),), self.stopped(), device=input_ids.device, dtype=torch.bool)


class Streamed(Generic[Result]):
    """Texts that a function tells while it runs in another thread; its result when they are through.

    Parameters
    ----------
    work
        Called with what takes a text and what tells whether to stop. It is stopped when iteration ends before it does.
    """

    def __init__(self, work: Callable[[Callable[[str], None], Callable[[], bool]], Result]) -> None:
        self.work = work
        self.result: Result | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield texts; raise what the function raises."""
        told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        stop = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self.result = self.work(told.put, stop.is_set)
            except BaseException as error:
                failed.append(error)
            finally:
                told.put(None)

        thread = threading.Thread(target=run, name="answer", daemon=True)
        thread.start()
        try:
            while (text := told.get()) is not None:
                yield text
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]
