"""HiPrune: anchors of a middle layer of the vision tower with their neighbours, and the best of a late one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import check_share, largest
from vtw_eval.methods.image_wise import Image, ImageWise, Picked

_PUBLISHED = {24: 8, 32: 16}
"""Middle layer by the number of layers: CLIP ViT-L, and the tower of Qwen2.5-VL."""


@dataclass(frozen=True, kw_only=True)
class HiPrune(ImageWise):
    """Keep anchors with their neighbours, and what else receives attention in the vision tower (Liu et al., 2025).

    The score is the attention that a token receives, mean over heads and queries, for which no CLS token is needed.
    Anchors are those with the largest one in a middle layer, a fifth of ``alpha`` of what stays; with each comes the
    token before and behind it and those a row above and below, by number within their tile, at its ends the tile's
    first or last (rows do wrap around, as in the code). The rest are the best of the last layer but one.

    Parameters
    ----------
    alpha
        Share of what stays that anchors and neighbours make up at most.
    layer
        The middle layer; as published for towers of 24 (8) and 32 layers (16), else a third of them.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; 128 tokens stay by default.
    """

    key: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.00553"
    default_tokens: ClassVar[int | None] = 128

    alpha: float = 0.1
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the middle layer and the last but one."""
        return (_PUBLISHED.get(num_layers, num_layers // 3) if self.layer is None else self.layer, -2)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention in both layers, tiles, and columns of the grid."""
        middle, late = self.tower_layers(view.tower.num_layers)
        attention = [view.tower.received(layer, by="column") for layer in (middle, late)]
        return *attention, view.tower.places[..., 2], view.tower.extent[..., 1]

    def choose(self, image: Image, count: int) -> Picked:
        """Choose anchors, neighbours, and the best others."""
        middle, late, tile, columns = image.values
        anchors = largest(middle, min(int(self.alpha * count / 5 + 0.5), count // 5))
        taken = torch.zeros(len(image), dtype=torch.bool, device=middle.device)
        for anchor in anchors.tolist():
            own = (tile == tile[anchor]).nonzero().flatten()
            number = int((own < anchor).sum())
            row = max(int(columns[anchor]), 1)
            near = torch.tensor([number + step for step in (0, -1, 1, -row, row)]).clamp(0, len(own) - 1)
            taken[own[near.to(own.device)]] = True
        rest = largest(late.masked_fill(taken, -torch.inf), count - int(taken.sum()))
        taken[rest] = True
        return Picked(taken.nonzero().flatten())
