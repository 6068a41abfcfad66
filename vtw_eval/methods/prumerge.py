"""LLaVA-PruMerge: patches that stand out for the CLS token, each with what resembles it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView
from vtw_eval.methods.image_wise import Image, Picked
from vtw_eval.methods.outliers import outliers
from vtw_eval.methods.tower_merging import TowerMerging

_NEIGHBOURS = 32


@dataclass(frozen=True, kw_only=True)
class PruMerge(TowerMerging):
    """Keep patches that stand out, with what resembles each, and a token of all others (Shang et al., ICCV 2025).

    Attention of the CLS token in the last tower layer, over the full width as if there were one head. Outliers by
    quartiles stay, at least one. To the features of each (of the last layer but one, as in the code) are added those of
    the 32 tokens with the most similar keys, kept ones among them, each times its attention: a plain sum in the code,
    where the paper has a weighted mean. One more token is the sum of all that go, times their attention. They stand in
    descending order of attention, that one last. Without a CLS token, attention of all tokens. The paper's own numbers
    are mostly of tuned models.

    Parameters
    ----------
    plus
        PruMerge+: besides, tokens at equal distances stay, about three for each outlier.
    space
        As in :class:`~vtw_eval.methods.tower_merging.TowerMerging`.
    r, tokens, position
        As in :class:`~vtw_eval.methods.image_wise.ImageWise`, instead of the number that outliers give; the token of
        all others counts as one that stays. Not with ``plus``.
    """

    key: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.15388"

    plus: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plus and self._fixed:
            raise ValueError("plus=true decides by outliers how many tokens stay: leave out r and tokens.")

    @property
    def _fixed(self) -> bool:
        return self.r is not None or self.tokens is not None

    @property
    def adaptive(self) -> str:
        """Without ``r`` and ``tokens`` the number depends on the attention."""
        if self._fixed:
            return ""
        return (
            "prumerge keeps as many vision tokens as stand out: give r or tokens (without plus) for a number that is "
            "known beforehand."
        )

    def scaled(self, strength: float, num_layers: int) -> PruMerge | None:
        """Remove this share; None with ``plus``."""
        return None if self.plus else replace(self, r=round(strength, 6), tokens=None)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the last layer and the one before."""
        return (-2, -1)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Features, attention that tokens receive, and keys."""
        keys = view.tower.keys(-1, heads="each").flatten(-2)
        return self.merged(view), view.tower.received(-1, heads="joined"), keys

    def choose(self, image: Image, count: int) -> Picked:
        """Choose, and add up."""
        features, attention, keys = image.values
        order = attention.argsort(descending=True, stable=True)
        kept = order[: count - 1 if count else max(int(outliers(attention).sum()), 1)]
        if self.plus:
            spread = torch.arange(0, len(image) - 1, max(len(image) // len(kept) // 3, 1), device=order.device)
            kept = torch.cat([kept, spread[~torch.isin(spread, kept)]])
        alike = image.cosines(keys[kept], keys)
        alike[torch.arange(len(kept)), kept] = -torch.inf
        near = alike.argsort(dim=1, descending=True, stable=True)[:, : min(_NEIGHBOURS, len(image) - 1)]
        weighted = features * attention[:, None].to(features)
        made = features[kept] + weighted[near].sum(dim=1)
        gone = order[~torch.isin(order, kept)]
        if len(gone):
            kept, made = torch.cat([kept, gone[:1]]), torch.cat([made, weighted[gone].sum(dim=0, keepdim=True)])
        return Picked(kept, self.entering(image, made))
