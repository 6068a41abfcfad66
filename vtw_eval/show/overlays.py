"""What lies over the pictures of a prompt in each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtw_eval.report.render.patches import COLOURS, overlay
from vtw_eval.show.sight import Sight
from vtw_eval.show.steps import Step


def overlays(sight: Sight, steps: Sequence[Step]) -> list[list[NDArray[np.uint8]]]:
    """Return for each step what lies over each picture, as :func:`vtw_eval.report.render.patches.overlay` makes it."""
    sets = torch.stack([each for step in steps for each in (step.into >= 0, *_coloured(step))])
    shares, count = sight.shares(sets), 1 + len(COLOURS)
    return [
        [
            overlay(share[first], _strongest(share[first + 1 : first + count]), *panel.pixels.shape[:2])
            for share, panel in zip(shares, sight.panels, strict=True)
        ]
        for first in range(0, len(sets), count)
    ]


def _coloured(step: Step) -> list[Tensor]:
    """Return for each colour which tokens have it, boolean ``[prompt tokens]``."""
    found = [torch.zeros_like(step.kept) for _ in COLOURS]
    for number, group in enumerate(step.groups):
        found[number % len(COLOURS)] |= group
    return found


def _strongest(shares: Tensor) -> Tensor:
    """Return which colour has most of each patch; -1 where none has half of it."""
    most, number = shares.nan_to_num(nan=0.0).max(dim=0)
    return torch.where(most > 0.5, number, -1)
