"""VisionZip: dominant vision tokens, and contextual ones into which the others are merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import check_share, largest
from vtw_eval.methods.image_wise import Image, Picked
from vtw_eval.methods.tower_merging import TowerMerging


@dataclass(frozen=True, kw_only=True)
class VisionZip(TowerMerging):
    """Keep what the CLS token attends to, and merge the rest into a few tokens (Yang et al., CVPR 2025).

    Dominant tokens are those with the largest attention of the CLS token in the last tower layer but one, over all
    heads. Of the others, every so many-th is a target, evenly spread; each one that is none goes to the target with the
    most similar key (cosine, mean over heads, of that layer). A contextual token is a target's features *plus* the mean
    of what goes to it, as in the code. Contextual tokens stand behind the dominant ones of their image. The code
    keeps the CLS token as one of the dominant; prompts have no place for it, so here it is one patch more. Without
    a CLS token, attention that all tokens give, as codes for other towers do. For tiles, as
    :class:`~vtw_eval.methods.fastervlm.FasterVLM`.

    Parameters
    ----------
    contextual
        Share of what stays that is merged: 10 of 64.
    space
        As in :class:`~vtw_eval.methods.tower_merging.TowerMerging`.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; 64 tokens stay by default.
    """

    key: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.04467"
    default_tokens: ClassVar[int | None] = 64

    contextual: float = 0.15625

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("contextual", self.contextual)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Features, attention that tokens receive, and keys."""
        return self.merged(view), view.tower.received(-2), view.tower.keys(-2)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose the dominant, and merge."""
        features, attention, keys = image.values
        merged = int(count * self.contextual + 0.5)
        dominant = largest(attention, count - merged)
        if not merged:
            return Picked(dominant)
        others = torch.ones(len(image), dtype=torch.bool, device=attention.device)
        others[dominant] = False
        rest = others.nonzero().flatten()
        targets = rest[:: max(len(rest) // merged, 1)][:merged]
        others[targets] = False
        sources = others.nonzero().flatten()
        into = image.cosines(keys[sources], keys[targets]).max(dim=1).indices
        sums = torch.zeros_like(features[targets]).index_add(0, into.to(features.device), features[sources])
        means = sums / into.bincount(minlength=merged).clamp(min=1).to(sums)[:, None]
        made = self.entering(image, features[targets] + means)
        kept = image.hidden[dominant.to(image.hidden.device)]
        return Picked(torch.cat([dominant, targets]), torch.cat([kept, made.to(kept)]))
