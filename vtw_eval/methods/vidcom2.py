"""VidCom2: tokens that are unlike their video and their frame, more of them in frames that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import precise, ranks
from vtw_eval.methods.frames import Reduced
from vtw_eval.methods.near_budget import NearBudget

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""Of the Gaussians."""

_TEMPERATURE = 0.01


@dataclass(frozen=True, kw_only=True)
class VidCom2(NearBudget):
    """Keep what is unlike the video's and the frame's mean, more in unusual frames (Liu et al., EMNLP 2025).

    Before the first layer, by the features that enter it: the half of their channels that varies least over the video,
    each token brought to length 1. How alike a token and a mean are is the sum of ``exp(-d^2 / 2a)`` over a = 1/8, 1/4,
    1/2, 1, 2; means are not brought to length 1 again. A frame keeps ``s (1 + p - 1 / frames)`` of its tokens, s the
    share that is to stay and p a softmax over frames of how unlike the video they are (temperature 0.01); at least one
    and at most all, halves rounded to even. An image is a video of one frame.

    Parameters
    ----------
    r
        Share of a video's vision tokens that is removed, about; 0.75 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each frame, in the mean over a video, about; instead of ``r``.
    """

    key: ClassVar[str] = "vidcom2"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.14454"
    published: ClassVar[float] = 0.75
    adaptive = (
        "how many tokens vidcom2 keeps of a frame depends on model and video: take the costs of an evaluation, which "
        "come from what it did."
    )

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Share out the budget over frames, and keep the most unlike."""
        alike_video, alike_frame = likenesses(precise(states))
        shares = frame_shares(alike_video.mean(dim=1), self.share(int(score.shape[1])))
        counts = (shares * score.shape[1]).round().clamp(min=1)
        return ranks(-(alike_video + alike_frame)) < counts[:, None], None


def likenesses(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return how alike tokens are to the mean of the video and to that of their frame, ``[frames, tokens]`` each.

    Parameters
    ----------
    features
        ``[frames, tokens, width]``.
    """
    variance = features.flatten(0, 1).var(dim=0, unbiased=False)
    channels = variance.argsort(stable=True)[: features.shape[-1] // 2]
    unit = normalize(features[..., channels], dim=-1)
    return _gaussians(unit, unit.mean(dim=(0, 1))), _gaussians(unit, unit.mean(dim=1, keepdim=True))


def _gaussians(unit: Tensor, mean: Tensor) -> Tensor:
    square = (unit - mean).square().sum(dim=-1)
    return torch.stack([(-square / (2 * width)).exp() for width in _WIDTHS]).sum(dim=0)


def frame_shares(alike: Tensor, share: float) -> Tensor:
    """Return the share of tokens that each frame keeps, ``[frames]``.

    Parameters
    ----------
    alike
        How alike frames are to their video, ``[frames]``.
    share
        Of the tokens of the whole video.
    """
    unusual = (-alike / _TEMPERATURE).softmax(dim=0)
    return (share * (1 + unusual - unusual.mean())).clamp(max=1)
