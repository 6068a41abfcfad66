"""Requests and answers: one document each, whatever harness asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from vtw_eval.models.failures import DocumentError, document_errors
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.record.costs import TimedCosts
from vtw_eval.runtime import free_memory, is_out_of_memory

Made = TypeVar("Made")


@dataclass(frozen=True)
class Request:
    """One document to answer."""

    name: str
    """Task, split and number of the document, for messages."""
    length: int
    """Rough length of the prompt, to put prompts of similar length into a batch."""
    generation: Mapping[str, Any]
    """Generation arguments of the task."""
    build: Callable[[Family[Any]], DocumentPrompt]
    """Makes the prompt; called when its turn has come, because it opens images."""
    task: str = ""
    """Name of the task, for methods that search a parameter on its first documents."""
    media: str = ""
    """Name of what the document shows, equal for documents that may show the same; empty if nobody knows."""
    asks: str = ""
    """Its words, as far as they are known before it is opened."""


Numbered = tuple[int, Request]
"""A request and its place among those of a call."""


@dataclass(frozen=True)
class Answer:
    """Text and what it cost."""

    text: str
    costs: TimedCosts


def left_alone(work: Callable[[], Made], *, last: bool) -> tuple[Made | None, str]:
    """Do work that several documents share; if it goes wrong for them together, return why, and None.

    Parameters
    ----------
    work
        What is done.
    last
        Whether it cannot be halved any more, so that running out of memory is such a reason.
    """
    try:
        return work(), ""
    except DocumentError as error:
        reason = str(error)
    except Exception as error:
        if not last or not is_out_of_memory(error):
            raise
        reason = "out of memory"
    free_memory()
    return None, reason


def answer_lengths(tokens: Tensor, eos: int | Sequence[int]) -> list[int]:
    """Count each row's tokens up to the first end of sequence, which counts too."""
    ends = torch.isin(tokens, torch.tensor(eos))
    lengths = torch.full((tokens.shape[0],), tokens.shape[1])
    first = ends.int().argmax(dim=1) + 1 if tokens.shape[1] else lengths
    return torch.where(ends.any(dim=1), first, lengths).tolist()


def named(*requests: Request) -> AbstractContextManager[None]:
    """Let errors within name these documents, see :func:`vtw_eval.models.failures.document_errors`."""
    return document_errors(*(request.name for request in requests))
