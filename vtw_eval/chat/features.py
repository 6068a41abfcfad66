"""The encoding of a picture, kept while methods and questions change."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy, UnsupportedModelError, find_tower
from vtw_eval.engine.tower_pass import FEATURES
from vtw_eval.engine.wrappers import replaced


class KeptFeatures:
    """What the vision tower has made of the last pictures and videos.

    A tower sees nothing but its picture, so that the same picture has the same features under every method. A method
    that reads the tower while it runs needs it to run: do not install this around one.

    Parameters
    ----------
    anatomy
        The model.
    size
        Pictures or videos that are kept, the last used ones.
    """

    def __init__(self, anatomy: Anatomy, size: int = 4) -> None:
        self.size = size
        self.runs = 0
        """How many times the tower has run."""
        self.kept = 0
        """How many times its features were there."""
        self._known: OrderedDict[int, tuple[str, Any, Any]] = OrderedDict()
        self._inside = False
        try:
            self._owner: Any = find_tower(anatomy).owner
        except UnsupportedModelError:
            self._owner = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take features that are known instead of running the tower, for the length of a ``with`` block."""
        names = [] if self._owner is None else [name for name in FEATURES.values() if hasattr(self._owner, name)]
        functions = {name: self._remembering(name, getattr(self._owner, name)) for name in names}
        if not functions:
            yield
            return
        with replaced(self._owner, functions):
            yield

    def _remembering(self, name: str, features: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(features)
        def remembering(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # a video that is run as images
                return features(*args, **kwargs)
            given = (args, kwargs)
            for number, (known, asked, output) in self._known.items():
                if known == name and _same(asked, given):
                    self._known.move_to_end(number)
                    self.kept += 1
                    return copy.copy(output)
            self._inside = True
            try:
                output = features(*args, **kwargs)
            finally:
                self._inside = False
            self.runs += 1
            self._known[self.runs] = (name, given, output)
            while len(self._known) > self.size:
                self._known.popitem(last=False)
            return copy.copy(output)

        return remembering


def _same(one: Any, other: Any) -> bool:
    """Whether two sets of arguments are equal, tensors by their values."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.device == other.device
            and one.dtype == other.dtype
            and torch.equal(one, other)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one is other or one == other)
