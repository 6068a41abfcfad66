"""HiMAP: first by what the instruction looks at, later by what images look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import check_share, keep_best, kept_count
from vtw_eval.methods.staged import Staged


@dataclass(frozen=True, kw_only=True)
class HiMAP(Staged):
    """Drop vision tokens in two stages, by attention of the instruction and then of vision tokens (Yin et al., 2025).

    Before layer ``k1`` those stay that the text after the last image attends to most in the layer before; before layer
    ``k2`` those that the vision tokens still there attend to most in the layer before; mean over heads and queries. The
    published code takes sums, which rank alike, runs without KV cache, and ranks anew with each generated token; here
    the choice is that of the prompt.

    Parameters
    ----------
    k1, k2
        Number of layers that see all vision tokens, and of those before the second stage.
    r1, r2
        Share of the prompt's vision tokens that is removed by the first stage, and by both together: 288 and 72 of 576
        are left by default.
    """

    key: ClassVar[str] = "himap"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.13108"
    reads = Reads.ATTENTION_BEFORE

    k1: int = 2
    r1: float = 0.5
    k2: int = 8
    r2: float = 0.875

    def __post_init__(self) -> None:
        check_share("r1", self.r1)
        check_share("r2", self.r2)
        if self.k1 < 1:
            raise ValueError(f"k1={self.k1} is out of range: the attention of the layer before is read, so 1 or more.")
        if self.k2 <= self.k1 or self.r2 < self.r1:
            raise ValueError(
                f"k2={self.k2} and r2={self.r2} must be of a later stage, which leaves no more, than k1={self.k1} and "
                f"r1={self.r1}."
            )

    def scaled(self, strength: float, num_layers: int) -> HiMAP:
        """Keep a share in the first stage and its third power after the second: 1/2 and 1/8, as by default."""
        left = 1 - strength
        return replace(self, r1=round(1 - left, 6), r2=round(1 - left**3, 6))

    @property
    def stages(self) -> tuple[int, ...]:
        """Both."""
        return self.k1, self.k2

    def empty_from(self, num_layers: int) -> int:
        """Return the first stage that removes all vision tokens."""
        return next((k for k, r in ((self.k1, self.r1), (self.k2, self.r2)) if r == 1), num_layers)

    def keep(self, view: LayerView) -> Tensor:
        """Keep the best of the stage and all text."""
        if not view.vision.any():
            return view.valid
        first = view.layer == self.k1
        queries = view.instruction if first else view.vision
        score = view.attention(view.layer - 1, queries)
        return keep_best(view, score, kept_count(view.vision_total, self.r1 if first else self.r2))
