"""DivPrune: the most diverse vision tokens, whatever they show and whatever is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Asked
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class DivPrune(Scorer):
    """Keep vision tokens that are far from each other, before the first layer (Alvar et al., CVPR 2025).

    The largest smallest distance (1 - cosine of the features that enter the decoder), by the greedy rule of the code:
    first the token whose nearest other one is farthest, then each time the one whose nearest chosen one is farthest.
    The code rounds the number of tokens to even halves and looks at the first image only; here halves are rounded up,
    and all images of a row are one set.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens; 0 in the paper.
    r
        Share of the vision tokens that is removed; 0.5 unless ``tokens`` is given. The paper removes 0.902.
    tokens
        Number of vision tokens that stay for each image, instead of ``r``.
    """

    key: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.02175"
    reads = Reads.HIDDEN

    k: int = 0

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Similarities: each vision token of a row with each, ``2 v v hidden``."""
        return {"similarities": sum(2 * v**2 * asked.hidden for v in asked.before.tolist())}

    def score(self, view: LayerView) -> Tensor:
        """Chosen tokens from the first to the last, the others below them."""
        score = torch.zeros(view.vision.shape, device=view.hidden.device)
        for row, count in enumerate(self.kept(view).tolist()):
            places = view.vision[row].nonzero().flatten().to(score.device)
            if len(places):
                chosen = places[most_diverse(view.hidden[row, places], count)]
                score[row, chosen] = torch.arange(len(chosen), 0, -1, device=score.device, dtype=score.dtype)
        return score


def most_diverse(features: Tensor, count: int) -> Tensor:
    """Return the numbers of tokens with a large smallest distance, in the order in which they are chosen.

    Parameters
    ----------
    features
        ``[tokens, width]``, one or more.
    count
        How many, at most as many as there are.

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
    for _ in range(min(count, len(unit))):
        chosen.append(_first_largest(nearest))
        # Before the first choice "nearest" is that among all others, after it that among the chosen ones.
        nearest = distance[chosen[-1]] if len(chosen) == 1 else torch.minimum(nearest, distance[chosen[-1]])
        nearest = nearest.index_fill(0, torch.stack(chosen), -torch.inf)
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=unit.device)


def _first_largest(values: Tensor) -> Tensor:
    """Return the number of the first of the largest values; ``argmax`` promises no order."""
    return (values == values.max()).to(torch.uint8).argmax()
