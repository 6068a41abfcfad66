"""FasterVLM: the patches that the vision tower's CLS token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import largest
from vtw_eval.methods.image_wise import Image, ImageWise, Picked


@dataclass(frozen=True, kw_only=True)
class FasterVLM(ImageWise):
    """Keep what the CLS token attends to most in the last tower layer but one, mean over heads (Zhang et al., 2024).

    144 of 576 by default. Where the tower has no CLS token, what receives most attention of all its tokens, which is
    another quantity: users report it worse than chance on an InternVL2. For LLaVA-NeXT the code divides
    the number among tiles, without their un-padding and newlines; here all tiles of an image are ranked together.

    Parameters
    ----------
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; r is 0.75 by default.
    """

    key: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.01818"
    default_r: ClassVar[float | None] = 0.75

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive."""
        return (view.tower.received(-2),)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose the largest."""
        return Picked(largest(image.values[0], count))
