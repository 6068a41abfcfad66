"""Uniform: vision tokens at even distances, a control that needs neither the model nor the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Uniform(Scorer):
    """Keep vision tokens at even distances in raster order, over the images of a row one after the other.

    Of n tokens m stay: the one in the middle of each of m equal stretches, number ``floor((i + 1/2) n / m)``.
    """

    key: ClassVar[str] = "uniform"
    reads = Reads.ROLES

    k: int = 0

    def score(self, view: LayerView) -> Tensor:
        """1 for the tokens that stay, 0 for the others."""
        counts = view.vision.sum(dim=1)
        number = view.vision.cumsum(dim=1) - 1
        score = torch.zeros(view.vision.shape, device=view.vision.device)
        for row, (total, kept) in enumerate(zip(counts.tolist(), self.kept(view).tolist(), strict=True)):
            places = torch.tensor([(2 * i + 1) * total // (2 * kept) for i in range(kept)], device=score.device)
            score[row] = torch.isin(number[row], places)
        return score
