"""Pool: the mean of every square of neighbours in the grid, a control that any merging method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import Method, precise


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Average squares of vision tokens, 2 x 2, before the first layer.

    Squares of the grid of each image, tile or frame, from its first row and column on; where rows or columns are no
    multiple, those at the end are smaller. Each goes on as one token, at the position of its middle one. Newlines and
    others that stand in no grid stay as they are. Unlike ``downsample``, which knows no grids but squares and reaches
    any number, this is the same everywhere.

    Parameters
    ----------
    side
        Rows and columns of a square; 1 changes nothing.
    """

    key: ClassVar[str] = "pool"
    reads = Reads.HIDDEN | Reads.TOWER
    needs_vision: ClassVar[bool] = True

    side: int = 2

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side={self.side} is out of range: it is a number of rows and columns, 1 or more.")

    @property
    def adaptive(self) -> str:
        """Grids are those of the prompt's own images."""
        if self.side == 1:
            return ""
        return (
            "how many squares pool makes depends on the grids of a prompt's images, not on their number of tokens; "
            "downsample,r=0.75 leaves as many of a square grid as squares of 2 x 2."
        )

    def layers(self, num_layers: int) -> Sequence[int]:
        """Before the first layer."""
        return () if self.side == 1 else (0,)

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Average each square."""
        if not view.vision.any():
            return view.valid
        places = view.tower.places.to(view.vision.device)
        keep, hidden = view.valid.clone(), view.hidden.clone()
        into = torch.arange(keep.shape[1], device=keep.device).repeat(view.rows, 1)
        for row in range(view.rows):
            tokens = (view.vision[row] & (places[row, :, 3:] >= 0).all(dim=-1)).nonzero().flatten()
            square = places[row, tokens] // torch.tensor([1, 1, 1, self.side, self.side], device=places.device)
            _, group = square.unique(dim=0, return_inverse=True)
            keep[row, tokens] = False
            order = group.argsort(stable=True)
            for members in tokens[order].split(group.bincount().tolist()):
                middle = members[len(members) // 2]
                hidden[row, middle] = precise(view.hidden[row, members]).mean(dim=0).to(hidden)
                keep[row, middle] = True
                into[row, members] = middle
        return Merge(keep, hidden, into=into)
