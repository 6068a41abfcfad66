"""What a method did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtw_eval.engine.layout import Reduction
from vtw_eval.engine.view import Look, Reducer


@dataclass
class Trace:
    """What an installed method really did in the last prefill."""

    method: Reducer
    """The method with its defaults filled in."""
    reduction: Reduction | None = None
    """Prompt and layouts; None until the model has run."""
    prefills: int = 0
    """How many prompts (batches of them) have run; a generation has one."""
    looks: Sequence[Look] = ()
    """What the method has read and the model had to compute for it."""
    frozen: frozenset[int] = frozenset()
    """Layers that have left vision tokens as they were."""

    def kept(self, layer: int) -> Tensor:
        """Boolean ``[rows, tokens]``: the prompt's tokens that entered a layer.

        Raises
        ------
        RuntimeError
            If the model has not run yet.
        """
        return self._ran().kept(layer)

    @property
    def tokens_per_layer(self) -> Tensor:
        """Long ``[rows, layers]`` on the CPU: tokens that entered each layer, padding left out."""
        return self._count(torch.ones_like(self._ran().prompt.valid))

    @property
    def vision_per_layer(self) -> Tensor:
        """Long ``[rows, layers]`` on the CPU: vision tokens that entered each layer."""
        return self._count(self._ran().prompt.vision)

    @property
    def updated_per_layer(self) -> Tensor:
        """Long ``[rows, layers]`` on the CPU: tokens that each layer has updated, all that entered it or text alone."""
        updated = self.tokens_per_layer
        for i in self.frozen:
            updated[:, i] -= self.vision_per_layer[:, i]
        return updated

    def _ran(self) -> Reduction:
        if self.reduction is None:
            raise RuntimeError("the trace is empty: run the model, or what wraps it, inside the with block first.")
        return self.reduction

    def _count(self, among: Tensor) -> Tensor:
        reduction = self._ran()
        counts: dict[int, Tensor] = {}  # layers share layouts
        for i, layout in enumerate(reduction.layouts):
            if id(layout) not in counts:
                counts[id(layout)] = (reduction.kept(i) & among).sum(dim=1).cpu()
        return torch.stack([counts[id(layout)] for layout in reduction.layouts], dim=1)
