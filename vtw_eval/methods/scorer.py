"""Methods that give each vision token a score and keep the best, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method, check_layer, check_share, keep_best, kept_count

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
        Share of the vision tokens that is removed.
    """

    needs_vision: ClassVar[bool] = True

    k: int = 2
    r: float = 0.5

    def __post_init__(self) -> None:
        check_share("r", self.r)

    def score(self, view: LayerView) -> Tensor:
        """Return the score of each current token, ``[rows, tokens]``; only those of vision tokens count.

        The higher the better, and of equal ones the earlier. ``view.layer`` is :attr:`k`.
        """
        raise NotImplementedError

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Check k against the number of layers."""
        check_layer("k", self.k, anatomy.num_layers)
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        return () if self.k == num_layers else (self.k,)

    def empty_from(self, num_layers: int) -> int:
        """Layer k if all vision tokens are removed."""
        return self.k if self.r == 1 else num_layers

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
        return keep_best(view, score, kept_count(view.vision_total, self.r))
