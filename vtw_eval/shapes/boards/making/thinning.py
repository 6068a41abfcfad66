"""Packed questions about a part of the vision tokens: the same answers as if the others were masked, at less cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vtw_eval.shapes.making.packing import Packed


def thinned(shown: torch.Tensor, rng: np.random.Generator, ground: tuple[int, int], every: bool) -> torch.Tensor:
    """Draw which vision tokens the language model gets.

    Parameters
    ----------
    shown
        True at tokens that show an object, [rows, tokens].
    rng
        Source of randomness.
    ground
        At least and at most how many others are given beside the most that any row has of these.
    every
        Whether all are given.

    Returns
    -------
    torch.Tensor
        Their numbers, ascending, [rows, given].
    """
    rows, tokens = shown.shape
    if every:
        return torch.arange(tokens).expand(rows, -1)
    count = min(tokens, int(shown.sum(1).max()) + int(rng.integers(*ground, endpoint=True)))
    order = shown + torch.from_numpy(rng.random(shown.shape))  # objects first, ground in any order
    return order.topk(count).indices.sort().values


def thin_logits(model: Any, features: torch.Tensor, batch: Packed, given: torch.Tensor) -> torch.Tensor:
    """Run the language model on a packed batch with some of the vision tokens and return the answers' logits.

    Parameters
    ----------
    model
        The model, a LLaVA or one that is built like it.
    features
        Projected vision tokens, [rows, patches, width].
    batch
        The packed questions, with places for all vision tokens.
    given
        Numbers of the patches whose tokens are given, ascending, [rows, given]. They keep their positions.

    Returns
    -------
    torch.Tensor
        [targets, vocabulary].
    """
    return thin_pass(model, features, batch, given, model.config.image_token_id)[0]


def thin_pass(
    model: Any, features: torch.Tensor, batch: Packed, given: torch.Tensor, placeholder: int, states: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run the language model as :func:`thin_logits` does and return the states of the given vision tokens too.

    Parameters
    ----------
    model, features, given
        As there.
    batch
        As there; positions may have axes, [axes, rows, length].
    placeholder
        Id of a vision token's place.
    states
        Whether states are wanted.

    Returns
    -------
    (torch.Tensor, tuple of torch.Tensor)
        Logits, [targets, vocabulary]; if wanted, what the given vision tokens are before the first layer and after
        each, [rows, given, width], the last after the norm.
    """
    rows, length = batch.input_ids.shape
    patches, kept = features.shape[1], given.shape[1]
    before = int((batch.input_ids[0] == placeholder).nonzero()[0])
    every = torch.arange(length).expand(rows, -1)
    order = torch.cat([every[:, :before], given + before, every[:, before + patches :]], dim=1)

    chosen = features.gather(1, given[..., None].expand(-1, -1, features.shape[-1]))
    words = model.get_input_embeddings()(batch.input_ids)
    inputs = torch.cat([words[:, :before], chosen.to(words.dtype), words[:, before + patches :]], dim=1)
    row = torch.arange(rows)[:, None, None]
    mask = batch.attention_mask[:, 0][row, order[:, :, None], order[:, None]]
    positions = batch.position_ids
    output = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=torch.zeros(mask.shape).masked_fill_(~mask, -1e9)[:, None],
        position_ids=positions.gather(-1, order.expand(*positions.shape[:-1], -1)),
        use_cache=False,
        output_hidden_states=states,
    )
    hidden = output.last_hidden_state
    logits = model.lm_head(hidden[batch.sources // length, batch.sources % length - (patches - kept)])
    return logits, tuple(state[:, before : before + kept] for state in output.hidden_states) if states else ()
