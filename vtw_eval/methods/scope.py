"""SCOPE: vision tokens that are salient and cover the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.image_wise import Image, ImageWise, Picked
from vtw_eval.methods.selector import first_largest


@dataclass(frozen=True, kw_only=True)
class SCOPE(ImageWise):
    """Choose vision tokens one after the other by saliency times what they cover (Deng et al., 2025).

    Saliency is what the CLS token attends to in the last tower layer but one, over all heads. What a token covers is
    the sum, over all tokens of the image, of by how much its cosine with them is larger than that of any chosen one,
    or than 0 (features of that layer). Without a CLS token, and for tiles, as
    :class:`~vtw_eval.methods.fastervlm.FasterVLM`.

    Parameters
    ----------
    alpha
        Power of the saliency.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; 128 tokens stay by default.
    """

    key: ClassVar[str] = "scope"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.24214"
    default_tokens: ClassVar[int | None] = 128

    alpha: float = 1.0

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive, and features."""
        return view.tower.received(-2), view.tower.features(-2)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose greedily."""
        attention, features = image.values
        alike, saliency = image.cosines(features, features), attention**self.alpha
        covered = torch.zeros_like(alike[0])
        chosen: list[Tensor] = []
        for _ in range(count):
            gain = (alike - covered[:, None]).clamp(min=0).sum(dim=0) * saliency
            gain = gain.index_fill(0, torch.stack(chosen), -torch.inf) if chosen else gain
            chosen.append(first_largest(gain))
            covered = torch.maximum(covered, alike[:, chosen[-1]])
        return Picked(torch.stack(chosen).sort().values)
