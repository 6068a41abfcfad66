"""CDPruner: vision tokens that are diverse and, with regard to the question, relevant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.methods.selector import Selector, first_largest

_RELEVANT = 1e-6
"""What the code adds to every relevance, so that none is 0."""


@dataclass(frozen=True, kw_only=True)
class CDPruner(Selector):
    """Keep vision tokens of a large conditional determinant, before the first layer (Zhang et al., NeurIPS 2025).

    The kernel is ``diag(relevance) S diag(relevance)`` with S the cosines of the features that enter the decoder;
    tokens are chosen greedily for the largest determinant (incremental Cholesky). The paper's relevance is that of
    CLIP's text tower, which checkpoints of LLaVA do not hold; nor does a method see the question's text that it would
    read, only the prompt's ids. This one is measured among what enters the decoder, as OpenVINO does: the mean cosine
    of a vision token with the embeddings of the text after the last image, from 0 to 1 over the vision tokens of a row.
    Results are therefore not those of the paper.
    """

    key: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.10967"

    def choose(self, features: Tensor, question: Tensor, count: int) -> Tensor:
        """See :func:`most_likely`."""
        return most_likely(features, question, count)


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
    low, high = cosine.aminmax()
    return (cosine - low + _RELEVANT) / (high - low).clamp(min=_RELEVANT)


def most_likely(features: Tensor, question: Tensor, count: int) -> Tensor:
    """Return the numbers of tokens that the greedy search for a determinantal point process's mode chooses, in order.

    Parameters
    ----------
    features, question
        See :func:`relevance`.
    count
        How many, one or more, at most as many as there are vision tokens.
    """
    unit = normalize(features.float(), dim=-1)
    weight = relevance(features, question)
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
