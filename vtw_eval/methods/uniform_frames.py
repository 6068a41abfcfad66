"""Fewer frames of a video, the control of methods that take tokens out of frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import check_share
from vtw_eval.methods.frames import FrameMethod, Reduced


@dataclass(frozen=True, kw_only=True)
class UniformFrames(FrameMethod):
    """Keep whole frames, evenly spread over a video, before the first layer; positions are kept.

    Of n frames m stay, those of the numbers ``floor((i + 1/2) n / m)``. Images stay whole. Where the tower joins two
    frames they go together. A model to which fewer frames are shown from the start numbers them without gaps, and saves
    the tower's work: that is another control.

    Parameters
    ----------
    r
        Share of a video's frames that is removed; halves are rounded up, and one stays. 0.5 unless ``frames`` is given.
    frames
        Number of frames that stay of each video, instead of ``r``.
    """

    key: ClassVar[str] = "uniform_frames"
    reads = Reads.TOWER

    r: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.r is None and self.frames is None:
            object.__setattr__(self, "r", 0.5)
        if self.r is not None and self.frames is not None:
            raise ValueError(f"r={self.r} or frames={self.frames}, not both: each says how many frames stay.")
        if self.r is not None:
            check_share("r", self.r)
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames={self.frames} is out of range: 1 or more frames stay.")

    def scaled(self, strength: float, num_layers: int) -> UniformFrames:
        """Remove this share."""
        return replace(self, r=round(strength, 6), frames=None)

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Keep frames in the middle of equal stretches."""
        total = len(score)
        wanted = self.frames if self.r is None else max(int(total * (1 - self.r) + 0.5), 1)
        assert wanted is not None, "__post_init__ fills in r"
        count = min(wanted, total)
        keep = torch.zeros_like(score, dtype=torch.bool)
        keep[[(2 * i + 1) * total // (2 * count) for i in range(count)]] = True
        return keep, None
