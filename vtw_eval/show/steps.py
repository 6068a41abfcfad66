"""Which tokens enter which layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtw_eval.engine import Trace


@dataclass(frozen=True)
class Step:
    """Layers that one after another get the same tokens of a prompt."""

    first: int
    """The first of these layers."""
    last: int
    """The last one."""
    kept: Tensor
    """Boolean ``[prompt tokens]`` on the CPU: those that enter them."""
    into: Tensor
    """Place of the token with which each goes on, long ``[prompt tokens]`` on the CPU: itself, or the one that it was
    merged into; -1 if it is gone, or the method does not tell into which it was merged."""

    @property
    def layers(self) -> str:
        """In words."""
        return f"layer {self.first}" if self.first == self.last else f"layers {self.first} to {self.last}"

    @property
    def groups(self) -> list[Tensor]:
        """The tokens of the prompt that were merged into one, boolean ``[prompt tokens]`` each, of two or more."""
        places, counts = self.into[self.into >= 0].unique(return_counts=True)
        return [self.into == place for place in places[counts > 1]]


def steps(trace: Trace, row: int = 0) -> list[Step]:
    """Return what the layers of a model got, a step for each time that it changes.

    Parameters
    ----------
    trace
        After the prompt has run.
    row
        Of the batch.

    Raises
    ------
    RuntimeError
        If the model has not run yet.
    """
    found: list[Step] = []
    for layer in range(trace.tokens_per_layer.shape[1]):
        assert trace.reduction is not None, "its tokens were counted"
        layout = trace.reduction.layouts[layer]
        kept = trace.kept(layer)[row].cpu()
        told = layout is not None and layout.into is not None
        into = layout.into[row].cpu() if told else torch.arange(len(kept))  # type: ignore[union-attr,index]
        into = torch.where(kept | told, into, -1)
        if found and torch.equal(found[-1].kept, kept) and torch.equal(found[-1].into, into):
            found[-1] = Step(found[-1].first, layer, kept, into)
        else:
            found.append(Step(layer, layer, kept, into))
    return found


def runs(counts: Sequence[int]) -> str:
    """Return counts by layer, equal ones of neighbours together: ``0-1: 90; 2-9: 26``."""
    parts: list[str] = []
    begin = 0
    for layer in range(1, len(counts) + 1):
        if layer == len(counts) or counts[layer] != counts[begin]:
            parts.append(f"{begin}-{layer - 1}: {counts[begin]}" if layer - 1 > begin else f"{begin}: {counts[begin]}")
            begin = layer
    return "; ".join(parts)
