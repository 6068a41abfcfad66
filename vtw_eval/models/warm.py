"""What several methods need of the same batch: its encoded prompts, and the vision features of its pictures."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vtw_eval.anatomy import Anatomy, UnsupportedModelError, find_tower
from vtw_eval.engine import Reads
from vtw_eval.engine.tower_pass import FEATURES
from vtw_eval.engine.wrappers import replaced
from vtw_eval.methods import Method
from vtw_eval.models.family import DocumentPrompt, Encoded, Family


class Warm:
    """Keeps the last batch, so that the next method that gets the same one need not begin anew.

    The model's own functions that make vision features are replaced by ones that remember what they gave for the very
    same tensors. A method that looks at the vision tower needs that to run, and is let through.

    Parameters
    ----------
    family, anatomy
        The model.
    """

    def __init__(self, family: Family[Any], anatomy: Anatomy) -> None:
        self._family = family
        self._batch: tuple[Sequence[DocumentPrompt], Encoded] | None = None
        self._features: dict[str, _Features] = {}
        try:
            self._owner: Any = find_tower(anatomy).owner
        except UnsupportedModelError:
            self._owner = None
        self.hits = 0
        """How often features were not computed again."""

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Return what the family makes of prompts; the last ones are not encoded twice if they are the same objects."""
        if self._batch is None or not _same(self._batch[0], prompts):
            self.forget()
            self._batch = list(prompts), self._family.encode(prompts)
        return self._batch[1]

    @contextmanager
    def features(self, method: Method) -> Iterator[None]:
        """Let a model remember within what it makes of the last pictures.

        Parameters
        ----------
        method
            What is going to be installed.
        """
        if self._owner is None or Reads.TOWER in method.reads:
            yield
            return
        names = [name for name in FEATURES.values() if hasattr(self._owner, name)]
        with replaced(self._owner, {name: self._kept(name, getattr(self._owner, name)) for name in names}):
            yield

    def forget(self) -> None:
        """Drop what is kept."""
        self._batch = None
        self._features = {}

    def _kept(self, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def kept(*args: Any, **kwargs: Any) -> Any:
            bound = dict(signature.bind(*args, **kwargs).arguments)
            last = self._features.get(name)
            if last is not None and last.are_of(bound):
                self.hits += 1
                return copy.copy(last.output)
            output = make(*args, **kwargs)
            self._features[name] = _Features(bound, output)
            return copy.copy(output)

        return kept


class _Features:
    """What a function gave for some arguments."""

    def __init__(self, arguments: Mapping[str, Any], output: Any) -> None:
        self.output = output
        self._arguments = dict(arguments)
        self._state = _state(arguments), _state(output)

    def are_of(self, arguments: Mapping[str, Any]) -> bool:
        """Whether it would give the same for these: the same tensors, unchanged like the output."""
        same = (_state(arguments), _state(self.output)) == self._state
        return same and _alike(self._arguments, arguments)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def _state(value: Any) -> list[tuple[int, int]]:
    """Return for each tensor in a value which it is, and how often it was written to."""
    if isinstance(value, Tensor):
        return [(id(value), -1 if value.is_inference() else value._version)]
    if isinstance(value, Mapping):
        return [found for part in value.values() for found in _state(part)]
    if isinstance(value, list | tuple):
        return [found for part in value for found in _state(part)]
    return []


def _same(one: Sequence[DocumentPrompt], other: Sequence[DocumentPrompt]) -> bool:
    return len(one) == len(other) and all(
        a.text == b.text
        and a.videos == b.videos
        and len(a.images) == len(b.images)
        and all(x is y for x, y in zip(a.images, b.images, strict=True))
        for a, b in zip(one, other, strict=True)
    )
