"""TRIM: vision tokens that resemble the question, and the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.base import largest
from vtw_eval.methods.clip_scored import PATCHES, ClipScored
from vtw_eval.methods.image_wise import Image, ImageWise, Picked
from vtw_eval.methods.outliers import outliers


@dataclass(frozen=True, kw_only=True)
class TRIM(ClipScored, ImageWise):  # type: ignore[override]  # what it reads is a matter of its parameters
    """Keep vision tokens that resemble the question, and one more, the mean of the others (Song et al., 2024).

    The paper compares patches with the question by CLIP's text tower, by the product of what CLIP projects, and takes
    the least similar ones, since CLIP's patches are to be read so. Checkpoints hold no such tower: ``text=`` names it.
    Without it, the cosine of what enters the decoder is taken, mean over the text behind the last image, and the most
    similar ones stay. Their number is the code's: those whose softmax over the image is above the third quartile by
    more than one and a half of the distance between first and third, at least one. The mean, of what enters the decoder
    instead of the tower's features, stands at the end of the image. Results are therefore not those of the paper, which
    tunes the model besides.

    Parameters
    ----------
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`, instead of the number that outliers give; the mean
        counts as one that stays.
    text
        CLIP checkpoint whose vision tower the model has, see :class:`~vtw_eval.methods.cdpruner.CDPruner`.
    """

    key: ClassVar[str] = "trim"
    paper: ClassVar[str] = "https://arxiv.org/abs/2409.10994"
    reorders: ClassVar[bool] = True

    @property
    def adaptive(self) -> str:
        """Without ``r`` and ``tokens`` the number depends on the features."""
        if self.r is not None or self.tokens is not None:
            return ""
        return "trim keeps as many vision tokens as stand out: give r or tokens for a number that is known beforehand."

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Nothing but what enters the decoder; with CLIP, patches of the tower."""
        return () if self.text is None else (view.tower.features(PATCHES),)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose the most similar, and make the mean."""
        hidden, words = image.hidden, image.question
        if self.text is not None:
            score = (-self.clip.compare(image.view, image.row, image.values[0], cosine=False)).softmax(dim=0)
        else:
            alike = image.cosines(hidden, words).mean(dim=1) if len(words) else hidden.new_zeros(len(hidden))
            score = alike.softmax(dim=0)
        kept = largest(score, count - 1 if count else max(int(outliers(score).sum()), 1))
        gone = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        gone[kept] = False
        if not bool(gone.any()):
            return Picked(kept)
        last = gone.nonzero().flatten()[-1:]
        return Picked(torch.cat([kept, last]), torch.cat([hidden[kept], hidden[gone].mean(dim=0, keepdim=True)]))
