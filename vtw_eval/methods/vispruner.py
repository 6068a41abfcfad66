"""VisPruner: what the CLS token attends to, and of the rest what is least alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import check_share
from vtw_eval.methods.image_wise import Image, ImageWise, Picked

_AT_ONCE = 8
"""Tokens that leave in a step."""


@dataclass(frozen=True, kw_only=True)
class VisPruner(ImageWise):
    """Keep important vision tokens and diverse ones (Zhang et al., ICCV 2025).

    Important are those that the CLS token attends to most in the last tower layer but one, mean over heads. The others,
    sorted by it, lose eight at a time until enough are left: each of those with an even number finds the most similar
    with an odd one (cosine of the tower's features of that layer), and the most similar leave; then the even ones that
    are left are sorted by similarity, the odd ones stand behind. Of an odd number the even ones are one more, where the
    code breaks. Without a CLS token, and for tiles, as :class:`~vtw_eval.methods.fastervlm.FasterVLM`.

    Parameters
    ----------
    important
        Share of what stays that is chosen by attention, rounded down.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; 128 tokens stay by default.
    """

    key: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.01818"
    default_tokens: ClassVar[int | None] = 128

    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important", self.important)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive, and features."""
        return view.tower.received(-2), view.tower.features(-2)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose the important, then thin out the rest."""
        attention, features = image.values
        order = attention.argsort(descending=True, stable=True)
        first = int(count * self.important)
        left = order[first:]
        if first < count:
            alike = image.cosines(features, features)
            while len(left) > count - first:
                even, odd = left[0::2], left[1::2]
                closest = alike[even][:, odd].amax(dim=1)
                falling = closest.argsort(descending=True, stable=True)
                left = torch.cat([even[falling[min(_AT_ONCE, len(left) - count + first) :]], odd])
        return Picked(torch.cat([order[:first], left[: count - first]]).sort().values)
