"""Which tokens enter which layers."""

from __future__ import annotations

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
    merged: Tensor
    """Boolean ``[prompt tokens]`` on the CPU: those of them that stand for several."""

    @property
    def layers(self) -> str:
        """In words."""
        return f"layer {self.first}" if self.first == self.last else f"layers {self.first} to {self.last}"


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
        merged = torch.zeros_like(kept)
        if layout is not None and layout.size is not None:
            own = layout.valid[row]
            merged[layout.index[row][own].cpu()] = (layout.size[row][own] > 1).cpu()
        if found and torch.equal(found[-1].kept, kept) and torch.equal(found[-1].merged, merged):
            found[-1] = Step(found[-1].first, layer, kept, merged)
        else:
            found.append(Step(layer, layer, kept, merged))
    return found
