"""Looking on while a prompt runs under a method: what enters each layer, and the attention that it will pay.

A method chooses; an observer only looks. It sees a layer exactly as it is about to run: after the method's choice, with
the mask and positions cut to the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.layout import Layout, Prompt
from vtw_eval.engine.probes import AttentionRows, attention_rows


@dataclass(frozen=True)
class Entering:
    """What is about to enter a decoder layer, in a prefill."""

    layer: int
    """Index of the layer."""
    prompt: Prompt
    """Roles of the prompt's tokens, and where an answer behind it begins."""
    index: Tensor
    """Place of each token in the prompt, long ``[rows, slots]``."""
    valid: Tensor
    """Boolean ``[rows, slots]``, False for padding."""
    hidden: Tensor = field(repr=False)
    """Hidden states, ``[rows, slots, width]``."""
    arguments: Mapping[str, Any] = field(repr=False)
    """The layer's other arguments."""
    anatomy: Anatomy = field(repr=False)
    """The model."""

    def attention(self, queries: Tensor) -> Iterator[AttentionRows]:
        """Yield the attention weights of some tokens over those that enter, a few queries at a time.

        Parameters
        ----------
        queries
            Boolean ``[rows, slots]``; padding does not count.

        Raises
        ------
        ValueError
            If the layer's attention does not go through transformers' attention interface, or is not plain scaled dot
            products (attention sinks, position biases).
        """
        layer, config = self.anatomy.layers[self.layer], self.anatomy.text_config
        return attention_rows(layer, self.hidden, self.arguments, config, queries, self.valid)


Observer = Callable[[Entering], None]
"""Called before each decoder layer of a prefill, in their order."""


def entering(
    layer: int, prompt: Prompt, layout: Layout | None, hidden: Tensor, arguments: Mapping[str, Any], anatomy: Anatomy
) -> Entering:
    """Return what is about to enter a layer; without a layout it is the whole prompt."""
    if layout is not None:
        return Entering(layer, prompt, layout.index, layout.valid, hidden, arguments, anatomy)
    index = torch.arange(prompt.length, device=prompt.valid.device).expand_as(prompt.valid)
    return Entering(layer, prompt, index, prompt.valid, hidden, arguments, anatomy)
