"""IVC-Prune: vision tokens whose positions serve as coordinates stay, and those that resemble the question's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Asked, check_share, largest, precise
from vtw_eval.methods.staged import Staged

_BESIDE = 2
"""Tokens behind the last image that are no question: they close it."""


@dataclass(frozen=True, kw_only=True)
class IVCPrune(Staged):
    """Keep coordinate tokens, and the foreground by values of the layer before (IVC-Prune, ICLR 2026).

    Weights are those of ``softmax(V V^T / sqrt(d))`` over the whole prompt, with the values of layer k1-1, mean over
    heads; no future is hidden. Seeds are the 1 % of the vision tokens, at least one, that the question gets the
    largest mean weight on; the score is the mean weight over seeds and question. The question is the text behind the
    last image without its first two tokens, all of it where there are no more. Coordinate tokens are those with the
    largest mean cosine, and with the largest mean sine, over the channels of the rotary embedding.

    As published for LLaVA-1.5, what stays are the 20 % with the best score, seeds, and 5 % coordinates by cosine and 5
    % by sine. For Qwen2.5-VL it is ``r=0.5,coordinates=0.1,union=false``; for Qwen2-VL also ``k1=2``. Numbers are
    rounded down. The code also cuts the KV caches of the layers below, after the prefill; here they hold all tokens,
    as those of other methods do: prefill costs are the same, those of decoding lower in the code. Where a position has
    several axes, the channels are averaged as the model rotates them, and not for each axis.

    Parameters
    ----------
    k1
        Number of layers that see all vision tokens, at least one.
    r
        Share of the vision tokens that is removed by score.
    coordinates
        Share of the vision tokens that are coordinates by cosine, and the same by sine.
    union
        Whether those with the best score, seeds and coordinates all stay: how many these are together is known only
        when they are chosen. If not, coordinates and seeds stay first and the best of the others fill up the number
        that ``r`` leaves.
    """

    key: ClassVar[str] = "ivc_prune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2602.03060"
    reads = Reads.VALUES_BEFORE | Reads.ROTATION

    k1: int = 16
    r: float = 0.8
    coordinates: float = 0.05
    union: bool = True

    def __post_init__(self) -> None:
        check_share("r", self.r)
        if self.k1 < 1:
            raise ValueError(f"k1={self.k1} is out of range: the values of the layer before are read, so 1 or more.")
        if not 0 <= self.coordinates <= 1:
            raise ValueError(
                f"coordinates={self.coordinates} is out of range: it is a share of the vision tokens, 0..1."
            )

    @property
    def adaptive(self) -> str:
        """Score, seeds and coordinates overlap by chance."""
        if not self.union:
            return ""
        return (
            "how many tokens ivc_prune's foreground, seeds and coordinates are together depends on model and prompt: "
            "union=false keeps the number that r says."
        )

    def scaled(self, strength: float, num_layers: int) -> IVCPrune:
        """Keep an exact number: remove this share."""
        return replace(self, r=round(strength, 6), union=False)

    @property
    def stages(self) -> tuple[int, ...]:
        """The only one."""
        return (self.k1,)

    def empty_from(self, num_layers: int) -> int:
        """Layer k1 if all vision tokens are removed."""
        return self.k1 if self.r == 1 and not self.union else num_layers

    def _count(self, now: int) -> int:
        """Return how many of ``now`` vision tokens stay by score, or in all."""
        return int(now * (1 - self.r) + 1e-6)

    def _acts(self, now: int) -> bool:
        """Whether a choice among so many vision tokens needs a score."""
        left = self._count(now)
        return left < now and (self.union or left > 0)

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Weights of the question's q tokens and s seeds over the prompt's n, ``2 (q + s) n heads_kv head_dim``."""
        products, texts = 0, (asked.prompt.valid & ~asked.prompt.vision).sum(dim=1).tolist()
        for now, text, behind in zip(
            asked.before.tolist(), texts, asked.prompt.instruction.sum(dim=1).tolist(), strict=True
        ):
            if self._acts(now):
                products += (question_length(behind) + seeds(now)) * (now + text)
        return {"similarities": 2 * products * asked.kv_heads * asked.head_dim}

    def keep(self, view: LayerView) -> Tensor:
        """Keep what the row's own values and positions say, and all text."""
        counts = view.vision.sum(dim=1).tolist()
        keep = view.valid.clone()
        for row, now in enumerate(counts):
            if self._count(now) < now and not self._acts(now):
                keep[row] &= ~view.vision[row]
        if not any(map(self._acts, counts)):
            return keep
        values = precise(view.values_before())
        cos, sin = (precise(table).mean(dim=-1) for table in view.rotation)
        for row, now in enumerate(counts):
            if not self._acts(now):
                continue
            vision = view.vision[row].nonzero().flatten().to(values.device)
            text = view.instruction[row].nonzero().flatten().to(values.device)
            prompt = (view.valid[row] & ~view.generated[row]).nonzero().flatten().to(values.device)
            question = text[len(text) - question_length(len(text)) :]
            own, at = values[row, prompt], torch.searchsorted(prompt, vision)
            asking = weights(values[row, question], own)[:, at]
            seed = largest(asking.mean(dim=0), seeds(now))
            by_seeds = weights(values[row, vision[seed]], own)[:, at]
            score = torch.cat([asking, by_seeds]).mean(dim=0)
            first = torch.zeros(now, dtype=torch.bool, device=values.device)
            first[seed] = True
            for table in (cos, sin):
                first[largest(table[row, vision.to(table.device)], int(now * self.coordinates + 1e-6))] = True
            if self.union:
                first[largest(score, self._count(now))] = True
                stays = first
            else:
                stays = torch.zeros_like(first)
                stays[largest(score + first.to(score), self._count(now))] = True  # weights are at most 1
            keep[row, vision[~stays].to(keep.device)] = False
        return keep


def question_length(text: int) -> int:
    """Return how many of the tokens behind the last image are the question."""
    return text - _BESIDE if text > _BESIDE else text


def seeds(vision: int) -> int:
    """Return how many of a row's vision tokens are seeds: 1 %, at least one."""
    return max(1, vision // 100)


def weights(queries: Tensor, values: Tensor) -> Tensor:
    """Return ``softmax(Q V^T / sqrt(d))``, mean over heads, ``[queries, tokens]``.

    Parameters
    ----------
    queries, values
        Values of some tokens and of all, ``[tokens, heads, head width]`` each.
    """
    logits = torch.einsum("qhd,khd->hqk", queries, values) / math.sqrt(values.shape[-1])
    return logits.softmax(dim=-1).mean(dim=0)
