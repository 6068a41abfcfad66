"""CDPruner: vision tokens that are diverse and, with regard to the question, relevant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.engine import LayerView
from vtw_eval.methods.clip_scored import PATCHES, ClipScored
from vtw_eval.methods.selector import Selector, first_largest

_RELEVANT = 1e-6
"""What the code adds to every relevance, so that none is 0."""


@dataclass(frozen=True, kw_only=True)
class CDPruner(ClipScored, Selector):  # type: ignore[override]  # what it reads is a matter of its parameters
    """Keep vision tokens of a large conditional determinant, before the first layer (Zhang et al., NeurIPS 2025).

    The kernel is ``diag(relevance) S diag(relevance)`` with S the cosines of the features that enter the decoder;
    tokens are chosen greedily for the largest determinant (incremental Cholesky). The paper's relevance is that of
    CLIP's text tower, which checkpoints of LLaVA do not hold: ``text=`` names it. Without it, relevance is measured
    among what enters the decoder, as OpenVINO does: the mean cosine of a vision token with the embeddings of the text
    after the last image; results are then not those of the paper. Either is put from 0 to 1 over the vision tokens of
    a row.

    With CLIP, a patch of the tower's last layer but one goes through CLIP's own norm and projection, and its cosine
    with the question is turned round, as in the code: in CLIP, patches of what a text names resemble it least. The
    question is the text after the last image without what the chat template puts behind it.

    Parameters
    ----------
    text
        CLIP checkpoint whose vision tower the model has, such as ``openai/clip-vit-large-patch14-336``, or its folder.
    """

    key: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.10967"

    def choose(self, features: Tensor, question: Tensor, count: int) -> Tensor:
        """See :func:`most_likely`."""
        return most_likely(features, relevance(features, question), count)

    def pick(self, view: LayerView, row: int, places: Tensor, count: int) -> Tensor:
        """Choose by CLIP's relevance, if there is CLIP; what shows nothing, newlines, is as irrelevant as can be."""
        if self.text is None:
            return super().pick(view, row, places, count)
        slots = view.index[row, places.to(view.index.device)]
        patches = view.tower.features(PATCHES)[row, slots]
        shown = view.tower.places[row, slots, 0] >= 0
        weight = view.hidden.new_full((len(places),), _RELEVANT, dtype=torch.float32)
        unlike = -self.clip.compare(view, row, patches[shown.to(patches.device)], cosine=True)
        weight[shown.to(weight.device)] = from_0_to_1(unlike).to(weight)
        return most_likely(view.hidden[row, places], weight, count)


def relevance(features: Tensor, question: Tensor) -> Tensor:
    """Return how relevant tokens are, from 0 to 1, and all alike without a question; ``[tokens]``.

    Parameters
    ----------
    features
        Of vision tokens, ``[tokens, width]``.
    question
        Of text tokens, ``[n, width]``.
    """
    if not len(question):
        return torch.ones_like(features[:, 0]).float()
    cosine = (normalize(features.float(), dim=-1) * normalize(question.float(), dim=-1).mean(dim=0)).sum(dim=-1)
    return from_0_to_1(cosine)


def from_0_to_1(values: Tensor) -> Tensor:
    """Return ``[n]`` numbers moved and stretched so that they go from (hardly more than) 0 to 1."""
    low, high = values.aminmax()
    return (values - low + _RELEVANT) / (high - low).clamp(min=_RELEVANT)


def most_likely(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return the numbers of tokens that the greedy search for a determinantal point process's mode chooses, in order.

    Parameters
    ----------
    features
        Of vision tokens, ``[tokens, width]``.
    weight
        How relevant each is, ``[tokens]``.
    count
        How many, one or more, at most as many as there are vision tokens.
    """
    unit = normalize(features.float(), dim=-1)
    kernel = weight[:, None] * (unit @ unit.T) * weight
    left = kernel.diagonal().clone()
    factors = kernel.new_zeros(count, len(unit))
    chosen: list[Tensor] = []
    for step in range(count):
        best = first_largest(left)
        chosen.append(best)
        explained = (factors[:step, best, None] * factors[:step]).sum(dim=0)
        factors[step] = (kernel[best] - explained) / left[best].clamp(min=1e-12).sqrt()
        left = (left - factors[step].square()).clamp(min=0).index_fill(0, torch.stack(chosen), -torch.inf)
    return torch.stack(chosen)
