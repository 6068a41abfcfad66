"""SparseVLM: what the question's own words look at stays, and some of the rest is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.methods.base import Asked, Position, check_share, keep_best, largest, precise
from vtw_eval.methods.budget import runs
from vtw_eval.methods.peaks import peak_scores
from vtw_eval.methods.staged import Staged

LISTS: Mapping[int, tuple[int, int, int]] = {
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}
"""Vision tokens of 576 that each stage keeps, by the name of the budget, as in the code."""

_OF = 576


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Staged):
    """Drop vision tokens in three stages, by attention of the words that images resemble (Zhang et al., ICML 2025).

    Raters are the words of the text behind the last image that get more than the mean of the softmax, over that text,
    of the products of vision and text embeddings as they enter the first layer, mean over vision tokens. Before each
    stage those vision tokens stay that the raters attend to most in the layer before, mean over heads and raters. Of
    the others the best three of ten are merged into a tenth of their number (density peaks of hidden states, plain
    means) and stand behind the kept tokens of the image that a group's centre belongs to. All are numbered anew.

    The paper finds the numbers by the rank of the attention matrix; the code, which is followed, has fixed ones for
    576 vision tokens (:data:`LISTS`), which are shares of the prompt's vision tokens here, rounded down. Merged
    tokens come on top: 309, 204 and 113 for 192. The code drops one token at least; here a stage that may keep all
    does nothing. Where two tokens are equally dense the earlier counts as denser, where the code adds noise; text
    of which no word is above the mean rates as a whole. Where a model adds vision features after its first layers
    (Qwen3-VL), stages should come later, since merging moves tokens within their image.

    Parameters
    ----------
    k1, k2, k3
        Number of layers before each stage.
    budget
        Name of a list of the code: 192, 128, 96 or 64; 192 unless ``r`` is given.
    r
        Share of the vision tokens that is removed by the last stage, merged ones not counted, instead of ``budget``;
        the others keep more in the proportion of 300 : 200 : 110.
    recycle
        Whether some of what is dropped is merged.
    """

    key: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.04417"
    reads = Reads.EMBEDDINGS | Reads.ATTENTION_BEFORE | Reads.HIDDEN

    k1: int = 3
    k2: int = 7
    k3: int = 16
    budget: int | None = None
    r: float | None = None
    recycle: bool = True

    def __post_init__(self) -> None:
        if self.budget is None and self.r is None:
            object.__setattr__(self, "budget", max(LISTS))
        if self.budget is not None and self.r is not None:
            raise ValueError(f"budget={self.budget} or r={self.r}, not both: each says how many vision tokens stay.")
        if self.r is not None:
            check_share("r", self.r)
        elif self.budget not in LISTS:
            raise ValueError(f"budget={self.budget} is unknown: choose one of {', '.join(map(str, LISTS))}, or give r.")
        if not 1 <= self.k1 < self.k2 < self.k3:
            raise ValueError(
                f"k1={self.k1}, k2={self.k2}, k3={self.k3} are out of range: each stage comes after the one before, "
                "the first after one layer or more, whose attention is read."
            )

    @property
    def positions(self) -> Position:
        """Tokens are numbered anew, as in the code."""
        return "rearrange"

    def scaled(self, strength: float, num_layers: int) -> SparseVLM:
        """Remove this share by the last stage."""
        return replace(self, r=round(strength, 6), budget=None)

    @property
    def stages(self) -> tuple[int, ...]:
        """All three."""
        return self.k1, self.k2, self.k3

    def empty_from(self, num_layers: int) -> int:
        """Return the first stage if all vision tokens are removed there, and none merged."""
        return self.k1 if self.r == 1 and not self.recycle else num_layers

    def _count(self, layer: int, total: int, now: int) -> int:
        """Return how many of ``now`` vision tokens a stage keeps, of ``total`` in the prompt; without merged ones."""
        stage = self.stages.index(layer)
        if self.r is None:
            assert self.budget is not None
            return min(total * LISTS[self.budget][stage] // _OF, now)
        default = LISTS[max(LISTS)]
        return min(int(total * (1 - self.r) * default[stage] / default[-1] + 1e-6), now)

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Products of all vision tokens with the text behind them, and distances of what is merged.

        For V vision tokens and t words, ``2 V t hidden`` at each stage; for n tokens that are merged, ``2 n n hidden``.
        """
        raters = distances = 0
        totals, words = asked.prompt.vision.sum(dim=1).tolist(), asked.prompt.instruction.sum(dim=1).tolist()
        for total, text, now in zip(totals, words, asked.before.tolist(), strict=True):
            dropped = now - self._count(asked.layer, total, now)
            if dropped:
                raters += 2 * total * text * asked.hidden
                distances += 2 * recycled(dropped) ** 2 * asked.hidden if self.recycle else 0
        return {"raters": raters, "similarities": distances}

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Keep the best of the stage and all text, and merge some of the others."""
        totals, now = view.vision_total.tolist(), view.vision.sum(dim=1).tolist()
        count = [self._count(view.layer, total, n) for total, n in zip(totals, now, strict=True)]
        acting = [row for row in range(view.rows) if count[row] < now[row]]
        if not acting:
            return view.valid
        raters = torch.zeros_like(view.prompt.vision)
        for row in acting:
            vision, text = view.prompt.vision[row].nonzero().flatten(), view.prompt.instruction[row].nonzero().flatten()
            raters[row, text] = is_rater(view.embeddings[row, vision], view.embeddings[row, text]).to(raters.device)
        score = view.attention(view.layer - 1, raters.gather(1, view.index))
        keep = keep_best(view, score, torch.tensor(count)) & view.valid
        if not self.recycle:
            return keep
        hidden = view.hidden.clone()
        for row in acting:
            _recycle(view, row, score[row], keep, hidden)
        return Merge(keep, hidden)


def is_rater(vision: Tensor, text: Tensor) -> Tensor:
    """Return which words rate vision tokens, boolean ``[words]``; all of them if none is above the mean.

    Parameters
    ----------
    vision, text
        Embeddings, ``[tokens, width]`` and ``[words, width]``.
    """
    weight = (precise(vision) @ precise(text).T).softmax(dim=-1).mean(dim=0)
    above = weight > weight.mean()
    return above | ~above.any()


def recycled(dropped: int) -> int:
    """Return how many of the dropped tokens are merged."""
    return int(0.3 * dropped) + 1


def _recycle(view: LayerView, row: int, score: Tensor, keep: Tensor, hidden: Tensor) -> None:
    """Merge some of a row's dropped tokens; ``keep`` and ``hidden`` are changed."""
    places = view.vision[row].nonzero().flatten().to(hidden.device)
    stays = keep[row].to(hidden.device)[places]
    kept, dropped = places[stays], places[~stays]
    pool = dropped[largest(score.to(hidden.device)[dropped], recycled(len(dropped)))]
    states = precise(view.hidden[row])
    centres, group = density_peaks(states[pool], len(pool) // 10 + 1)
    sums = torch.zeros_like(states[: len(centres)]).index_add(0, group, states[pool])
    means = sums / group.bincount(minlength=len(centres))[:, None]
    image = torch.zeros_like(view.index[row], dtype=torch.long, device=hidden.device)
    for number, run in enumerate(runs(view.prompt.vision[row])):
        image[torch.isin(view.index[row], run)] = number
    stand = torch.cat([kept, pool[centres]])
    order = image[stand].argsort(stable=True)  # in each image the kept ones, then the groups
    slots = stand.sort().values
    keep[row, slots.to(keep.device)] = True
    hidden[row, slots] = torch.cat([states[kept], means])[order].to(hidden)


def density_peaks(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Group tokens around those with the best :func:`~vtw_eval.methods.peaks.peak_scores` of ``count`` neighbours.

    Parameters
    ----------
    features
        ``[tokens, width]``.
    count
        Number of groups.

    Returns
    -------
    centres : Tensor
        Numbers of the tokens in the middle of each group, the clearest first; long ``[count]``.
    group : Tensor
        Group of each token, that of the nearest centre; long ``[tokens]``.
    """
    score, distance = peak_scores(features, count)
    centres = score.argsort(descending=True, stable=True)[:count]
    group = distance[:, centres].argmin(dim=-1)
    group[centres] = torch.arange(len(centres), device=group.device)
    return centres, group
