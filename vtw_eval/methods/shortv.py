"""ShortV: all vision tokens stay, but some layers leave them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method

PUBLISHED = (31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19)
"""The layers of LLaVA-1.5-7B that its code freezes, in the order in which they matter least."""

_OF = 32


@dataclass(frozen=True, kw_only=True)
class ShortV(Method):
    """Leave vision tokens as they are in the layers that change the answer least (Yuan et al., ICCV 2025).

    In such a layer vision tokens ask nothing and pass by its FFN; their keys and values are those of the states that
    enter it, so text attends to them as ever. No token is removed: the KV cache and decode steps stay as they are, and
    a layer saves five sixths of what a vision token costs in LLaVA-1.5-7B. The savings are real, and what the FLOPs
    count.

    Which layers matter least is found for each checkpoint beforehand, by how far the logits of the answer's first token
    move when one layer is frozen (:func:`vtw_eval.methods.layer_order.find_order`). The published list is that of
    LLaVA-1.5-7B, from its code; a model of another number of layers needs one of its own, and any other is better
    given one.

    Parameters
    ----------
    order
        Layers, those first that matter least, joined by dashes, as in ``31-29-30``. The published one of 19 layers,
        for models of 32, unless given.
    n
        How many of them are frozen; all unless given.
    """

    key: ClassVar[str] = "shortv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.00502"

    order: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        listed = self._listed
        if len(set(listed)) < len(listed):
            raise ValueError(f"order={self.order!r} names a layer twice.")
        if self.n is not None and not 0 <= self.n <= len(listed):
            raise ValueError(
                f"n={self.n} is out of range: {len(listed)} layers are listed, so n must be 0..{len(listed)}."
            )

    @property
    def _listed(self) -> tuple[int, ...]:
        if self.order is None:
            return PUBLISHED
        parts = self.order.split("-")
        if not all(part.isdecimal() for part in parts):
            raise ValueError(f"order={self.order!r} is no list of layers: write them joined by dashes, as in 31-29-30.")
        return tuple(map(int, parts))

    def bind(self, anatomy: Anatomy) -> ShortV:
        """Fill in how many layers are listed, and check all of them against the model.

        Raises
        ------
        ValueError
            If no list is published for so many layers, or one names a layer that the model lacks.
        """
        layers = anatomy.num_layers
        if self.order is None and layers != _OF:
            raise ValueError(
                f"shortv has a published list of layers for LLaVA-1.5-7B's {_OF} layers, and this model has {layers}: "
                "give order=..., which vtw_eval.methods.layer_order.find_order() finds on samples."
            )
        if outside := [layer for layer in self._listed if layer >= layers]:
            raise ValueError(f"order names layer {outside[0]}, but this model has the layers 0..{layers - 1}.")
        return replace(self, n=len(self._listed) if self.n is None else self.n)

    def scaled(self, strength: float, num_layers: int) -> ShortV:
        """Freeze this share of the listed layers."""
        return replace(self, n=round(strength * len(self._listed)))

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        """Return the first ``n`` of the list."""
        return self._listed[: self.n]

    def layers(self, num_layers: int) -> Sequence[int]:
        """No layer: nothing is ever removed."""
        return ()

    def keep(self, view: LayerView) -> Tensor:
        """Never called."""
        raise AssertionError("ShortV removes nothing")
