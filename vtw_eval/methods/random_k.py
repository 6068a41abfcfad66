"""VTW at a random layer, the control called VTW-dagger in the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method, check_layer


@dataclass(frozen=True, kw_only=True)
class RandomK(Method):
    """Withdraw each row's vision tokens at a layer drawn uniformly from [low, high], both ends included.

    The draw depends on the seed and the row's own prompt only, not on batch size or order. The paper draws from
    [8, 24] for 32 layers (its text says [12, 28] for 40, its code 8..24 for every model).

    Parameters
    ----------
    low, high
        Bounds of k. ``None``: 8 and 24 of 32 layers, scaled to the model's depth.
    seed
        Seed of the draws.
    """

    key: ClassVar[str] = "random_k"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.05803"
    reads = Reads.IDS
    leaves_whole = True
    needs_vision: ClassVar[bool] = True

    low: int | None = None
    high: int | None = None
    seed: int = 0

    def bind(self, anatomy: Anatomy) -> RandomK:
        """Scale the default bounds to the model and check them."""
        n = anatomy.num_layers
        low = round(n * 8 / 32) if self.low is None else self.low
        high = round(n * 24 / 32) if self.high is None else self.high
        check_layer("low", low, n)
        check_layer("high", high, n)
        if low > high:
            raise ValueError(f"low={low} is above high={high}: random_k draws k from low..high.")
        return replace(self, low=low, high=high)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Every layer that a draw can name."""
        assert self.low is not None and self.high is not None, "bind() fills in the bounds"
        return range(self.low, min(self.high, num_layers - 1) + 1)

    def draws(self) -> Sequence[RandomK]:
        """Return one method for each k that can be drawn."""
        assert self.low is not None and self.high is not None, "bind() fills in the bounds"
        return [replace(self, low=k, high=k) for k in range(self.low, self.high + 1)]

    def empty_from(self, num_layers: int) -> int:
        """Name the last layer that can be drawn."""
        return num_layers if self.high is None else self.high

    def keep(self, view: LayerView) -> Tensor:
        """Everything but the vision tokens of the rows whose draw is this layer."""
        assert self.low is not None and self.high is not None
        draws = [
            int(torch.randint(self.low, self.high + 1, (), generator=view.generator(row, self.seed)))
            for row in range(view.rows)
        ]
        leaving = torch.tensor([k == view.layer for k in draws], device=view.vision.device)
        return ~(view.vision & leaving[:, None])
