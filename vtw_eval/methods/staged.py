"""Methods that act in stages, each before a layer that a parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from vtw_eval.anatomy import Anatomy
from vtw_eval.methods.base import Method, check_layer

Self = TypeVar("Self", bound="Staged")


@dataclass(frozen=True, kw_only=True)
class Staged(Method):
    """Base of methods that remove vision tokens before several layers, ``k1`` < ``k2`` < ..."""

    needs_vision: ClassVar[bool] = True

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of layers before each stage, ascending."""
        raise NotImplementedError

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Check the last stage against the number of layers."""
        check_layer(f"k{len(self.stages)}", self.stages[-1], anatomy.num_layers)
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Return all stages; one at the number of layers never comes."""
        return tuple(k for k in self.stages if k < num_layers)
