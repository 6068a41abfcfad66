"""Greedy answers to many continuations of a prefix, packed into a row: the prefix is stored once and read once.

A row holds the tokens of several continuations of its prefix. Each sees the prefix and its own, by a 4-D mask, and
stands at the positions that it would have alone. Continuations end at the right, last tokens of all of them in the last
slots, so that only these go through the head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vtw_eval.engine.calls import MASK, POSITIONS, parameters, with_cache
from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.prefix import Prefix, numbered_from, select

_NOBODY = -1
"""Owner of a slot that is padding."""


def answer_packed(
    model: nn.Module,
    prefix: Prefix,
    rows: Sequence[int],
    own: Sequence[Sequence[Sequence[int]]],
    *,
    kind: MaskKind,
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
) -> list[Tensor]:
    """Answer continuations of prefixes greedily.

    Parameters
    ----------
    model
        The model, with the method of the prefix installed; full attention in all layers.
    prefix
        The prefixes; they can be used again.
    rows
        Which prefix each row begins with; several may begin with the same.
    own
        Of each row: token ids of its continuations, one or more, of one token or more each.
    kind
        Which masks the model's attention takes: "boolean" or "additive".
    max_new_tokens
        Most tokens of an answer.
    eos
        Ids that end an answer.
    pad
        Id that stands behind the end.

    Returns
    -------
    list of Tensor
        Of each row: new tokens of its continuations, long ``[continuations, new]``, as wide as the longest of all.
    """
    device = prefix.ids.device
    index = torch.tensor(rows, device=device)
    pack = Pack(own, prefix.valid[index], device)
    cache = select(prefix.cache, index)
    given = {"input_ids": pack.ids}
    owner, order = pack.owner, pack.order
    seen = torch.empty_like(owner[:, :0])
    ends = torch.tensor(eos, device=device)
    done = pack.asked[:, None] <= torch.arange(pack.most, device=device)
    made: list[Tensor] = []
    embed = cast(Any, model).get_input_embeddings()
    with numbered_from(model, prefix, index):
        while True:
            mask = pack.mask(seen, owner, order)
            arguments: dict[str, Any] = {
                **given,
                MASK: mask if kind == "boolean" else additive(mask, model),
                POSITIONS: position_ids(model, pack.start + order, prefix.deltas, index),
                "use_cache": True,
            }
            if "logits_to_keep" in parameters(model):
                arguments["logits_to_keep"] = pack.most
            logits = model(**with_cache(model, arguments, cache)).logits[:, -pack.most :]
            tokens = logits.float().argmax(dim=-1).masked_fill(done, pad)
            made.append(tokens)
            done = done | torch.isin(tokens, ends)
            if len(made) == max_new_tokens or bool(done.all()):
                break
            seen = torch.cat([seen, owner], dim=1)
            # Not as ids: an answer may hold the id of a placeholder, which shows nothing.
            given = {"inputs_embeds": embed(tokens)}
            owner, order = pack.last, order[:, -pack.most :] + 1
    return [new[: len(each)] for new, each in zip(torch.stack(made, dim=2), own, strict=True)]


class Pack:
    """The continuations of each row, laid out; slots that are padding belong to nobody."""

    def __init__(self, own: Sequence[Sequence[Sequence[int]]], valid: Tensor, device: torch.device) -> None:
        self.most = max(map(len, own))
        """Continuations of the row that has most."""
        before = max(sum(len(tokens) - 1 for tokens in row) for row in own)
        shape = (len(own), before + self.most)
        ids, owner, order = (torch.full(shape, fill) for fill in (0, _NOBODY, 0))
        for row, continuations in enumerate(own):
            slot = 0
            for number, tokens in enumerate(continuations):
                end = slot + len(tokens) - 1
                for where, what, places in (
                    (slice(slot, end), tokens[:-1], range(len(tokens) - 1)),
                    (slice(before + number, before + number + 1), tokens[-1:], [len(tokens) - 1]),
                ):
                    ids[row, where] = torch.tensor(what, dtype=torch.long)
                    owner[row, where] = number
                    order[row, where] = torch.tensor(list(places), dtype=torch.long)
                slot = end
        self.ids, self.owner, self.order = ids.to(device), owner.to(device), order.to(device)
        """Token, continuation and place in it of each slot, long ``[rows, slots]``."""
        self.asked = torch.tensor([len(row) for row in own], device=device)
        self.last = self.owner[:, -self.most :]
        """Owners of the slots of a decode step."""
        self.valid = valid
        self.start = valid.sum(dim=1, keepdim=True)
        """Position of the first token of each continuation."""

    def rows(self, index: Tensor) -> Pack:
        """Return some rows, laid out as before."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(made, name, value[index])
        return made

    def mask(self, seen: Tensor, owner: Tensor, order: Tensor) -> Tensor:
        """Return what the slots of a pass may see, boolean ``[rows, 1, slots, keys]``.

        Parameters
        ----------
        seen
            Owners of the slots of earlier passes, ``[rows, n]``.
        owner, order
            Of the slots of this pass; what was before is before.
        """
        mine, slots = owner[:, :, None], owner.shape[1]
        prefix = (self.valid[:, None, :] & (mine != _NOBODY)).expand(-1, slots, -1)
        earlier = (seen[:, None, :] == mine) & (mine != _NOBODY)
        now = (owner[:, None, :] == mine) & (mine != _NOBODY) & (order[:, None, :] <= order[:, :, None])
        itself = torch.eye(slots, dtype=torch.bool, device=owner.device)  # padding that saw nothing would be NaN
        return torch.cat([prefix, earlier, now | itself], dim=2)[:, None]


def additive(mask: Tensor, model: Any) -> Tensor:
    """Return a boolean mask as numbers to be added to the logits of attention, in the model's precision."""
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def position_ids(model: nn.Module, places: Tensor, deltas: Tensor | None, rows: Tensor) -> Tensor:
    """Return position ids of ``places``, long ``[rows, slots]``; for M-RoPE on four axes, that of text first."""
    if deltas is None:
        return places
    moved = places + deltas[rows.to(deltas.device)].to(places.device)
    return torch.stack([places, moved, moved, moved])
