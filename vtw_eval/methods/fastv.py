"""FastV: after k layers, keep the vision tokens that the last prompt token attends to most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method, check_layer, check_share, keep_best, kept_count, random_scores


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Keep the vision tokens that the last prompt token attends to most in layer k-1 (Chen et al., ECCV 2024).

    The paper ranks by the attention received from all tokens, its code by that of the last token alone, averaged over
    heads; so does this. Ranked once, in the prefill, over the vision tokens of all images of a row; order and
    positions are kept. With ``k=0`` there is no attention yet and the choice is random, as in the code.

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
    needs: ClassVar[str] = "queries and keys of layer k-1 (any attention implementation)"

    k: int = 2
    r: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("r", self.r)

    @property
    def looks_back(self) -> bool:
        """The scores are the attention of layer k-1."""
        return True

    def bind(self, anatomy: Anatomy) -> FastV:
        """Check k against the number of layers."""
        check_layer("k", self.k, anatomy.num_layers)
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        return () if self.k == num_layers else (self.k,)

    def keep(self, view: LayerView) -> Tensor:
        """Keep the best-scored vision tokens and all text."""
        if not view.vision.any():
            return view.valid
        score = view.attention(self.k - 1) if self.k else random_scores(view, self.seed)
        return keep_best(view, score, kept_count(view.vision_total, self.r))
