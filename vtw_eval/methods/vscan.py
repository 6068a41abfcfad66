"""VScan: what the vision tower looks at early and late, merged with the rest; then what the answer looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import check_layer, check_share, keep_best, kept_count, largest
from vtw_eval.methods.image_wise import Image, ImageWise, Picked

_SIDE = 4
"""Windows in each direction."""


@dataclass(frozen=True, kw_only=True)
class VScan(ImageWise):
    """Choose by two layers of the vision tower, merge the rest, and choose again in the decoder (Zhang et al., 2025).

    Half of what stays before the first layer is chosen by window: 4 x 4 of them, equally many from each, by what the
    CLS token attends to in an early tower layer; the other half, and what windows lack, by its attention in the last
    layer but one; means over heads. Each token that goes is averaged into the most similar one that stays (cosine of
    what enters the decoder). Before layer ``k``, those stay that the prompt's last token attends to most in that layer,
    as in PyramidDrop. Without a CLS token, attention of all tokens (the code has two other layers for Qwen2.5-VL, and
    keeps a share of 0.167 and then 0.333). For LLaVA-NeXT the code divides numbers among tiles; here windows are of
    each tile, and numbers of the image.

    Parameters
    ----------
    early
        The early tower layer; 5 of 24 unless given.
    k
        Number of layers before the second choice; half of them unless given.
    r2
        Share that is removed by the second choice of what the first has left.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`, for the first choice; 96 tokens stay by default, and 32
        of them after the second: 64 in the mean.
    """

    key: ClassVar[str] = "vscan"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.22654"
    default_tokens: ClassVar[int | None] = 96
    reads = Reads.TOWER | Reads.HIDDEN | Reads.ATTENTION

    early: int | None = None
    k: int | None = None
    r2: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("r2", self.r2)

    def bind(self, anatomy: Anatomy) -> VScan:
        """Fill in the layer of the second choice."""
        bound = replace(super().bind(anatomy), k=self._second(anatomy.num_layers))
        check_layer("k", self._second(anatomy.num_layers), anatomy.num_layers)
        if bound.k == 0:
            raise ValueError("k=0 is out of range: the second choice comes after the first, so 1 or more.")
        return bound

    def _second(self, num_layers: int) -> int:
        return num_layers // 2 if self.k is None else self.k

    def scaled(self, strength: float, num_layers: int) -> VScan:
        """Keep a share first and a power of it second: a sixth and a third of that, as by default."""
        left = 1 - strength
        second = left ** (math.log(3) / math.log(6))
        return replace(self, r=round(1 - left, 6), tokens=None, r2=round(1 - second, 6))

    def layers(self, num_layers: int) -> Sequence[int]:
        """Before the first layer and layer k."""
        return (0, *(k for k in (self._second(num_layers),) if 0 < k < num_layers))

    def empty_from(self, num_layers: int) -> int:
        """Return the first choice that removes all vision tokens."""
        second = self._second(num_layers) if self.r2 == 1 else num_layers
        return min(super().empty_from(num_layers), second)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the early layer and the last but one."""
        return (num_layers * 5 // 24 if self.early is None else self.early, -2)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention in both layers, places and grids."""
        early, late = (view.tower.received(layer) for layer in self.tower_layers(view.tower.num_layers))
        return early, late, view.tower.places[..., 2:], view.tower.extent

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Make the first choice, or the second."""
        if view.layer == 0:
            return super().keep(view)
        if not view.vision.any():
            return view.valid
        return keep_best(view, view.attention(view.layer), kept_count(view.vision.sum(dim=1), self.r2))

    def choose(self, image: Image, count: int) -> Picked:
        """Choose by window and over all, and merge."""
        early, late, places, extent = image.values
        window = (places[:, 1:] * _SIDE).div(extent.clamp(min=1), rounding_mode="floor")
        windows, of = torch.cat([places[:, :1], window], dim=1).unique(dim=0, return_inverse=True)
        each = count // 2 // len(windows)
        taken = torch.zeros(len(image), dtype=torch.bool, device=early.device)
        for number in range(len(windows) if each else 0):
            own = (of == number).nonzero().flatten()
            taken[own[largest(early[own], each)]] = True
        taken[largest(late.masked_fill(taken, -torch.inf), count - int(taken.sum()))] = True
        kept, gone = taken.nonzero().flatten(), (~taken).nonzero().flatten()
        hidden = image.hidden
        kept, gone = kept.to(hidden.device), gone.to(hidden.device)
        into = image.cosines(hidden[gone], hidden[kept]).max(dim=1).indices
        sums = hidden[kept].index_add(0, into, hidden[gone])
        return Picked(kept, sums / (1 + into.bincount(minlength=len(kept)))[:, None])
