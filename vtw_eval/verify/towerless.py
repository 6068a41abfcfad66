"""Methods that read the vision tower, on a tiny model whose tower does not run.

When the engine is compared with masked attention, it does not matter which tokens a method keeps, only that the model
then computes what it should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.engine.layout import Prompt
from vtw_eval.engine.tower import By, Heads, TowerView
from vtw_eval.methods.base import Method
from vtw_eval.methods.budget import runs
from vtw_eval.methods.wrapped import Wrapped

_LAYERS, _HEADS, _WIDTH = 24, 2, 8


class StandInTower(TowerView):
    """Random numbers in the place of what a tower would give, the same for a row at whatever batch and padding.

    It has 24 layers and a CLS token. Each run of vision tokens is an image, its grid the one nearest to a square.

    Parameters
    ----------
    prompt
        The prompts.
    width
        Width of the decoder.
    """

    def __init__(self, prompt: Prompt, width: int) -> None:
        self.prompt = prompt
        self.width = width

    @property
    def has_cls(self) -> bool:
        """It has one."""
        return True

    @property
    def frames_are_images(self) -> bool:
        """Each image stands alone."""
        return False

    @property
    def num_layers(self) -> int:
        """As many as CLIP ViT-L has."""
        return _LAYERS

    def features(self, layer: int = -2) -> Tensor:
        """Numbers of a normal distribution."""
        return self._drawn(layer % (_LAYERS + 1), _WIDTH)

    def received(self, layer: int = -2, heads: Heads = "mean", by: By | None = None) -> Tensor:
        """Weights between 0 and 1."""
        weights = self._drawn(100 + layer % _LAYERS, _HEADS).abs().tanh()
        return weights if heads == "each" else weights.mean(dim=-1)

    def keys(self, layer: int = -1, heads: Literal["mean", "each"] = "mean") -> Tensor:
        """Numbers of a normal distribution."""
        keys = self._drawn(200 + layer % _LAYERS, _HEADS * _WIDTH).unflatten(-1, (_HEADS, _WIDTH))
        return keys if heads == "each" else keys.mean(dim=-2)

    @property
    def places(self) -> Tensor:
        """Images by runs, row by row."""
        return self._where()[0]

    @property
    def extent(self) -> Tensor:
        """Rows and columns of each image's grid."""
        return self._where()[1]

    def project(self, features: Tensor) -> Tensor:
        """Numbers of the features, as often as they fill the decoder's width."""
        return features[:, 0].repeat(1, -(-self.width // features.shape[-1]))[:, : self.width]

    def _drawn(self, seed: int, channels: int) -> Tensor:
        vision = self.prompt.vision
        values = torch.zeros(*vision.shape, channels, device=vision.device)
        for row, own in enumerate(vision):
            drawn = torch.randn(int(own.sum()), channels, generator=torch.Generator().manual_seed(seed))
            values[row, own] = drawn.to(values)
        return values

    def _where(self) -> tuple[Tensor, Tensor]:
        vision = self.prompt.vision
        places = torch.full((*vision.shape, 5), -1, dtype=torch.long, device=vision.device)
        extent = places[..., :2].clone()
        for row, own in enumerate(vision):
            for image, run in enumerate(runs(own)):
                sides = range(1, math.isqrt(len(run)) + 1)
                rows = max(side for side in sides if len(run) % side == 0)
                columns = len(run) // rows
                number = torch.arange(len(run), device=run.device)
                places[row, run] = torch.stack(
                    [torch.full_like(number, image), 0 * number, 0 * number, number // columns, number % columns], dim=1
                )
                extent[row, run] = torch.tensor([rows, columns], device=run.device)
        return places, extent


@dataclass(frozen=True, kw_only=True)
class _Towerless(Wrapped):
    """A method to which a :class:`StandInTower` is shown."""

    key: ClassVar[str] = "towerless"

    @property
    def reads(self) -> Reads:
        """What the method reads beside the tower."""
        return self.method.reads & ~Reads.TOWER

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Ask the method."""
        tower = StandInTower(view.prompt, view.states.shape[-1])
        return self.method.keep(replace(view.shown_to(self.method), tower_view=tower))


def without_tower(method: Method) -> Method:
    """Return a bound method that does not ask for the tower to run, itself if it does not read that."""
    return _Towerless(method=method) if Reads.TOWER in method.reads else method
