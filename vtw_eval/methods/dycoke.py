"""DyCoke: in each four frames, three lose what resembles another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import check_share, precise, ranks
from vtw_eval.methods.frames import FrameMethod, Reduced


@dataclass(frozen=True, kw_only=True)
class DyCoke(FrameMethod):
    """Thin out three of each four frames by their likeness to another one (token temporal merging of Tao et al., 2025).

    Before the first layer. Of four frames the first stays whole; the second and the third keep the tokens that are
    least like the same place of the first, and the fourth those least like the third as it was. An incomplete four at
    the end is treated alike. What the paper does to the KV cache while decoding saves nothing in the prefill and is
    left out. Order is kept; the code leaves a thinned frame's tokens in the order of their likeness. Images stay whole.

    Parameters
    ----------
    thin
        Share that a thinned frame loses, the number that stays rounded down; 0.7 in the authors' adapter (0.3 where
        their model is made). With 0.7, 370 of 784 tokens stay in four frames of LLaVA-OneVision.
    literal
        Whether to do what the code does at the end of a video: the third of the last four frames stays whole, and
        an odd last frame goes.
    """

    key: ClassVar[str] = "dycoke"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.15024"

    thin: float = 0.7
    literal: bool = False

    def __post_init__(self) -> None:
        check_share("thin", self.thin)

    def scaled(self, strength: float, num_layers: int) -> DyCoke:
        """Thin frames by this share: about three quarters of it go."""
        return replace(self, thin=round(strength, 6))

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Thin out all frames but each fourth."""
        states, (frames, tokens) = precise(states), map(int, score.shape)
        keep = torch.ones(frames, tokens, dtype=torch.bool, device=states.device)
        count = int(tokens * (1 - self.thin) + 1e-6)
        for i in range(frames):
            if i % 4 and not (self.literal and i % 4 == 2 and i + 2 >= frames):
                alike = cosine_similarity(states[i], states[i - 1 if i % 2 else i - 2], dim=-1)
                keep[i] = ranks(-alike[None])[0] < count
        if self.literal and frames % 2 and frames > 1:
            keep[-1] = False
        return keep, None
