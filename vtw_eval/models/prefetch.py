"""Prompts that are made ready while the model runs: one thread opens pictures, renders and encodes, two batches ahead.

The thread has a processor of its own, since a tokenizer cannot be used by two threads at once, and while it works
nobody else opens pictures: what was not announced waits for its turn in the same thread. On a GPU, what it has encoded
is pinned, so that it is copied while the GPU is at work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from vtw_eval.models.failures import DocumentError, document_errors
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.sharing import digest

AHEAD = 2
"""Batches that are made ready beside the one that the model is at."""

Item = TypeVar("Item")
Made = TypeVar("Made")
Outcome = DocumentPrompt | DocumentError


class Asked(Protocol):
    """A request, see :class:`vtw_eval.models.requests.Request`."""

    @property
    def name(self) -> str:
        """What messages call the document."""


AnyAsked = TypeVar("AnyAsked", bound=Asked)


class Ahead(Generic[Item, Made]):
    """Does in one thread what will be needed, in the order in which it is announced.

    Parameters
    ----------
    prepare
        Makes a batch ready. What it raises is raised by :meth:`take`.
    """

    def __init__(self, prepare: Callable[[Sequence[Item]], Made]) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vtw-eval prefetch")
        self._futures: dict[tuple[int, ...], Future[Made]] = {}

    def announce(self, batch: Sequence[Item]) -> None:
        """Let a batch be made ready, unless it was announced before."""
        key = tuple(map(id, batch))
        if key not in self._futures:
            self._futures[key] = self._pool.submit(self._prepare, batch)

    def take(self, batch: Sequence[Item]) -> Made:
        """Return a batch when it is ready.

        If it was not announced, as after memory has run out, nothing that was will be needed: that is dropped.
        """
        if tuple(map(id, batch)) not in self._futures:
            self._drop()
        self.announce(batch)
        return self._futures.pop(tuple(map(id, batch))).result()

    def _drop(self) -> None:
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()

    def __enter__(self) -> Ahead[Item, Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Ready(Generic[AnyAsked]):
    """A batch that is ready."""

    prompts: Sequence[tuple[AnyAsked, Outcome]]
    """Of each request the prompt, or why there is none, in the order in which they were made."""
    first: Sequence[DocumentPrompt]
    """Those that are encoded: all, or the first about each image."""
    _encoded: Encoded | Exception | None

    def encode(self, family: Family[Any], prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Return encoded prompts on the model's device: what is ready, if it is of these prompts.

        Raises
        ------
        Exception
            What encoding them has raised.
        """
        same = len(prompts) == len(self.first) and all(map(_same, prompts, self.first))
        if not same or self._encoded is None:
            return family.encode(prompts)
        if isinstance(self._encoded, Exception):
            raise self._encoded
        return _placed(self._encoded, family.device)

    def family(self, family: Family[Any]) -> Family[Any]:
        """Return a family that encodes so."""
        made = copy.copy(family)
        vars(made)["encode"] = lambda prompts: self.encode(family, prompts)
        return made


class Preparer(Generic[AnyAsked]):
    """Opens, renders and encodes documents for a model, in another thread than the model's.

    Parameters
    ----------
    family
        The model's.
    build
        Makes the prompt of a request.
    """

    def __init__(self, family: Family[Any], build: Callable[[AnyAsked, Family[Any]], DocumentPrompt]) -> None:
        self._pins = family.device.type == "cuda"
        self._family = copy.copy(family)
        self._family.processor = copy.deepcopy(family.processor)
        self._family.place = torch.device("cpu")
        self._build = build
        self._known: dict[int, tuple[AnyAsked, Outcome]] = {}

    def alone(self, requests: Sequence[AnyAsked]) -> Ready[AnyAsked]:
        """Make a batch ready whose prompts are encoded together."""
        made = [(request, self._prompt(request)) for request in requests]
        prompts = [prompt for _, prompt in made if isinstance(prompt, DocumentPrompt)]
        return self._ready(made, prompts if len(prompts) == len(made) else [])

    def shared(self, groups: Sequence[Sequence[tuple[int, AnyAsked]]], least: int = 2) -> Ready[AnyAsked]:
        """Make groups of documents ready that may show the same: of each picture the first prompt is encoded.

        Parameters
        ----------
        groups
            The documents and their places.
        least
            How many have to show a picture for that.
        """
        made: list[tuple[AnyAsked, Outcome]] = []
        first: list[DocumentPrompt] = []
        for items in groups:
            shown: dict[bytes, list[DocumentPrompt]] = {}
            for _, request in items:
                made.append((request, outcome := self._prompt(request)))
                if isinstance(outcome, DocumentPrompt) and (key := digest(outcome)):
                    shown.setdefault(key, []).append(outcome)
            first += [prompts[0] for prompts in shown.values() if len(prompts) >= least]
        return self._ready(made, first)

    def forget(self, requests: Sequence[AnyAsked]) -> None:
        """Drop the prompts of documents that are answered."""
        for request in requests:
            self._known.pop(id(request), None)

    def __enter__(self) -> Preparer[AnyAsked]:
        return self

    def __exit__(self, *error: object) -> None:
        self._known.clear()

    def _prompt(self, request: AnyAsked) -> Outcome:
        """Return a prompt; it is kept, so that nothing is opened again when memory has run out."""
        if id(request) not in self._known:
            made: Outcome
            try:
                with document_errors(request.name):
                    made = self._build(request, self._family)
            except DocumentError as error:
                made = error
            self._known[id(request)] = request, made
        return self._known[id(request)][1]

    def _ready(self, made: Sequence[tuple[AnyAsked, Outcome]], first: Sequence[DocumentPrompt]) -> Ready[AnyAsked]:
        if not first:
            return Ready(made, first, None)
        try:
            encoded: Encoded | Exception = self._family.encode(first)
            if self._pins and isinstance(encoded, Encoded):
                encoded = _each(encoded, lambda value: value.pin_memory())
        except Exception as error:
            encoded = error
        return Ready(made, first, encoded)


def _same(one: DocumentPrompt, other: DocumentPrompt) -> bool:
    """Whether prompts say the same about the very same pictures."""
    pictures = list(map(id, one.held)) == list(map(id, other.held))
    return pictures and (one.text, one.videos) == (other.text, other.videos)


def _placed(encoded: Encoded, device: torch.device) -> Encoded:
    """Return a batch on a device; copies of what is pinned do not wait for it."""
    return _each(encoded, lambda value: value.to(device, non_blocking=value.is_pinned()))


def _each(encoded: Encoded, change: Callable[[Tensor], Tensor]) -> Encoded:
    mask = encoded.vision_mask
    return replace(encoded, inputs=_changed(encoded.inputs, change), vision_mask=None if mask is None else change(mask))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value whose tensors, in it or in mappings and sequences of it, are changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(part, change) for part in value)
    return value
