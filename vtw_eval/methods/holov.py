"""HoloV: as many vision tokens of each stretch of an image as its share of the CLS token's attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.image_wise import Image, ImageWise, Picked


@dataclass(frozen=True, kw_only=True)
class HoloV(ImageWise):
    """Divide what stays among stretches of an image by attention, as its code does (Zou et al., NeurIPS 2025).

    The paper's crops are squares, and weighted by attention and by how much their tokens differ. The code's are
    stretches of 36 tokens in raster order, and its second term is a multiple of the first, so that attention alone
    weighs: that of the CLS token in the last tower layer but one, mean over heads and the stretch. In a stretch those
    with the most stay, in descending order. One that would get more than it has keeps all of it, and the code fills the
    rest with vectors of zeros, which go through the decoder. Without a CLS token, and for tiles, as
    :class:`~vtw_eval.methods.fastervlm.FasterVLM`.

    Parameters
    ----------
    stretches
        How many there are; of as equal lengths as can be.
    redistribute
        Give what a stretch cannot use to the heaviest others instead of filling up with zeros, one each, over and over.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; 64 tokens stay by default, vectors of zeros included.
    """

    key: ClassVar[str] = "holov"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.02912"
    default_tokens: ClassVar[int | None] = 64
    reorders: ClassVar[bool] = True
    reads = Reads.TOWER | Reads.HIDDEN
    question_independent = True

    stretches: int = 16
    redistribute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stretches < 1:
            raise ValueError(f"stretches={self.stretches} is out of range: an image is one stretch or more.")

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive."""
        return (view.tower.received(-2),)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose in each stretch."""
        (attention,) = image.values
        numbers = torch.arange(len(image), device=attention.device).tensor_split(min(self.stretches, len(image)))
        shares = shared_out([float(attention[stretch].mean()) for stretch in numbers], count)
        if self.redistribute:
            shares = within(shares, [len(stretch) for stretch in numbers])
        ordered = [stretch[attention[stretch].argsort(descending=True, stable=True)] for stretch in numbers]
        chosen = [stretch[:share] for stretch, share in zip(ordered, shares, strict=True)]
        free = torch.cat([stretch[share:] for stretch, share in zip(ordered, shares, strict=True)])
        hidden = image.hidden
        at, states, used = [], [], 0
        for stretch, share in zip(chosen, shares, strict=True):
            zeros = share - len(stretch)
            at += [stretch, free[used : used + zeros]]
            states += [hidden[stretch.to(hidden.device)], hidden.new_zeros(zeros, hidden.shape[1])]
            used += zeros
        return Picked(torch.cat(at), torch.cat(states))


def shared_out(weights: Sequence[float], count: int) -> list[int]:
    """Return shares of ``count`` in proportion to weights, rounded down, the rest one each to the heaviest."""
    total = sum(weights)
    shares = [math.floor(count * weight / total) if total > 0 else 0 for weight in weights]
    heaviest = sorted(range(len(weights)), key=lambda number: -weights[number])
    for number in itertools.islice(itertools.cycle(heaviest), count - sum(shares)):
        shares[number] += 1
    return shares


def within(shares: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return shares that are no larger than the sizes, what is too much given to the largest others, one each."""
    left = [min(share, size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(shares)), key=lambda number: -shares[number])
    excess = sum(shares) - sum(left)
    while excess:
        for number in order:
            if excess and left[number] < sizes[number]:
                left[number] += 1
                excess -= 1
    return left
