"""PACT: vision tokens that matter little leave, and those that resemble each other are merged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import Asked, check_share, largest, precise
from vtw_eval.methods.staged import Staged

DEFAULT_CUTOFF = 0.21
"""Distance within which tokens are of one cluster, for LLaVA-OneVision-7B."""

_HALVINGS = 24
"""Of the distances from 0 to 2, when a cut-off is looked for."""


@dataclass(frozen=True, kw_only=True)
class PACT(Staged):
    """Drop what matters least to the prompt so far and merge clusters of the others (Dhouib et al., CVPR 2025).

    Before layer ``k1``, by what that layer projects. A vision token matters by the weight that the mean query of all
    tokens up to the last vision token gives it among the vision tokens (neither rotated; mean over heads), times the
    norm of its hidden state. Of those that stay, the densest first (sum of ``exp(-(d / 2)^2)``, d the cosine distance
    of rotated keys, heads side by side), each becomes a centre that has no centre within the cut-off yet. The others
    join the nearest centre, and so does what was dropped within 1.5 cut-offs of one. A cluster goes on as the mean of
    its hidden states, at the centre's position, and all later layers add the logarithm of its size to its logits.

    The code takes all tokens at or above a score; here of equal ones the earlier. Qwen2-VL-7B is published with
    ``r=0.2,cutoff=0.1``.

    Parameters
    ----------
    k1
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is removed by what they matter, the rest rounded down.
    cutoff
        Distance up to which a token joins a centre, 0 to 2; 0.21 unless ``merged`` is given.
    merged
        Share of the others that is merged away, rounded up, instead of ``cutoff``, so that the number of tokens is
        known: the cut-off of each row is the least that leaves no more centres, and the densest others fill them up.
    """

    key: ClassVar[str] = "pact"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.08966"
    reads = Reads.HIDDEN | Reads.MEAN_QUERY | Reads.ROTATED_KEYS
    also_needs: ClassVar[str] = "SDPA or eager attention"

    k1: int = 4
    r: float = 0.45
    cutoff: float | None = None
    merged: float | None = None

    def __post_init__(self) -> None:
        check_share("r", self.r)
        if self.cutoff is None and self.merged is None:
            object.__setattr__(self, "cutoff", DEFAULT_CUTOFF)
        if self.cutoff is not None and self.merged is not None:
            raise ValueError(f"cutoff={self.cutoff} or merged={self.merged}, not both: each says what is merged.")
        if self.cutoff is not None and not 0 <= self.cutoff <= 2:
            raise ValueError(f"cutoff={self.cutoff} is out of range: it is a cosine distance, 0..2.")
        if self.merged is not None:
            check_share("merged", self.merged)

    @property
    def adaptive(self) -> str:
        """Clusters are as many as the keys make."""
        if self.merged is not None:
            return ""
        return (
            "how many clusters pact makes depends on model and prompt: merged=0.5 in place of cutoff merges a share of "
            "what stays, whose number is known."
        )

    def scaled(self, strength: float, num_layers: int) -> PACT:
        """Merge away the same share of what stays as is dropped before: together this one."""
        share = round(1 - math.sqrt(1 - strength), 6)
        return replace(self, r=share, merged=share, cutoff=None)

    @property
    def stages(self) -> tuple[int, ...]:
        """The only one."""
        return (self.k1,)

    def empty_from(self, num_layers: int) -> int:
        """Layer k1 if all vision tokens are removed."""
        return self.k1 if self.r == 1 or self.merged == 1 else num_layers

    def _staying(self, now: int) -> int:
        """Return how many of ``now`` tokens are kept by what they matter."""
        return int(now * (1 - self.r) + 1e-6)

    def _centres(self, staying: int) -> int | None:
        """Return how many clusters are made of the tokens that stay; None if the cut-off decides."""
        return None if self.merged is None else int(staying * (1 - self.merged) + 1e-6)

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Distances of each vision token that stays to each of the row, ``2 m v heads_kv head_dim``."""
        pairs = sum(self._staying(v) * v for v in asked.before.tolist() if self._clusters(v))
        return {"similarities": 2 * pairs * asked.kv_heads * asked.head_dim}

    def _acts(self, now: int) -> bool:
        """Whether a row of so many vision tokens may lose any."""
        return now > 0 and self._centres(self._staying(now)) != now

    def _clusters(self, now: int) -> bool:
        """Whether any are left, and the distances between a row's tokens are needed."""
        staying = self._staying(now)
        return self._acts(now) and staying > 0 and self._centres(staying) != 0

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Drop, cluster, and merge."""
        counts = view.vision.sum(dim=1).tolist()
        keep = view.valid.clone()
        for row, now in enumerate(counts):
            if self._acts(now):
                keep[row] &= ~view.vision[row]
        if not any(map(self._clusters, counts)):
            return keep
        hidden, size = view.hidden.clone(), view.size.clone()
        into = torch.arange(keep.shape[1], device=keep.device).repeat(view.rows, 1)
        weight = view.mean_query_attention(view.valid & ~view.instruction & ~view.generated, view.vision)
        score = weight * precise(view.hidden).norm(dim=-1).to(weight)
        keys = view.rotated_keys().flatten(2)
        for row, now in enumerate(counts):
            if self._clusters(now):
                places, staying = view.vision[row].nonzero().flatten().to(keys.device), self._staying(now)
                best = largest(score[row, places], staying)
                group = clusters(keys[row, places], best, self.cutoff, self._centres(staying))
                member, centre = places[group >= 0], places[group[group >= 0]]
                weighted = precise(hidden[row]) * size[row, :, None].to(hidden.device)
                sums = torch.zeros_like(weighted).index_add_(0, centre, weighted[member])
                total = torch.zeros_like(size[row]).index_add_(0, centre, size[row, member])
                made = centre.unique()
                keep[row, made] = True
                hidden[row, made] = (sums[made] / total[made, None].to(sums)).to(hidden)
                size[row, made] = total[made]
                into[row, member.to(into.device)] = centre.to(into.device)
        return Merge(keep, hidden, size, into)


def clusters(keys: Tensor, staying: Tensor, cutoff: float | None, count: int | None) -> Tensor:
    """Return the centre that each token joins, of tokens of which some stay.

    Parameters
    ----------
    keys
        ``[tokens, width]``.
    staying
        Numbers of those that stay, long ``[m]``, ascending.
    cutoff
        Cosine distance up to which a token joins a centre; None to find the least that leaves no more than ``count``.
    count
        Number of centres, where there is no cut-off.

    Returns
    -------
    Tensor
        Number of each token's centre, that of itself for a centre, -1 for those that join none; long ``[tokens]``.
        Of equally dense tokens the earlier one comes first, and of equally near centres the earlier one is joined.
    """
    unit = normalize(precise(keys), dim=-1)
    distance = 1 - unit[staying] @ unit.T
    among = distance[:, staying]
    density = (-(among / 2).square()).exp().sum(dim=1)
    order, apart = density.argsort(descending=True, stable=True).cpu().numpy(), among.cpu().numpy()
    if cutoff is None:
        assert count is not None
        low, cutoff = 0.0, 2.0
        for _ in range(_HALVINGS):
            middle = (low + cutoff) / 2
            low, cutoff = (low, middle) if _centres(apart, order, middle).sum() <= count else (middle, cutoff)
        is_centre = _centres(apart, order, cutoff)
        is_centre[order[~is_centre[order]][: count - is_centre.sum()]] = True
    else:
        is_centre = _centres(apart, order, cutoff)
    centres = torch.from_numpy(is_centre).to(keys.device).nonzero().flatten()
    near = distance[centres].amin(dim=0)
    nearest = staying[centres[(distance[centres] == near).to(torch.uint8).argmax(dim=0)]]
    stays = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    stays[staying] = True
    group = torch.where(stays | (near <= 1.5 * cutoff), nearest, -1)
    group[staying[centres]] = staying[centres]
    return group


def _centres(distance: NDArray[Any], order: NDArray[Any], cutoff: float) -> NDArray[np.bool_]:
    """Return which tokens, met in an order, are farther than the cut-off from all centres before; boolean ``[n]``."""
    near = distance <= cutoff
    chosen, covered = np.zeros((2, len(order)), dtype=bool)
    for number in order:
        if not covered[number]:
            chosen[number] = True
            covered |= near[number]
    return chosen
