"""Random vision tokens: the control that every pruning method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import random_scores
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class RandomVision(Scorer):
    """Keep random vision tokens, as many as FastV would, and all text; order and positions are kept.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is removed.
    seed
        Seed of the draws, which depend on (seed, prompt).
    """

    key: ClassVar[str] = "random_vision"
    reads = Reads.IDS

    seed: int = 0

    def score(self, view: LayerView) -> Tensor:
        """Random numbers."""
        return random_scores(view, self.seed)
