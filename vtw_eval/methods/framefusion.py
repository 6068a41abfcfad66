"""FrameFusion: tokens like those of the frame before are merged layer by layer, until one prune meets the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import precise, ranks
from vtw_eval.methods.frames import VideoMethod, videos

_LEAST = 0.1
"""Share of the tokens that a layer has to merge for the next one to go on merging."""

_SLACK = 1e-6

Stage = Literal["merge", "prune", "done"]


@dataclass(frozen=True, kw_only=True)
class FrameFusion(VideoMethod):
    """Merge what is like the frame before, then prune once, to a mean over layers (Fu et al., ICCV 2025).

    Before each layer, each vision token is compared (cosine of hidden states) with the one that is left before it at
    the same place of the video. Those more alike than ``similarity`` join it; what a chain of them makes is the
    plain mean, at its first token. If that would merge as many tokens as the budget still asks for, or more, only
    the most alike are merged and it is done. Once a layer merges less than a tenth of its tokens, the next one
    prunes and it is done: it keeps what all tokens of the prompt attended to most in the layer before (mean over
    heads and queries), as many as bring the mean over the layers to ``cost``. The budget is one of all vision
    tokens of a row.

    The authors merge between attention and FFN of a layer, this at the input of the next one. Their mean is over 28
    layers, this over those of the model. An image is a video of one frame: nothing is merged, layer 1 prunes.

    Parameters
    ----------
    cost
        Share of the vision tokens that a layer sees in the mean.
    similarity
        Cosine from which on a token is merged.
    """

    key: ClassVar[str] = "framefusion"
    paper: ClassVar[str] = "https://arxiv.org/abs/2501.01986"
    reads = Reads.HIDDEN | Reads.ATTENTION_BEFORE | Reads.TOWER

    cost: float = 0.3
    similarity: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.cost <= 1:
            raise ValueError(f"cost={self.cost} is out of range: it is a share of the vision tokens, 0..1.")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity={self.similarity} is out of range: it is a cosine, -1..1.")

    def scaled(self, strength: float, num_layers: int) -> FrameFusion:
        """Let the layers see the rest, in the mean."""
        return replace(self, cost=round(1 - strength, 6))

    def nominal(self) -> FrameFusion:
        """Return it without merging: the same mean over layers, all of it by one pruning at layer 1."""
        return replace(self, similarity=1.0)

    def layers(self, num_layers: int) -> Sequence[int]:
        """All of them: each merges what the one before has made alike."""
        return range(num_layers)

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Merge, or prune, or do nothing."""
        keep, hidden = view.valid.clone(), None
        before = [view.seen_by(layer) for layer in range(view.layer)]
        pruned: list[tuple[int, Tensor, int]] = []
        for row in range(view.rows if bool(view.vision.any()) else 0):
            clips = videos(view, row)
            if not clips:
                continue
            placed = torch.cat([clip.flatten() for clip in clips])
            counts = [int(seen[row, placed].sum()) for seen in before]
            stage, allowed = budget(len(placed), counts, view.num_layers, self.cost)
            if stage == "done":
                continue
            slot = torch.full_like(view.prompt.valid[row], -1, dtype=torch.long)
            slot[view.index[row, view.valid[row]]] = view.valid[row].nonzero().flatten()
            if stage == "prune":
                slots = slot[placed]
                pruned.append((row, slots[slots >= 0], round(max(allowed, 0.0))))
                continue
            chains = [slot[clip].T for clip in clips]
            most = int((counts or [len(placed)])[-1] - allowed + _SLACK)
            gone, heads, means = merged(view.hidden[row], chains, self.similarity, max(most, 0))
            if len(gone):
                hidden = view.hidden.clone() if hidden is None else hidden
                hidden[row, heads] = means.to(hidden)
                keep[row, gone.to(keep.device)] = False
        if pruned:
            queries = torch.zeros_like(view.valid)
            queries[[row for row, _, _ in pruned]] = True
            weights = view.attention(view.layer - 1, queries & view.valid & ~view.generated)
            for row, slots, count in pruned:
                best = ranks(weights[row, slots.to(weights.device)][None])[0] < count
                keep[row, slots] = best.to(keep.device)
        return keep if hidden is None else Merge(keep, hidden)


def budget(total: int, counts: Sequence[int], num_layers: int, cost: float) -> tuple[Stage, float]:
    """Return what a layer has to do, and how many vision tokens it and each later one may see.

    Parameters
    ----------
    total
        Vision tokens of a row's prompt.
    counts
        How many of them entered each layer before.
    num_layers
        Layers of the model.
    cost
        Share that a layer is to see in the mean.
    """
    stage: Stage = "merge"
    spent, now = 0, total
    for layer, after in enumerate(counts):
        gone, asked = now - after, int(now - (num_layers * cost * total - spent) / (num_layers - layer) + _SLACK)
        stage = "done" if stage != "merge" or gone >= asked else "prune" if gone < _LEAST * now else "merge"
        spent, now = spent + after, after
    return stage, (num_layers * cost * total - spent) / (num_layers - len(counts))


def merged(states: Tensor, chains: Sequence[Tensor], similarity: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens join the one before them at the same place of their video.

    Parameters
    ----------
    states
        ``[tokens, width]``.
    chains
        For each video the numbers of its tokens in time, long ``[places, frames]``; -1 for what is gone.
    similarity
        Cosine from which on a token joins.
    most
        How many may, the most alike first.

    Returns
    -------
    gone, heads, means : Tensor
        Numbers of those that join, long ``[n]``; of those that are joined, long ``[m]``; and their means over what
        joined them and themselves, ``[m, width]``.
    """
    order, place, first = [], [], 0
    for chain in chains:
        left = chain >= 0
        order.append(chain[left])
        place.append(first + left.nonzero()[:, 0])
        first += len(chain)
    tokens, at = torch.cat(order).to(states.device), torch.cat(place).to(states.device)
    own = precise(states[tokens])
    alike = cosine_similarity(own[1:], own[:-1], dim=-1).masked_fill(at[1:] != at[:-1], -torch.inf)
    joins = alike >= similarity
    joins &= ranks(alike[None])[0] < most
    joins = torch.cat([joins.new_zeros(1), joins])
    group = (~joins).cumsum(dim=0) - 1
    size = group.bincount()
    means = torch.zeros_like(own[: len(size)]).index_add(0, group, own) / size[:, None]
    heads = ~joins & (size > 1)[group]
    return tokens[joins], tokens[heads], means[group[heads]]
