"""DART: vision tokens that are least like a few pivots, so that few of them say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Asked, largest, precise
from vtw_eval.methods.budget import kept_of_rows
from vtw_eval.methods.scorer import Scorer

DEFAULT_TOKENS = 128
"""What the code keeps of an image of LLaVA-1.5, before it rounds up and adds pivots."""


@dataclass(frozen=True, kw_only=True)
class DART(Scorer):
    """Keep a few pivots, and the vision tokens that are least like each of them (Wen et al., EMNLP 2025).

    Pivots are the vision tokens, and the text tokens behind the last image, whose keys in layer k-1 (rotated, all
    heads) have the largest L1 norm. Each pivot in turn, from the first place to the last, takes its share of the
    vision tokens that are not taken yet: those of the lowest cosine with it, of hidden states before layer k behind
    the model's last norm. The code goes through pivots in the order of a Python set, which is none; it shows each
    pivot the same number of tokens, where here the first ones take one more if a number is not divisible. All
    images of a row are one set. An L1 norm of what is rotated depends on the position: ``generate`` counts
    positions without padding, as a prompt alone has them; a forward pass without ``position_ids`` may count padding
    too. The code's ``reduction_ratio`` for Qwen2-VL is 0.778, which is ``r`` here.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens, at least one.
    r
        Share of the vision tokens that is removed, exactly.
    tokens
        Number of vision tokens that stay for each image, as the code takes it: rounded up to a number that all pivots
        can share, with the vision pivots on top. So 64, 128 and 192 keep 68, 132 and 196. 128 unless ``r`` is given.
    vision_pivots, text_pivots
        Number of pivots, fewer where a prompt has fewer such tokens.
    """

    key: ClassVar[str] = "dart"
    paper: ClassVar[str] = "https://arxiv.org/abs/2502.11494"
    reads = Reads.KEYS_BEFORE | Reads.NORMED

    vision_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        if self.r is None and self.tokens is None:
            object.__setattr__(self, "tokens", DEFAULT_TOKENS)
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k={self.k} is out of range: the keys of the layer before are read, so 1 or more.")
        if self.vision_pivots < 1 or self.text_pivots < 0:
            raise ValueError(
                f"vision_pivots={self.vision_pivots} or text_pivots={self.text_pivots} is out of range: 1 or more, and "
                "0 or more."
            )

    def kept(self, view: LayerView) -> Tensor:
        """Return how many vision tokens of each row stay, long ``[rows]``."""
        return self._kept(view.prompt.vision)

    def _kept(self, vision: Tensor) -> Tensor:
        count = kept_of_rows(vision, self.r, self.tokens)
        if self.tokens is None:
            return count
        pivots = self.vision_pivots + self.text_pivots
        whole = (count + pivots - 1) // pivots * pivots + self.vision_pivots
        return torch.where(count > 0, whole, 0).minimum(vision.sum(dim=1))

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Similarities of pivots with each vision token of a row, ``2 pivots v hidden``, where any is chosen so."""
        pivots = self.vision_pivots + asked.prompt.instruction.sum(dim=1).clamp(max=self.text_pivots).cpu()
        kept = self._kept(asked.prompt.vision).cpu()
        compared = (self.vision_pivots < kept) & (kept < asked.before)
        return {"similarities": 2 * asked.hidden * int((pivots * asked.before)[compared].sum())}

    def score(self, view: LayerView) -> Tensor:
        """1 for what stays, 0 for the others."""
        count, now = self.kept(view), view.vision.sum(dim=1)
        if bool((count >= now).all()):
            return view.vision.float()
        states = view.normed
        length = precise(view.keys_before()).abs().sum(dim=(2, 3))
        score = torch.zeros_like(length)
        for row, (left, total) in enumerate(zip(count.tolist(), now.tolist(), strict=True)):
            vision, text = (mask[row].nonzero().flatten().to(length.device) for mask in (view.vision, view.instruction))
            pivots = largest(length[row, vision], min(self.vision_pivots, left))
            score[row, vision[pivots]] = 1
            if len(pivots) < left < total:
                others = text[largest(length[row, text], self.text_pivots)]
                chosen = least_like(states[row, vision], pivots, states[row, others], left - len(pivots))
                score[row, vision[chosen]] = 1
        return score


def least_like(features: Tensor, pivots: Tensor, others: Tensor, count: int) -> Tensor:
    """Return the numbers of tokens that pivots take, each in turn those that are least like it.

    Parameters
    ----------
    features
        Of tokens, ``[tokens, width]``.
    pivots
        Numbers of tokens that are pivots, long; nobody takes them.
    others
        Features of pivots that are none of these tokens, ``[n, width]``; their turn comes last.
    count
        How many to take, at most as many as there are beside the pivots.

    Returns
    -------
    Tensor
        Long ``[count]``; of equally similar tokens the earlier one is taken.
    """
    unit = normalize(precise(features), dim=-1)
    likeness = torch.cat([unit[pivots], normalize(precise(others), dim=-1)]) @ unit.T
    free = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    free[pivots] = False
    taken: list[Tensor] = []
    for number, cosine in enumerate(likeness):
        share = count // len(likeness) + (number < count % len(likeness))
        taken.append(cosine.masked_fill(~free, torch.inf).argsort(stable=True)[:share])
        free[taken[-1]] = False
    return torch.cat(taken)
