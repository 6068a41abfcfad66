"""Last: the vision tokens at the end, to which attention of the last token is known to lean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Last(Scorer):
    """Keep the last vision tokens of a row: the bottom of its last image.

    FEATHER (https://arxiv.org/abs/2412.13180) shows that FastV mostly keeps these, because the rotary embedding favours
    what is near; a method that does no better than this control has that bias only.
    """

    key: ClassVar[str] = "last"
    reads = Reads.ROLES

    k: int = 0

    def score(self, view: LayerView) -> Tensor:
        """Return a higher one the later a token stands."""
        return view.index.float()
