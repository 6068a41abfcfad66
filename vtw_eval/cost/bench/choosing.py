"""How long a method takes to choose, and which methods a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from vtw_eval.anatomy import UnsupportedModelError
from vtw_eval.cost.bench.timing import Clock
from vtw_eval.engine import LayerView, Merge
from vtw_eval.methods import METHODS, Baseline, Method, make_method
from vtw_eval.methods.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class TimedChoice(Wrapped):
    """Note when the choices of a method begin and end; everything else is the method's.

    A choice is all that the method does when it is asked which tokens go on: what runs once more for it to read
    (attention, keys, the tower's), similarities and ranks, and states that it merges. Moving the tokens that are left,
    and masks and positions for them, are the engine's, and not in it.

    Parameters
    ----------
    method
        The method.
    clock
        Of the device.
    """

    key: ClassVar[str] = "timed_choice"

    clock: Clock
    spans: list[tuple[Any, Any]] = field(default_factory=list)
    """Begin and end of each choice."""

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Answer as the method does."""
        begin = self.clock.note()
        answer = self.method.keep(view)
        self.spans.append((begin, self.clock.note()))
        return answer

    def seconds(self) -> float:
        """Return how long all choices took, once the device is done with them."""
        return sum(self.clock.seconds(begin, end) for begin, end in self.spans)


def every_method(model: nn.Module) -> tuple[dict[str, Method], dict[str, str]]:
    """Return all methods of this project with their defaults, and which of them the model does not take.

    Parameters
    ----------
    model
        A transformers vision-language model.

    Returns
    -------
    methods : dict of str to Method
        By their keys; without the baseline.
    left_out : dict of str to str
        Reason by key.
    """
    methods: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for key in METHODS:
        method = make_method(key)
        if method == Baseline():
            continue
        try:
            with method(model):
                methods[key] = method
        except (ValueError, UnsupportedModelError) as error:
            left_out[key] = str(error)
    return methods, left_out


def without_repeats(every: Mapping[str, Method], named: Mapping[str, Method]) -> dict[str, Method]:
    """Return all methods, but those that are named with parameters in place of their defaults.

    Parameters
    ----------
    every
        Methods with their defaults, by key.
    named
        Methods that were asked for by name, by spec.
    """
    own = {method.key for method in named.values()}
    return {**{key: method for key, method in every.items() if key not in own}, **named}
