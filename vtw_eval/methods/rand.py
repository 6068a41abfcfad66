"""Rand: drop as many random tokens as there are vision tokens, whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method, check_layer, random_scores, ranks
from vtw_eval.methods.vtw.method import default_k


@dataclass(frozen=True, kw_only=True)
class Rand(Method):
    """Drop as many tokens as there are vision tokens, drawn from all positions, at layer ``k`` (VTW's Table 2).

    The last prompt token may go too; the answer is then read from the last token that is left, as in the paper's
    code, and is seldom any good. Drawn without replacement from (seed, prompt).

    Parameters
    ----------
    k
        Number of layers that see everything. ``None``: as for VTW.
    seed
        Seed of the draws.
    """

    key: ClassVar[str] = "rand"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.05803"
    reads = Reads.IDS
    needs_vision: ClassVar[bool] = True

    k: int | None = None
    seed: int = 0

    def bind(self, anatomy: Anatomy) -> Rand:
        """Fill in the default k and check k against the number of layers."""
        k = default_k(anatomy) if self.k is None else self.k
        check_layer("k", k, anatomy.num_layers)
        return replace(self, k=k)

    def scaled(self, strength: float, num_layers: int) -> Rand:
        """Drop at another layer, the earlier the stronger."""
        return replace(self, k=num_layers - round(strength * num_layers))

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        assert self.k is not None, "bind() fills in k"
        return () if self.k == num_layers else (self.k,)

    def idle_from(self, empty: int) -> float:
        """One layer later than methods that draw no text: where vision tokens leave, it is asked together with them."""
        return empty + 1

    def keep(self, view: LayerView) -> Tensor:
        """As many tokens of the prompt as it has text tokens, at random, and all generated ones."""
        prompt = view.valid & ~view.generated
        rank = ranks(-random_scores(view, self.seed).masked_fill(~prompt, torch.inf))
        return (rank < (prompt & ~view.vision).sum(dim=1, keepdim=True)) & prompt | view.generated
