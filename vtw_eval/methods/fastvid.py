"""FastVID: what the tower attends to in each frame, and the rest merged over segments of similar frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import check_share, largest, precise, ranks
from vtw_eval.methods.frames import Reduced, note_products
from vtw_eval.methods.near_budget import NearBudget
from vtw_eval.methods.peaks import peak_scores

_NEIGHBOURS = 4
_EVERY = 4
"""Of so many frames of a segment one gets anchors, counted from its last."""

_OWN = 0.6
"""Least weight of an anchor's own state in what it becomes."""


@dataclass(frozen=True, kw_only=True)
class FastVID(NearBudget):
    """Keep salient tokens, and merge the others of a segment around a few dense ones (Shen et al., NeurIPS 2025).

    Before the first layer. A video is cut between the ``segments - 1`` pairs of successive frames whose means are least
    alike (cosine), and wherever they are less alike than ``tau``. R tokens a frame are to stay. R less the share
    ``context`` of them are those that the tower attends to most: by its CLS token where it has one, else by the mean
    over all queries (penultimate layer). The authors ask a pooling head of SigLIP, which these checkpoints lack. The
    others of a segment are merged in each fourth of its frames, counted from the last: around the tokens with the best
    :func:`~vtw_eval.methods.peaks.peak_scores` (4 neighbours), as many in all as the segment's frames give up. Each
    token joins the most similar anchor (cosine) of each such frame. An anchor becomes ``w`` times itself plus ``1 - w``
    times the mean of what joined it, w = 1 / (number + 1) or 0.6 if that is more, at its own place. The authors break
    ties by noise, here the earlier token comes first. An image is a video of one frame.

    Parameters
    ----------
    r
        Share of each frame's vision tokens that is removed, the rest rounded down; 0.9 unless ``tokens`` is given
        (0.73 for Qwen2.5-VL).
    tokens
        Number of vision tokens that stay for each frame, in the mean over a video, instead of ``r``.
    context
        Share of those that stay in which others are merged, rounded down.
    segments
        Least number of segments, if there are as many frames.
    tau
        Cosine of frames below which there is a cut; the authors' for means of frames (0.9 for a pooling head).
    """

    key: ClassVar[str] = "fastvid"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.11187"
    published: ClassVar[float] = 0.9
    adaptive = (
        "where fastvid cuts a video, and so how many tokens stay, depends on model and video: take the costs of an "
        "evaluation, which come from what it did."
    )

    context: float = 0.4
    segments: int = 8
    tau: float = 0.84

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("context", self.context)
        if self.segments < 1:
            raise ValueError(f"segments={self.segments} is out of range: a video has 1 or more.")

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the penultimate layer."""
        return (-2,)

    def score(self, view: LayerView) -> Tensor:
        """Return the attention that tokens receive in the tower."""
        return view.tower.received(-2)

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Keep salient tokens and anchors."""
        frames, tokens, width = map(int, states.shape)
        left = int(tokens * self.share(tokens) + 1e-6)
        context = int(left * self.context + 1e-6)
        keep = (ranks(score) < left - context).to(states.device)
        if not context:
            return keep, None
        states = precise(states)
        rest = (~keep).nonzero()[:, 1].view(frames, -1)  # numbers of what is not salient, as many in each frame
        loose = states.gather(1, rest[..., None].expand(-1, -1, width))
        peaks, _ = peak_scores(loose, _NEIGHBOURS)
        flops = 2 * loose.numel() * rest.shape[1]
        changed = states.clone()
        for segment in segments(states.mean(dim=1), self.segments, self.tau):
            members = loose[segment].flatten(0, 1)
            anchored = segment.flip(0)[::_EVERY]
            count = min(context * len(segment) // len(anchored), rest.shape[1])
            for frame in anchored:
                best = largest(peaks[frame], count)
                anchors = loose[frame, best]
                keep[frame, rest[frame, best]] = True
                changed[frame, rest[frame, best]] = joined(anchors, members)
                flops += 2 * members.numel() * count
        note_products(view, flops)
        return keep, changed


def segments(means: Tensor, least: int, tau: float) -> list[Tensor]:
    """Cut a video into segments of successive frames.

    Parameters
    ----------
    means
        A vector for each frame, ``[frames, width]``.
    least
        Number of segments, if there are as many frames.
    tau
        Cosine of two successive frames below which there is a cut between them.

    Returns
    -------
    list of Tensor
        Numbers of the frames of each.
    """
    alike = cosine_similarity(means[1:], means[:-1], dim=-1)
    cuts = (ranks(-alike[None])[0] < least - 1) | (alike < tau)
    frames = torch.arange(len(means), device=means.device)
    return list(frames.tensor_split((cuts.nonzero().flatten() + 1).tolist()))


def joined(anchors: Tensor, members: Tensor) -> Tensor:
    """Return what anchors become, ``[anchors, width]``.

    Parameters
    ----------
    anchors
        ``[anchors, width]``.
    members
        Tokens of which each joins the anchor most similar to it, ``[tokens, width]``; of equal ones the first.
    """
    similar = normalize(members, dim=-1) @ normalize(anchors, dim=-1).T
    nearest = (similar == similar.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1)
    number = nearest.bincount(minlength=len(anchors)).to(members)[:, None]
    mean = torch.zeros_like(anchors).index_add(0, nearest, members) / number.clamp(min=1)
    own = (1 / (number + 1)).clamp(min=_OWN)
    return own * anchors + (1 - own) * mean
