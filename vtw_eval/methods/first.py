"""First: the vision tokens in front, a control for methods that prefer places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class First(Scorer):
    """Keep the first vision tokens of a row: the top of its first image."""

    key: ClassVar[str] = "first"
    reads = Reads.ROLES

    k: int = 0

    def score(self, view: LayerView) -> Tensor:
        """Return a higher one the earlier a token stands."""
        return -view.index.float()
