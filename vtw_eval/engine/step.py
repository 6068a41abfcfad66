"""One forward pass of the decoder under a method: what its hooks tell each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtw_eval.engine.layout import Layout, Reduction
from vtw_eval.engine.reads import Look
from vtw_eval.engine.tower import TowerView


@dataclass
class RotaryCall:
    """One call of the rotary module, to be repeated with other positions."""

    output: Any
    positions: Tensor
    again: Callable[[Tensor], Any]


@dataclass
class Step:
    """A prefill, or a decode step."""

    reduction: Reduction
    decoding: bool
    queries: int
    total: int
    """Length of the sequence after this pass, removed tokens counted."""
    continued: bool = False
    """Whether this is a later step of a generation without cache."""
    layout: Layout | None = None
    """Layout of the current layer in a prefill."""
    planned: dict[int, tuple[Layout, Tensor] | None] = field(default_factory=dict)
    """Layer to choice, for methods that could choose before the pass: the layout and the chosen slots of the one
    before; None where all go on."""
    cache: Cache | None = None
    """The KV cache of this pass: that of the decoder or, if that got none, the one that it made for its layers."""
    looks: list[Look] = field(default_factory=list)
    """What the method has read."""
    ran: int = 0
    """How many hooks on layers have run."""
    due: int | None = None
    """The layer that is called next; a look at a layer calls its forward too, and does not run it."""
    entered: dict[int, tuple[Tensor, Mapping[str, Any]]] = field(default_factory=dict)
    """What entered a layer whose attention a method wants to see at the next one."""
    tower: TowerView | None = None
    """The vision tower, if a method reads it."""
    embeddings: Tensor | None = None
    """What entered the first layer, if a method reads it."""
    deepstack: tuple[Tensor, Sequence[Tensor]] | None = None
    """Which tokens get vision features after some layers, boolean ``[rows, tokens]``, and the features by layer."""
    dtype: torch.dtype = torch.float32
    """Of the hidden states, for masks to build (a quantized layer's weights would tell another)."""
    rotary: list[RotaryCall] = field(default_factory=list)
    restored: list[Tensor] = field(default_factory=list)
    """Outputs that have the prompt's length already."""
    memo: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)
    cut: tuple[Layout, tuple[Any, ...], dict[str, Any]] | None = None
    """Layout, the model's mask and positions, and what they were cut to, of the layer before."""

    def once(self, layout: Layout | None, source: Any, make: Callable[[], Any], *more: Any) -> Any:
        """Return ``make()``, computed once for all layers with this layout and this object of the model."""
        key = (id(layout), id(source), *more)
        if key not in self.memo:
            self.memo[key] = (make(), layout, source)  # holding both keeps their ids from being used again
        return self.memo[key][0]
