"""VTC-CLS: the patches that the vision tower's CLS token attends to in several layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.fastervlm import FasterVLM


@dataclass(frozen=True, kw_only=True)
class VTCCLS(FasterVLM):
    """Keep what the CLS token attends to most in several layers of the vision tower (Wang et al., 2024).

    The sum over the layers from ``first`` to the last but one of the mean over heads. The code has no default for the
    first layer, nor for how many tokens stay; here they are the upper half of the tower and a quarter. Without a CLS
    token, and for tiles, as :class:`~vtw_eval.methods.fastervlm.FasterVLM`.

    Parameters
    ----------
    first
        First layer of the tower that counts, half of its layers unless given.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`; r is 0.75 by default.
    """

    key: ClassVar[str] = "vtc_cls"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.05819"

    first: int | None = None

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers that count.

        Raises
        ------
        ValueError
            If there is none.
        """
        last = num_layers - 2
        first = min(num_layers // 2, last) if self.first is None else self.first
        if not 0 <= first <= last:
            raise ValueError(f"first={self.first} is out of range: this tower has {num_layers} layers, so 0..{last}.")
        return range(first, last + 1)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Attention that tokens receive, sum over layers."""
        layers = self.tower_layers(view.tower.num_layers)
        total = view.tower.received(layers[0])
        for layer in layers[1:]:
            total = total + view.tower.received(layer)
        return (total,)
