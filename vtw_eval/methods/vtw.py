"""Visual Tokens Withdrawal: no vision token enters layer k or any later one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView
from vtw_eval.methods.base import Method, Position, check_layer, text_only

PAPER_K: tuple[tuple[str, int], ...] = (
    (r"llava-(v?1\.5)-13b", 20),
    (r"llava-(v?1\.5)-7b", 16),
    (r"llava-v1\.6-vicuna-7b", 16),
    (r"video-llava-7b", 16),
    (r"qwen2-vl-2b", 18),
    (r"internvl2-4b", 16),
)
"""Checkpoint name pattern and the k of the paper's Tables 2, 3 and 8."""


def default_k(anatomy: Anatomy) -> int:
    """Return the paper's k for a checkpoint that the paper reports, half of the decoder layers otherwise."""
    for pattern, k in PAPER_K:
        if re.search(pattern, anatomy.name, re.IGNORECASE):
            return min(k, anatomy.num_layers)
    return anatomy.num_layers // 2


@dataclass(frozen=True, kw_only=True)
class VTW(Method):
    """Withdraw all vision tokens at layer ``k`` (Lin et al., AAAI 2025).

    Parameters
    ----------
    k
        Number of decoder layers that still see the vision tokens: layers 0..k-1 run on everything, layers k..N-1 on
        the text. ``k=0`` withdraws before the first layer, ``k=N`` is the unchanged model. The paper's Eq. 5 counts
        from 1, its code and its FLOPs column from 0; this is the latter. ``None``: :func:`default_k`.
    position
        "keep": text tokens keep their positions (the paper's choice, Table 6). "rearrange": from layer k on they are
        numbered without gaps, starting at the position of the first one.
    """

    key: ClassVar[str] = "vtw"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.05803"

    k: int | None = None
    position: Position = "keep"

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 0:
            raise ValueError(f"k={self.k} is out of range: k is a number of layers, 0 or more.")
        if self.position not in ("keep", "rearrange"):
            raise ValueError(f"position={self.position!r} is unknown: choose 'keep' or 'rearrange'.")

    @property
    def positions(self) -> Position:
        """The ``position`` parameter."""
        return self.position

    def bind(self, anatomy: Anatomy) -> VTW:
        """Fill in the default k and check k against the number of layers."""
        k = default_k(anatomy) if self.k is None else self.k
        check_layer("k", k, anatomy.num_layers)
        return replace(self, k=k)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Layer k, or none when k is the number of layers."""
        assert self.k is not None, "bind() fills in k"
        return () if self.k == num_layers else (self.k,)

    def keep(self, view: LayerView) -> Tensor:
        """Everything but vision tokens."""
        return text_only(view)
