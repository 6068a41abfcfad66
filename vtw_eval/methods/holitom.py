"""HoliTom: what stands still over a window of frames is merged, of the rest the tower's attention decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import largest, precise, ranks
from vtw_eval.methods.frames import Reduced, note_products
from vtw_eval.methods.near_budget import NearBudget
from vtw_eval.methods.peaks import peak_scores

_NEIGHBOURS = 7
_OWN = 0.6
"""Weight of a centre's own state in that of its group."""


@dataclass(frozen=True, kw_only=True)
class HoliTom(NearBudget):
    """Merge what stands still over windows of frames, and keep what the tower attends to (Shao et al., NeurIPS 2025).

    The first of its two stages ("without inner"), before the first layer. A place stands still over a window of frames
    if each is more alike to the one before than ``tau`` there (cosine). Windows are chosen for the largest number
    of tokens that standing still makes superfluous, of equal choices the one with the shortest last window. What
    stands still becomes its mean over the window, in the window's first frame, and of these means the share that is
    to stay, rounded, is chosen as centres by :func:`~vtw_eval.methods.peaks.peak_scores` (7 neighbours); others
    join the nearest one, which becomes 0.6 times itself plus 0.4 times their mean. Of what moves, each frame keeps
    that share, rounded up, by the attention that the tower gives it in its last layer (mean over heads and all
    queries). The share is that of what the windows have left. Order is kept; the code puts still tokens of a window
    before moving ones. An image is a video of one frame.

    The code may merge a part of what moves too; its default, none, is followed. Its second stage, inside the language
    model, depends on the order in which dropped tokens are averaged one by one and is left out.

    Parameters
    ----------
    r
        Share of a video's vision tokens that is removed, about; 0.85 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each frame, in the mean over a video, about; instead of ``r``.
    tau
        Cosine above which a place stands still; the authors' for all shares but ``r=0.9``, for which it is 0.65.
    """

    key: ClassVar[str] = "holitom"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.21334"
    published: ClassVar[float] = 0.85
    adaptive = (
        "how much of a video stands still for holitom depends on model and video: take the costs of an evaluation, "
        "which come from what it did."
    )

    tau: float = 0.8

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the last layer."""
        return (-1,)

    def score(self, view: LayerView) -> Tensor:
        """Return the attention that tokens receive in the tower."""
        return view.tower.received(-1, by="column")

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Merge and choose in each window."""
        states, (frames, tokens) = precise(states), map(int, score.shape)
        score = score.to(states.device)
        still = cosine_similarity(states[1:], states[:-1], dim=-1) > self.tau
        chosen = windows(still)
        superfluous = sum(int(still[first:last].all(dim=0).sum()) * (last - first) for first, last in chosen)
        share = min(self.share(tokens) * frames * tokens / (frames * tokens - superfluous), 1.0)
        keep, changed, flops = torch.zeros_like(score, dtype=torch.bool), states.clone(), 0
        for first, last in chosen:
            stands = still[first:last].all(dim=0) if last > first else torch.zeros_like(keep[first])
            own = slice(first, last + 1)
            moving, places = (~stands).nonzero().flatten(), stands.nonzero().flatten()
            keep[own, moving] = ranks(score[own, moving]) < math.ceil(len(moving) * share - 1e-6)
            if count := round(len(places) * share):
                means = states[own, places].mean(dim=0)
                centres, merged = grouped(means, count)
                keep[first, places[centres]] = True
                changed[first, places[centres]] = merged
                flops += 2 * means.numel() * len(means)
        note_products(view, flops)
        return keep, changed


def windows(still: Tensor) -> list[tuple[int, int]]:
    """Return the first and the last frame of each window of a video, chosen by dynamic programming.

    Parameters
    ----------
    still
        Which places of each frame but the first are like those of the one before, boolean ``[frames - 1, places]``.
    """
    frames = len(still) + 1
    best, begins = [0], []
    lasting = [still[first:].cumprod(dim=0).sum(dim=1).tolist() for first in range(frames)]
    for last in range(frames):
        value, begin = best[last], last
        for first in range(last - 1, -1, -1):
            gain = best[first] + int(lasting[first][last - first - 1]) * (last - first)
            if gain > value:
                value, begin = gain, first
        best.append(value)
        begins.append(begin)
    found, last = [], frames - 1
    while last >= 0:
        found.append((begins[last], last))
        last = begins[last] - 1
    return found[::-1]


def grouped(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the centres of ``count`` groups, ascending, and what they become, ``[count, width]``."""
    score, distance = peak_scores(features, min(_NEIGHBOURS, count))
    centres = largest(score, count)
    others = torch.ones(len(features), dtype=torch.bool, device=features.device)
    others[centres] = False
    near = distance[others][:, centres]
    nearest = (near == near.amin(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1)
    number = nearest.bincount(minlength=count).to(features)[:, None]
    mean = torch.zeros_like(features[:count]).index_add(0, nearest, features[others]) / number.clamp(min=1)
    own = features[centres]
    return centres, torch.where(number > 0, _OWN * own + (1 - _OWN) * mean, own)
