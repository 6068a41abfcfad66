"""ToMe inside the language model: similar vision tokens are merged, a few at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import Asked, Method, check_layer, check_share

DEFAULT_R = 0.9
"""Share that is merged away where neither it nor a number per layer is given."""


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Merge the most similar vision tokens of a row, step by step (Bolya et al., ICLR 2023, moved into the decoder).

    Before each layer from ``k`` on, the row's vision tokens are divided into those with even and odd number (bipartite
    soft matching); each even one finds the odd one with the most similar key (cosine; keys of the layer about to run
    before the rotary embedding, mean over heads), and the most similar pairs are merged into the odd one: mean
    weighted by size, position of the odd one. Later attention adds the logarithm of the size. Order is kept. All
    vision tokens of a row take part, also of several images. A step can merge half of the tokens at most.

    The paper merges between attention and FFN of a vision transformer's block; this at a decoder layer's input.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is merged away until the last layer, evenly spread over the layers; 0.9 unless
        ``per_layer`` is given.
    per_layer
        Tokens merged before each layer, instead of ``r``.
    """

    key: ClassVar[str] = "tome"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.09461"
    reads = Reads.HIDDEN | Reads.KEYS
    question_independent = True
    also_needs: ClassVar[str] = "SDPA or eager attention"
    needs_vision: ClassVar[bool] = True

    k: int = 0
    r: float | None = None
    per_layer: int | None = None

    def __post_init__(self) -> None:
        if self.per_layer is None and self.r is None:
            object.__setattr__(self, "r", DEFAULT_R)
        if self.per_layer is not None and self.r is not None:
            raise ValueError(
                f"tome takes r={self.r} or per_layer={self.per_layer}, not both: each says how many tokens are merged."
            )
        if self.r is not None:
            check_share("r", self.r)
        if self.per_layer is not None and self.per_layer < 0:
            raise ValueError(f"per_layer={self.per_layer} is out of range: it is a number of tokens, 0 or more.")

    def bind(self, anatomy: Anatomy) -> ToMe:
        """Check k against the number of layers."""
        check_layer("k", self.k, anatomy.num_layers)
        return self

    def scaled(self, strength: float, num_layers: int) -> ToMe:
        """Merge this share away."""
        return replace(self, r=round(strength, 6), per_layer=None)

    def layers(self, num_layers: int) -> Sequence[int]:
        """All layers from k on."""
        return range(self.k, num_layers)

    def target(self, total: int, layer: int, num_layers: int) -> int:
        """Return how many of ``total`` vision tokens a layer should see."""
        steps = layer - self.k + 1
        if self.per_layer is not None:
            return max(total - steps * self.per_layer, 0)
        assert self.r is not None, "__post_init__ fills it in"
        return total - int(total * self.r * steps / (num_layers - self.k) + 0.5)

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Similarities: each even vision token of a row with each odd one, ``2 ceil(v / 2) floor(v / 2) head_dim``."""
        pairs = sum(((v + 1) // 2) * (v // 2) for v in asked.before[asked.after < asked.before].tolist())
        return {"similarities": 2 * pairs * asked.head_dim}

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Merge towards the layer's target."""
        counts = view.vision.sum(dim=1).tolist()
        merged = [
            min(now - self.target(total, view.layer, view.num_layers), now // 2)
            for now, total in zip(counts, view.vision_total.tolist(), strict=True)
        ]
        if max(merged) <= 0:
            return view.valid
        keys = view.keys()
        keep, hidden, size = view.valid.clone(), view.hidden.clone(), view.size.clone()
        joined = torch.arange(keep.shape[1], device=keep.device).repeat(view.rows, 1)
        for row, count in enumerate(merged):
            if count > 0:
                places = view.vision[row].nonzero().flatten()
                gone, into = match(keys[row, places], count)
                gone, into = places[gone], places[into]
                weighted = hidden[row] * size[row, :, None].to(hidden)
                weighted = weighted.index_add(0, into, weighted[gone])
                size[row] = size[row].index_add(0, into, size[row, gone])
                changed = into.unique()
                hidden[row, changed] = weighted[changed] / size[row, changed, None].to(hidden)
                keep[row, gone] = False
                joined[row, gone] = into
        return Merge(keep, hidden, size, joined)


def match(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which tokens are merged into which, by bipartite soft matching.

    Parameters
    ----------
    keys
        ``[tokens, width]``.
    count
        How many to merge, at most half of the tokens.

    Returns
    -------
    gone, into : Tensor
        Long ``[count]`` each: numbers of even tokens and of the odd ones that take them; several may share one.
    """
    keys = torch.nn.functional.normalize(keys.float(), dim=-1)
    similarity, partner = (keys[0::2] @ keys[1::2].T).max(dim=1)
    best = similarity.argsort(descending=True, stable=True)[:count]
    return 2 * best, 2 * partner[best] + 1
