"""A method of a third party: of the vision tokens, the weakest go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods import Reads, Scorer


@dataclass(frozen=True, kw_only=True)
class EdgeFirst(Scorer):
    """Keep the vision tokens with the largest hidden states before layer k; of equal ones, the earlier.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is removed.
    power
        Norm by which hidden states are compared.
    """

    key: ClassVar[str] = "edge_first"
    reads = Reads.HIDDEN

    power: float = 2.0

    def score(self, view: LayerView) -> Tensor:
        """Norm of the hidden states."""
        return view.hidden.float().norm(p=self.power, dim=-1)
