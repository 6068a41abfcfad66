"""FoPru: tokens, or rows of the grid, that all patches attend to in the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import largest
from vtw_eval.methods.image_wise import Image, ImageWise, Picked


@dataclass(frozen=True, kw_only=True)
class FoPru(ImageWise):
    """Keep what receives most attention in the last tower layer but one (Jiang et al., 2024).

    The mean over heads and over all queries, that of a CLS token included. No code of the authors is public. An
    unofficial one takes, of the means over queries and over keys, the one with the larger variance; but the mean over
    all keys of a softmax is the same for all queries. The layer is not known from a public source either.

    Parameters
    ----------
    strategy
        "rank" keeps single tokens; "row" whole rows of the grid, those with the largest sum, rounded down.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; r is 0.75 by default. With ``strategy=row``, as many
        rows stay as make up that share or number.
    """

    key: ClassVar[str] = "fopru"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.14164"
    default_r: ClassVar[float | None] = 0.75

    strategy: Literal["rank", "row"] = "rank"

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive, and their tiles and rows."""
        return view.tower.received(-2, by="column"), view.tower.places[..., 2:4]

    def choose(self, image: Image, count: int) -> Picked:
        """Choose the largest tokens or rows."""
        score, places = image.values
        if self.strategy == "rank":
            return Picked(largest(score, count))
        rows, of = places.unique(dim=0, return_inverse=True)
        sums = torch.zeros_like(score[: len(rows)]).index_add(0, of, score)
        best = largest(sums, count * len(rows) // len(image))
        return Picked(torch.isin(of, best).nonzero().flatten())
