"""Held-out accuracy of a family by question type, and by how many layers see the image or video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vtw_eval.shapes.boards.making.check import hidden_from, share_by_type
from vtw_eval.shapes.boards.making.families.family import Family
from vtw_eval.shapes.boards.making.thinning import thin_pass
from vtw_eval.shapes.making.packing import answers_right
from vtw_eval.shapes.questions import Question

_BATCH = 16


@torch.no_grad()
def accuracy(
    family: Family, model: Any, shown: int, layers: int | None = None, seed: int = 0, autocast: bool = True
) -> dict[str, float]:
    """Return the share of right answers by question type, at most one question of each type about an image or video.

    The engine is not asked: vision tokens are hidden by the attention mask, which is what their withdrawal means.

    Parameters
    ----------
    family, model
        What answers.
    shown
        How many held-out images or videos, a multiple of 16.
    layers
        How many layers see them; None means all.
    seed
        Seed of what is shown; not that of the test sets.
    autocast
        Whether to compute in bfloat16.

    Returns
    -------
    dict
        0 to 1, in the order of the family's types. An answer counts as right if greedy decoding would give all of it.
    """
    rng = np.random.default_rng([seed, 2])
    answered: list[tuple[Question, bool]] = []
    first = len(model.model.language_model.layers) if layers is None else layers
    for _ in range(0, shown, _BATCH):
        step = family.held_out(rng, _BATCH)
        batch = family.pack(model, step)
        given = torch.arange(step.tokens).expand(_BATCH, -1)
        vision = batch.input_ids == family.placeholder
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hidden_from(model, first, vision):
            logits, _ = thin_pass(model, family.features(model, step.media), batch, given, family.placeholder)
        flat = [question for row in step.questions for question in row]
        answered += zip(flat, answers_right(logits, batch).tolist(), strict=True)
    return share_by_type(family.types, answered)
