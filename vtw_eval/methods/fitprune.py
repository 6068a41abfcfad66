"""FitPrune: a few vision tokens leave after every layer, how many is fitted beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method, check_share, keep_best
from vtw_eval.methods.fitprune_recipe import read_recipe

DELETED = (
    *(14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4),
    *(26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
)
"""Of 576 vision tokens, how many leave in each layer of LLaVA-1.5-7B when 60 % of FLOPs shall go, as in the code."""

_OF = 576
_LEFT = tuple(_OF - gone for gone in accumulate(DELETED))


@dataclass(frozen=True, kw_only=True)
class FitPrune(Method):
    """Drop a few vision tokens after every layer, those that text and vision tokens attend to least (Ye et al., 2024).

    In each layer, the maximum over heads of the attention weights is averaged over the text behind the last image, and
    over the vision tokens that are left. Those with the lowest product of both averages leave before the next layer.
    The code lets them leave behind the attention of the same layer: what goes on, and what its KV cache holds, are
    the same, but here they still pay for that layer's output projection and FFN. How many leave is the code's table
    for 60 % less FLOPs of LLaVA-1.5-7B (449 of 576), as shares of the prompt's vision tokens; in a model of another
    number of layers, interpolated by depth.

    The paper fits such a table to attention statistics of some samples, by a rule (intersection of both averages'
    lowest) other than the one that its code then chooses by (product). For another model, ``vtw-eval fit-fitprune``
    fits one on a task (:func:`vtw_eval.methods.fitprune_fit.fit_table` in Python); other strengths are powers of a
    table's shares.

    Parameters
    ----------
    r
        Share of the vision tokens that is removed by the end; as the table says (the published one 0.78) unless given.
    table
        Vision tokens of a prompt, then how many of them leave after each layer, joined by dashes, as in ``8-2-0-1-0``.
        The published one unless given.
    recipe
        Instead: file that ``vtw-eval fit-fitprune`` has written, of a model with as many layers.
    """

    key: ClassVar[str] = "fitprune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2409.10197"
    reads = Reads.ATTENTION_BEFORE
    needs_vision: ClassVar[bool] = True

    r: float | None = None
    table: str | None = None
    recipe: str | None = None

    def __post_init__(self) -> None:
        if self.r is not None:
            check_share("r", self.r)
        if self.recipe is None:
            self._check_scale()
        elif self.table is not None:
            raise ValueError("give table or recipe, not both.")

    def _check_scale(self) -> None:
        left = self._left
        if self.r is not None and left[-1] in (0, left[0]):
            named = f"table={self.table!r}" if self.recipe is None else f"recipe={self.recipe}"
            raise ValueError(f"{named} removes all tokens or none, so r={self.r} cannot scale it.")

    def bind(self, anatomy: Anatomy) -> FitPrune:
        """Read the recipe, if there is one, and check it against the model.

        Raises
        ------
        ValueError
            If it cannot be read, or is of a model with another number of layers.
        """
        if self.recipe is not None:
            layers = len(self._left) - 1
            if layers != anatomy.num_layers:
                raise ValueError(
                    f"recipe={self.recipe} is of a model with {layers} decoder layers, this one has "
                    f"{anatomy.num_layers}: fit one to it by `vtw-eval fit-fitprune`."
                )
            self._check_scale()
        return self

    @cached_property
    def _left(self) -> tuple[int, ...]:
        """How many tokens of the table's prompt enter each layer, and leave the last one."""
        if self.recipe is not None:
            recipe = read_recipe(self.recipe)
            return tuple(recipe.vision - gone for gone in accumulate(recipe.deleted, initial=0))
        if self.table is None:
            return (_OF, *_LEFT)
        parts = self.table.split("-")
        if len(parts) < 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(
                f"table={self.table!r} is no table: write vision tokens and what leaves in each layer, joined "
                "by dashes, as in 8-2-0-1-0."
            )
        total, *deleted = map(int, parts)
        if not 0 < total >= sum(deleted):
            raise ValueError(f"table={self.table!r} removes {sum(deleted)} of {total} vision tokens.")
        return tuple(total - gone for gone in accumulate(deleted, initial=0))

    def scaled(self, strength: float, num_layers: int) -> FitPrune:
        """Remove this share by the end."""
        return replace(self, r=round(strength, 6))

    @property
    def _power(self) -> float:
        """Power of the published shares by which ``r`` are gone in the end."""
        if self.r is None:
            return 1.0
        return math.inf if self.r == 1 else math.log(1 - self.r) / math.log(self._left[-1] / self._left[0])

    def shares(self, num_layers: int) -> list[float]:
        """Return which share of the vision tokens enters each layer, ``[num_layers]``."""
        depth = np.arange(num_layers) / num_layers
        left = self._left
        of_table = np.interp(depth, np.arange(len(left)) / (len(left) - 1), np.array(left) / left[0])
        return [float(share) for share in of_table**self._power]

    def layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers that fewer tokens enter than the one before."""
        shares = self.shares(num_layers)
        return tuple(i for i in range(1, num_layers) if shares[i] < shares[i - 1])

    def empty_from(self, num_layers: int) -> int:
        """Return the first layer that no vision token enters, if there is one."""
        shares = self.shares(num_layers)
        return next((layer for layer, share in enumerate(shares) if share == 0), num_layers)

    def keep(self, view: LayerView) -> Tensor:
        """Keep the layer's share of the prompt's vision tokens, and all text."""
        share = self.shares(view.num_layers)[view.layer]
        count = torch.tensor([math.floor(total * share + 0.5) for total in view.vision_total.tolist()])
        if bool((count >= view.vision.sum(dim=1).cpu()).all()):
            return view.valid
        by_text = view.attention(view.layer - 1, view.instruction, heads="max")
        by_vision = view.attention(view.layer - 1, view.vision, heads="max")
        return keep_best(view, by_text * by_vision, count)
