"""What stage ``vision`` asks of features: to lie near the words of what they show."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from vtw_eval.shapes.boards.making.mimetic import WORD_STD


def word_losses(
    features: torch.Tensor, labels: Mapping[str, torch.Tensor], words: Mapping[str, torch.Tensor], table: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return losses of features that are not near the words of what they show, or near words of what they do not.

    Parameters
    ----------
    features
        Projected vision tokens, float32, [images, tokens, width].
    labels
        For each attribute the number of the value, -1 for none, -2 for either; [images, tokens].
    words
        For each attribute that has words, their ids.
    table
        Word embeddings, [vocabulary, width].

    Returns
    -------
    (torch.Tensor, list of torch.Tensor)
        Features as the language model's first layer will see them; losses: of lengths unlike words', and for each
        attribute of tokens that show an object and of those that show none.
    """
    sizes = features.square().mean(-1).sqrt()
    features = F.rms_norm(features, features.shape[-1:])
    shown = labels["color"] >= 0
    losses = [0.1 * (sizes / WORD_STD).log().square().mean()]
    for name, ids in words.items():
        logits = features @ table[ids].T / (features.shape[-1] ** 0.5 * WORD_STD)
        logits = F.pad(logits, (0, 1))  # near none of the words
        targets = labels[name].masked_fill(labels[name] == -1, len(ids))
        loss = F.cross_entropy(logits.mT, targets, reduction="none", label_smoothing=0.05, ignore_index=-2)
        losses += [loss[shown & (targets >= 0)].mean(), 0.3 * loss[~shown].mean()]
    return features, losses
