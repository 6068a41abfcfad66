"""Random vision tokens: the control that every pruning method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method, check_layer, check_share, keep_best, kept_count, random_scores


@dataclass(frozen=True, kw_only=True)
class RandomVision(Method):
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
    paper: ClassVar[str] = ""

    k: int = 2
    r: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("r", self.r)

    @property
    def plans_ahead(self) -> bool:
        """The choice follows from token ids."""
        return True

    def bind(self, anatomy: Anatomy) -> RandomVision:
        """Check k against the number of layers."""
        check_layer("k", self.k, anatomy.num_layers)
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        return () if self.k == num_layers else (self.k,)

    def keep(self, view: LayerView) -> Tensor:
        """Keep the chosen vision tokens and all text."""
        return keep_best(view, random_scores(view, self.seed), kept_count(view.vision_total, self.r))
