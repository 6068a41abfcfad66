"""EVS: places of a video that have changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import precise, ranks
from vtw_eval.methods.frames import FrameBudget, Reduced


@dataclass(frozen=True, kw_only=True)
class EVS(FrameBudget):
    """Keep what differs most from the same place of the frame before (Efficient Video Sampling, NVIDIA 2025).

    Before the first layer: the first frame stays, and of the other frames the tokens with the largest 1 - cosine to
    their predecessor, over the whole video; of equal ones the earlier. As vLLM does it, the number is rounded down and
    never less than a frame. Positions are those of the whole video. Images stay whole. Nemotron Nano VL was trained
    with the default; Qwen2.5-VL and Qwen3-VL were not.

    Parameters
    ----------
    r
        Share of a video's vision tokens that is removed; 0.7 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each frame, in the mean over a video, instead of ``r``.
    """

    key: ClassVar[str] = "evs"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.14624"
    published: ClassVar[float] = 0.7

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Keep the first frame and the largest changes."""
        states = precise(states)
        change = 1 - cosine_similarity(states[1:], states[:-1], dim=-1)
        first = torch.full_like(states[:1, :, 0], torch.inf)
        frames, tokens = map(int, score.shape)
        count = max(int(frames * tokens * self.share(tokens) + 1e-6), tokens)
        return (ranks(torch.cat([first, change]).flatten()[None])[0] < count).view_as(score), None
