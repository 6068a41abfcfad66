"""Methods for videos that come near to the number of tokens that they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from vtw_eval.methods.base import Method
from vtw_eval.methods.frames import FrameBudget
from vtw_eval.methods.random_per_frame import RandomPerFrame


@dataclass(frozen=True, kw_only=True)
class NearBudget(FrameBudget):
    """Base of those whose share of a video, or number for each frame, is a goal: what stays depends on the video."""

    def nominal(self) -> Method:
        """Return a random choice of as many tokens of each frame."""
        return RandomPerFrame(r=self.r, tokens=self.tokens)
