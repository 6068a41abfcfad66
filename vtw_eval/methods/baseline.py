"""The unchanged model, traced like any other method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """Reduce nothing; the trace tells what the unchanged model costs."""

    key: ClassVar[str] = "baseline"

    def layers(self, num_layers: int) -> Sequence[int]:
        """No layer: nothing is ever removed."""
        return ()

    def keep(self, view: LayerView) -> Tensor:
        """Never called."""
        raise AssertionError("the baseline reduces nothing")
