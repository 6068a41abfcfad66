"""Replacing functions of a harness by name for a while; each harness has its table of them in its ``patches.py``.

A name that is gone fails at once; a function that upstream stops calling does not, and the run would go on with the
answers of an earlier one, or all questions in place of a few. So every replacement counts its calls.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from vtw_eval.versions import UpstreamChangedError

Make = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the replacement from the original."""


@dataclass(frozen=True)
class Patch:
    """One function of a harness, or another object in a module of its, that is replaced for a while."""

    package: str
    """Distribution."""
    module: str
    """Where the name is looked up by the harness's own code."""
    attribute: str
    """The function, or ``Class.method``."""
    parameters: tuple[str, ...]
    """What the replacement passes on or reads by name."""
    why: str
    """What happens without a word, or is lost, if it is not called."""

    @property
    def name(self) -> str:
        """Full name."""
        return f"{self.module}.{self.attribute}"

    def place(self) -> tuple[Any, str]:
        """Return the object that holds the function, and its name there.

        Raises
        ------
        UpstreamChangedError
            If there is no such function, or it does not take what is passed on.
        """
        owner: Any = importlib.import_module(self.module)
        *path, last = self.attribute.split(".")
        for name in (*path, last):
            found = getattr(owner, name, None)
            if found is None:
                raise UpstreamChangedError(f"{self.package} has no {self.name}, without which {self.why}", self.package)
            owner = owner if name == last else found
        given = inspect.signature(getattr(owner, last)).parameters if self.parameters else {}
        if missing := [name for name in self.parameters if name not in given]:
            raise UpstreamChangedError(
                f"{self.name} takes {', '.join(given)}, and not {', '.join(missing)}", self.package
            )
        return owner, last


class Patches:
    """Replaces functions of a harness and knows which replacements have been called.

    Parameters
    ----------
    table
        The patches by a short name.
    """

    def __init__(self, table: Mapping[str, Patch]) -> None:
        self.table = table
        self.calls: Counter[str] = Counter()

    @contextmanager
    def replaced(self, name: str, make: Make) -> Iterator[None]:
        """Replace a function until the end of the block."""
        owner, attribute = self.table[name].place()
        original = getattr(owner, attribute)
        replacement = make(original)

        @functools.wraps(original)
        def counted(*args: Any, **given: Any) -> Any:
            self.calls[name] += 1
            return replacement(*args, **given)

        with mock.patch.object(owner, attribute, counted):
            yield

    @contextmanager
    def exchanged(self, name: str, value: Any) -> Iterator[None]:
        """Put something in the place of what is no function until the end of the block; that it is used is not seen."""
        with mock.patch.object(*self.table[name].place(), value):
            yield

    def require(self, names: Sequence[str], since: Mapping[str, int] | None = None) -> None:
        """Check that replacements have been called.

        Parameters
        ----------
        names
            Their short names; of names joined by "|" one is enough.
        since
            An earlier state of :attr:`calls` from which to count.

        Raises
        ------
        UpstreamChangedError
            If one has not been called.
        """
        before = since or {}
        for name in names:
            choices = name.split("|")
            if all(self.calls[choice] <= before.get(choice, 0) for choice in choices):
                patches = [self.table[choice] for choice in choices]
                called = " or ".join(patch.name for patch in patches)
                raise UpstreamChangedError(
                    f"{patches[0].package} did not call {called}, without which {patches[0].why}", patches[0].package
                )
