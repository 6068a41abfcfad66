"""Random vision tokens, equally many of each frame: the control of methods that choose within frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import random_scores, ranks
from vtw_eval.methods.frames import FrameBudget, Reduced


@dataclass(frozen=True, kw_only=True)
class RandomPerFrame(FrameBudget):
    """Keep random vision tokens, as many of each frame, before the first layer; positions are kept.

    Halves are rounded up in each frame. An image, with all its tiles, is one frame.

    Parameters
    ----------
    r
        Share of the vision tokens of each frame that is removed; 0.5 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each frame, instead of ``r``.
    seed
        Seed of the draws, which depend on (seed, prompt).
    """

    key: ClassVar[str] = "random_per_frame"
    reads = Reads.IDS | Reads.TOWER
    question_independent = False

    seed: int = 0

    def score(self, view: LayerView) -> Tensor:
        """Random numbers."""
        return random_scores(view, self.seed)

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Keep those of each frame with the largest numbers."""
        tokens = int(score.shape[1])
        return ranks(score) < int(tokens * self.share(tokens) + 0.5), None
