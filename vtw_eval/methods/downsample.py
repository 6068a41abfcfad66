"""Downsample: the image at a lower resolution, the control that token reduction finds hard to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import Method
from vtw_eval.methods.budget import checked_share, runs


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """Average neighbouring vision tokens before the first layer.

    A run of vision tokens whose number is a square is taken for an image's grid and averaged over the cells of a
    smaller grid; any other run (tiles, videos, native resolution) over equal stretches of its raster order. Where the
    processor can shrink the image itself (``max_pixels`` of Qwen2-VL), that is the better control. A cell's token
    takes the position of the cell's middle token.

    Parameters
    ----------
    r
        Share of the vision tokens that is removed; 0.5 unless ``tokens`` is given. Grids come as close to it as they
        can.
    tokens
        Number of vision tokens that stay for each image, instead of ``r``; a grid's is the square nearest to it.
    """

    key: ClassVar[str] = "downsample"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.07143"
    reads = Reads.HIDDEN
    question_independent = True
    needs_vision: ClassVar[bool] = True

    r: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "r", checked_share(self.r, self.tokens))

    def scaled(self, strength: float, num_layers: int) -> Downsample:
        """Remove this share."""
        return replace(self, r=round(strength, 6), tokens=None)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Before the first layer."""
        return () if self.r == 0 else (0,)

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Average each run of vision tokens."""
        keep, hidden = view.valid.clone(), view.hidden.clone()
        into = torch.arange(keep.shape[1], device=keep.device).repeat(view.rows, 1)
        for row in range(view.rows):
            for run in runs(view.vision[row]):
                removed = self.r if self.tokens is None else max(1 - self.tokens / len(run), 0.0)
                assert removed is not None, "__post_init__ fills it in"
                cells = pooling_cells(len(run), removed).to(run.device)
                keep[row, run] = False
                for cell in range(int(cells.max()) + 1):
                    members = run[cells == cell]
                    middle = members[len(members) // 2]
                    hidden[row, middle] = view.hidden[row, members].mean(dim=0)
                    keep[row, middle] = True
                    into[row, members] = middle
        return Merge(keep, hidden, into=into)


def pooling_cells(count: int, removed: float) -> Tensor:
    """Return the cell of each of ``count`` tokens, cells numbered in raster order; long ``[count]``.

    A square number is a grid of ``side`` squared, which becomes one of ``side * sqrt(1 - removed)`` squared, rounded;
    at least one cell is left.
    """
    side = math.isqrt(count)
    if side * side == count:
        new = max(int(side * math.sqrt(1 - removed) + 0.5), 1)
        line = torch.arange(side) * new // side
        return (line[:, None] * new + line).flatten()
    new = max(int(count * (1 - removed) + 0.5), 1)
    return torch.arange(count) * new // count
