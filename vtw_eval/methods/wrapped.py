"""A method that stands for another, to watch it or to do again what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.reads import Reads
from vtw_eval.methods.base import Method, Position


@dataclass(frozen=True, kw_only=True)
class Wrapped(Method):
    """Base of methods that stand for another; they answer :meth:`keep`.

    Parameters
    ----------
    method
        The other.
    """

    method: Method

    @property
    def positions(self) -> Position:
        """What the method does."""
        return self.method.positions

    @property
    def reads(self) -> Reads:
        """What the method reads."""
        return self.method.reads

    @property
    def question_independent(self) -> bool:
        """Whether the method is."""
        return self.method.question_independent

    @property
    def leaves_whole(self) -> bool:
        """Whether they do under the method."""
        return self.method.leaves_whole

    def bind(self, anatomy: Anatomy) -> Wrapped:
        """Bind the method."""
        return replace(self, method=self.method.bind(anatomy))

    def layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers of the method."""
        return self.method.layers(num_layers)

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers in which the method leaves vision tokens as they are."""
        return self.method.frozen_layers(num_layers)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers of the vision tower that the method reads."""
        return self.method.tower_layers(num_layers)

    def __str__(self) -> str:
        """Return the spec of the method."""
        return str(self.method)
