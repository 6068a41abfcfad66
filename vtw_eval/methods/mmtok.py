"""MMTok: vision tokens that cover the question's words and the other vision tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.image_wise import Image, ImageWise, Picked
from vtw_eval.methods.selector import first_largest


@dataclass(frozen=True, kw_only=True)
class MMTok(ImageWise):
    """Choose vision tokens that cover question and image, one after the other (Dong et al., 2025).

    Each word has a softmax over the vision tokens of its cosine with them as both enter the decoder, each vision token
    one of its cosine with all of them in the tower (features of the last layer but one). A chosen token covers each of
    these rows by its weight in it; each time the one that adds most to what is covered best is chosen. Words weigh one
    over their number, vision tokens ``alpha`` over theirs. The question is all text behind the row's last image, where
    the code leaves out stop words and what benchmarks append; LLaVA's patches of padding take part, where it leaves
    them out. No attention is read, so no CLS token is needed.

    Parameters
    ----------
    text_temperature
        Of the softmax of words; the code has 0.02 for LLaVA, 0.01 for Qwen2.5-VL.
    vision_temperature
        Of that of vision tokens.
    alpha
        Weight of covering vision tokens.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; r is 0.8 by default, as in the code for Qwen2.5-VL.
    """

    key: ClassVar[str] = "mmtok"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.18264"
    default_r: ClassVar[float | None] = 0.8
    reads = Reads.TOWER | Reads.HIDDEN

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_temperature <= 0 or self.vision_temperature <= 0:
            raise ValueError("text_temperature and vision_temperature divide cosines: give more than 0.")

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Features."""
        return (view.tower.features(-2),)

    def choose(self, image: Image, count: int) -> Picked:
        """Choose greedily."""
        (features,) = image.values
        words = image.question
        by_word = (image.cosines(words, image.hidden) / self.text_temperature).softmax(dim=1) / max(len(words), 1)
        by_patch = (image.cosines(features, features) / self.vision_temperature).softmax(dim=1) / len(features)
        weights = torch.cat([by_word.to(by_patch), self.alpha * by_patch])
        covered = torch.zeros_like(weights[:, 0])
        chosen: list[Tensor] = []
        for _ in range(count):
            gain = (weights - covered[:, None]).clamp(min=0).sum(dim=0)
            gain = gain.index_fill(0, torch.stack(chosen), -torch.inf) if chosen else gain
            chosen.append(first_largest(gain))
            covered = torch.maximum(covered, weights[:, chosen[-1]])
        return Picked(torch.stack(chosen).sort().values)
