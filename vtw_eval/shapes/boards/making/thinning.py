"""Packed questions about a part of the vision tokens: the same answers as if the others were masked, at less cost."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from vtw_eval.shapes.making.packing import Packed


def thin_logits(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Packed, given: torch.Tensor
) -> torch.Tensor:
    """Run the language model on a packed batch with some of the vision tokens and return the answers' logits.

    Parameters
    ----------
    model
        The model.
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
    rows, length = batch.input_ids.shape
    patches, kept = features.shape[1], given.shape[1]
    before = int((batch.input_ids[0] == model.config.image_token_id).nonzero()[0])
    every = torch.arange(length).expand(rows, -1)
    order = torch.cat([every[:, :before], given + before, every[:, before + patches :]], dim=1)

    chosen = features.gather(1, given[..., None].expand(-1, -1, features.shape[-1]))
    words = model.get_input_embeddings()(batch.input_ids)
    inputs = torch.cat([words[:, :before], chosen.to(words.dtype), words[:, before + patches :]], dim=1)
    row = torch.arange(rows)[:, None, None]
    mask = batch.attention_mask[:, 0][row, order[:, :, None], order[:, None]]
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=torch.zeros(mask.shape).masked_fill_(~mask, -1e9)[:, None],
        position_ids=batch.position_ids.gather(1, order),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[batch.sources // length, batch.sources % length - (patches - kept)])
