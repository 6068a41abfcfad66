"""FEATHER: FastV's choice without positions, together with a coarse grid, in two stages."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import check_share, keep_best
from vtw_eval.methods.budget import runs
from vtw_eval.methods.staged import Staged


@dataclass(frozen=True, kw_only=True)
class Feather(Staged):
    """Drop vision tokens in two stages, by attention without the rotary embedding (Endo et al., ICCV 2025).

    Attention is that of the last prompt token in the layer before, among the vision tokens only, of queries and keys
    that are not rotated (FastV's rotated ones prefer the end of an image). Before layer ``k1`` the best stay and those
    on a grid, before layer ``k2`` the best. Numbers are rounded down, as in the code. The code knows the one grid of
    its models; here a run of vision tokens whose number is a square is taken for an image's grid, and of any other
    (tiles, videos, native resolution) every ``grid`` squared-th token stays. All images of a row share a number.

    Parameters
    ----------
    k1, k2
        Number of layers that see all vision tokens, and of those before the second stage.
    r1, r2
        Share of the current vision tokens that each stage removes.
    grid
        Step of the grid in both directions; 0 for none.
    union
        Whether the first stage keeps the best and the grid, as published: how many these are together is known only
        when they are chosen (about 217 of 576, and 19 after the second stage). If not, the grid stays first and the
        best of the others fill up the number that ``r1`` leaves.
    """

    key: ClassVar[str] = "feather"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.13180"
    reads = Reads.UNROTATED_BEFORE

    k1: int = 8
    r1: float = 0.7
    k2: int = 16
    r2: float = 0.91
    grid: int = 3
    union: bool = True

    def __post_init__(self) -> None:
        check_share("r1", self.r1)
        check_share("r2", self.r2)
        if self.k1 < 1:
            raise ValueError(f"k1={self.k1} is out of range: the attention of the layer before is read, so 1 or more.")
        if self.k2 <= self.k1:
            raise ValueError(f"k2={self.k2} must be of a later stage than k1={self.k1}.")
        if self.grid < 0:
            raise ValueError(f"grid={self.grid} is out of range: it is a step of 1 or more, or 0 for no grid.")

    @property
    def adaptive(self) -> str:
        """The best and the grid overlap by chance."""
        if not self.union or not self.grid:
            return ""
        return (
            "how many tokens feather's best and its grid are together depends on model and prompt: union=false keeps "
            "the number that r1 says."
        )

    def scaled(self, strength: float, num_layers: int) -> Feather:
        """Keep exact shares: one in the first stage, and its power 2.5 of these in the second, about as by default."""
        left = 1 - strength
        return replace(self, r1=round(1 - left, 6), r2=round(1 - left**2.5, 6), union=False)

    @property
    def stages(self) -> tuple[int, ...]:
        """Both."""
        return self.k1, self.k2

    def empty_from(self, num_layers: int) -> int:
        """Return the first stage that removes all vision tokens."""
        gone = self.r1 == 1 and not (self.union and self.grid)
        return self.k1 if gone else self.k2 if self.r2 == 1 else num_layers

    def keep(self, view: LayerView) -> Tensor:
        """Keep the best of the stage, those on the grid, and all text."""
        if not view.vision.any():
            return view.valid
        score = view.unrotated_attention(view.vision)
        now, first = view.vision.sum(dim=1), view.layer == self.k1
        # 100 tokens of which 0.91 are removed leave 9, which floating point would miss
        count = torch.tensor([math.floor(v * (1 - (self.r1 if first else self.r2)) + 1e-6) for v in now.tolist()])
        if not first or not self.grid:
            return keep_best(view, score, count)
        grid = on_grid(view.prompt.vision, self.grid).gather(1, view.index)
        if self.union:
            return keep_best(view, score, count) | grid
        return keep_best(view, score + grid.to(score), count)  # weights are at most 1


def on_grid(vision: Tensor, step: int) -> Tensor:
    """Return which vision tokens of prompts stand on a grid; booleans ``[rows, tokens]``, both.

    In a run of vision tokens whose number is a square those of every ``step``-th row and column, in any other every
    ``step * step``-th, from the first on.
    """
    found = torch.zeros_like(vision)
    for row in range(len(vision)):
        for run in runs(vision[row]):
            number = torch.arange(len(run), device=run.device)
            side = math.isqrt(len(run))
            if side * side == len(run):
                chosen = (number // side % step == 0) & (number % side % step == 0)
            else:
                chosen = number % (step * step) == 0
            found[row, run] = chosen
    return found
