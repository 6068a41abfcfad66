"""PyramidDrop: vision tokens leave in stages, the least attended first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method, Position, check_share, keep_best

STAGES = 3


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Keep a share of the vision tokens after each quarter of the layers (Xing et al., CVPR 2025).

    Before layers N/4, N/2 and 3N/4 (8, 16, 24 of 32) the vision tokens that the last prompt token attends to most *in
    the layer about to run* (its own norm, queries and keys, mean over heads) stay: ``1 - r`` of those so far, so
    1/2, 1/4 and 1/8 of the prompt's by default, rounded down as in the code. Positions are numbered anew after each
    drop, as in the code.

    Parameters
    ----------
    r
        Share of the vision tokens of a stage that is removed at its end.
    position
        "rearrange", as in the code, or "keep".
    """

    key: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.17247"
    reads = Reads.ATTENTION
    needs_vision: ClassVar[bool] = True

    r: float = 0.5
    position: Position = "rearrange"

    def __post_init__(self) -> None:
        check_share("r", self.r)

    @property
    def positions(self) -> Position:
        """The ``position`` parameter."""
        return self.position

    def scaled(self, strength: float, num_layers: int) -> PyramidDrop:
        """Remove this share in each stage."""
        return replace(self, r=round(strength, 6))

    def layers(self, num_layers: int) -> Sequence[int]:
        """Name the layers that begin the second, third and fourth quarter."""
        return tuple(num_layers * stage // (STAGES + 1) for stage in range(1, STAGES + 1))

    def empty_from(self, num_layers: int) -> int:
        """Name the layer of the first drop if all vision tokens go there."""
        return min(self.layers(num_layers)) if self.r == 1 else num_layers

    def keep(self, view: LayerView) -> Tensor:
        """Keep the best-scored vision tokens of the stage and all text."""
        if not view.vision.any():
            return view.valid
        stage = self.layers(view.num_layers).index(view.layer) + 1
        count = (view.vision_total * (1 - self.r) ** stage).long()
        return keep_best(view, view.attention(view.layer), count)
