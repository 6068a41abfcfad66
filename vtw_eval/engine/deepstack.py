"""Vision features that a decoder adds after some of its first layers (DeepStack, as in Qwen3-VL).

The decoder adds them to all vision tokens; after a layer that has lost some, they would fit no longer. So those are
taken away from the decoder and added before the layers here, to the tokens that are left.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtw_eval.engine.layout import pick
from vtw_eval.engine.step import Step


def take_deepstack(step: Step, kwargs: dict[str, Any], first: int, num_layers: int) -> None:
    """Take from the decoder's arguments the features that belong after the first choice.

    Parameters
    ----------
    step
        The pass, which keeps them.
    kwargs
        Arguments of the decoder; changed.
    first
        Layer of the first choice; features for the layers before stay with the decoder.
    num_layers
        Decoder layers.

    Raises
    ------
    ValueError
        If features are added after the last layer.
    """
    features = kwargs.get("deepstack_visual_embeds")
    if features is None or len(features) <= first:
        return
    if len(features) >= num_layers:
        raise ValueError("vision features added after the last layer are not supported.")
    step.deepstack = (kwargs["visual_pos_masks"], features)
    kwargs["deepstack_visual_embeds"] = features[:first]


def add_deepstack(layer: int, step: Step, hidden: Tensor, first: float) -> Tensor:
    """Return hidden states with the vision features that belong after layer ``layer - 1``.

    Parameters
    ----------
    layer
        The layer about to run.
    step
        The pass.
    hidden
        What enters the layer, ``[rows, slots, width]``.
    first
        As in :func:`take_deepstack`.
    """
    if step.deepstack is None or not first < layer <= len(step.deepstack[1]):
        return hidden
    where, features = step.deepstack
    full = hidden.new_zeros(*where.shape, hidden.shape[-1])
    full[where.to(hidden.device)] = features[layer - 1].to(hidden)
    return hidden + (full if step.layout is None else pick(full, step.layout.index, -2))
