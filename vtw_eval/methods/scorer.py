"""Methods that give each vision token a score and keep the best, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method, check_layer, keep_best
from vtw_eval.methods.budget import checked_share, kept_of_rows

Self = TypeVar("Self", bound="Scorer")


@dataclass(frozen=True, kw_only=True)
class Scorer(Method):
    """Base of methods that keep the best-scored vision tokens and all text; order and positions are kept.

    A subclass declares its key, what it reads, and :meth:`score`. Scored once, in the prefill, over the vision tokens
    of all images of a row.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is removed; 0.5 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each image, instead of ``r``; the images of a row share their sum.
    """

    needs_vision: ClassVar[bool] = True

    k: int = 2
    r: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "r", checked_share(self.r, self.tokens))

    def score(self, view: LayerView) -> Tensor:
        """Return the score of each current token, ``[rows, tokens]``; only those of vision tokens count.

        The higher the better, and of equal ones the earlier. ``view.layer`` is :attr:`k`.
        """
        raise NotImplementedError

    def scaled(self: Self, strength: float, num_layers: int) -> Self:
        """Remove this share."""
        return replace(self, r=round(strength, 6), tokens=None)

    def kept(self, view: LayerView) -> Tensor:
        """Return how many vision tokens of each row stay, long ``[rows]``."""
        return kept_of_rows(view.prompt.vision, self.r, self.tokens)

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Check k against the number of layers."""
        check_layer("k", self.k, anatomy.num_layers)
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        return () if self.k == num_layers else (self.k,)

    def empty_from(self, num_layers: int) -> int:
        """Layer k if all vision tokens are removed."""
        return self.k if self.r == 1 or self.tokens == 0 else num_layers

    def keep(self, view: LayerView) -> Tensor:
        """Keep the best-scored vision tokens and all text.

        Raises
        ------
        ValueError
            If the score has another shape than the tokens.
        """
        if not view.vision.any():
            return view.valid
        score = self.score(view)
        if score.shape != view.vision.shape:
            raise ValueError(
                f"{self.key}: score() gave {tuple(score.shape)} before layer {view.layer}; it must be [rows, tokens], "
                f"here {tuple(view.vision.shape)}."
            )
        return keep_best(view, score, self.kept(view))
