"""DivPrune: the most diverse vision tokens, whatever they show and whatever is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.methods.selector import Selector, first_largest


@dataclass(frozen=True, kw_only=True)
class DivPrune(Selector):
    """Keep vision tokens that are far from each other, before the first layer (Alvar et al., CVPR 2025).

    The largest smallest distance (1 - cosine of the features that enter the decoder), by the greedy rule of the code:
    first the token whose nearest other one is farthest, then each time the one whose nearest chosen one is farthest.
    The code rounds the number of tokens to even halves and looks at the first image only; here halves are rounded up,
    and all images of a row are one set. The paper removes a share of 0.902.
    """

    key: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.02175"
    question_independent = True

    def choose(self, features: Tensor, question: Tensor, count: int) -> Tensor:
        """See :func:`most_diverse`."""
        return most_diverse(features, count)


def most_diverse(features: Tensor, count: int) -> Tensor:
    """Return the numbers of tokens with a large smallest distance, in the order in which they are chosen.

    Parameters
    ----------
    features
        ``[tokens, width]``, one or more.
    count
        How many, one or more, at most as many as there are.

    Returns
    -------
    Tensor
        Long ``[count]``; of equally far tokens the earlier one is chosen.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.T
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    nearest = distance.masked_fill(itself, torch.inf).amin(dim=1)
    chosen: list[Tensor] = []
    for _ in range(count):
        chosen.append(first_largest(nearest))
        # Before the first choice "nearest" is that among all others, after it that among the chosen ones.
        nearest = distance[chosen[-1]] if len(chosen) == 1 else torch.minimum(nearest, distance[chosen[-1]])
        nearest = nearest.index_fill(0, torch.stack(chosen), -torch.inf)
    return torch.stack(chosen)
