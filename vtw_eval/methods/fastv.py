"""FastV: after k layers, keep the vision tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import random_scores
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class FastV(Scorer):
    """Keep the vision tokens that the last prompt token attends to most in layer k-1 (Chen et al., ECCV 2024).

    The paper ranks by the attention received from all tokens, its code by that of the last token alone, averaged over
    heads; so does this. With ``k=0`` there is no attention yet and the choice is random, as in the code.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens. 2 is what the VTW paper's FLOPs say; the lmms-eval port of FastV
        uses 3.
    r
        Share of the vision tokens that is removed (the paper's R).
    seed
        Seed of the choice at ``k=0``.
    """

    key: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.06764"

    seed: int = 0

    @property
    def reads(self) -> Reads:
        """Attention, or with ``k=0`` the ids from which random numbers are drawn."""
        return Reads.ATTENTION_BEFORE if self.k else Reads.IDS

    def score(self, view: LayerView) -> Tensor:
        """Attention received in layer k-1."""
        return view.attention(self.k - 1) if self.k else random_scores(view, self.seed)
