"""Greedy answers of VTW for every k at once, for little more than what the unchanged model costs.

Below layer k a withdrawn model *is* the unchanged one. So what prompts begin with, their images above all, runs once
and unchanged; its text tokens behind the first vision token are remembered as they enter each layer k, since from there
on they see no image. The questions follow, packed into a row as in :mod:`vtw_eval.engine.packed`: a layer runs that
row, and beside it a batch of candidates, one for each k up to this layer, which see text only. New words go the same
way: each k has words of its own, in the unchanged row below its layer k and among the candidates from there on.

:mod:`vtw_eval.methods.vtw.search` does the first half of this for one word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.packed import Pack
from vtw_eval.engine.prefix import numbered_from
from vtw_eval.methods.vtw.curve_beginnings import Beginnings, begin
from vtw_eval.methods.vtw.curve_passes import Questions, Words
from vtw_eval.methods.vtw.curve_state import Curve, Pass

__all__ = ["Beginnings", "CurveAnswers", "answer_curve", "begin"]


@dataclass(frozen=True)
class CurveAnswers:
    """What the questions about an image were answered at each k."""

    tokens: Tensor
    """New tokens, long ``[ks + 1, questions, new]``, padded behind the end; the unchanged model's come last."""
    divergence: Tensor
    """KL(withdrawn || unchanged) of the first word in nats, float64 ``[ks, questions]``."""


@torch.no_grad()
def answer_curve(
    anatomy: Anatomy,
    beginnings: Beginnings,
    own: Sequence[Sequence[Sequence[int]]],
    ks: Sequence[int],
    *,
    kind: MaskKind,
    max_new_tokens: int,
    eos: Sequence[int],
    pad: int,
) -> list[CurveAnswers]:
    """Answer continuations of prompts greedily, as VTW does at each k and as the unchanged model does.

    Parameters
    ----------
    anatomy
        The model; no method is installed on it, and no sliding window is shorter than a prompt and its answer.
    beginnings
        From :func:`begin`, with these k; can be used again.
    own
        Of each prefix: token ids of its continuations, one or more each, none a vision token. A prefix may have none.
    ks
        In ascending order, each below the number of layers.
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
    list of CurveAnswers
        Of each prefix.
    """
    rows = [row for row, continuations in enumerate(own) if continuations]
    index = torch.tensor(rows, device=beginnings.prefix.ids.device)
    device = index.device
    pack = Pack([own[row] for row in rows], beginnings.prefix.valid[index], device)
    curve = Curve(anatomy, beginnings, index, pack, list(ks), kind)
    shape = (len(rows), len(ks) + 1, pack.most)
    ends = torch.tensor(eos, device=device)
    done = (pack.asked[:, None, None] <= torch.arange(pack.most, device=device)).expand(shape)
    places, versions = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    made: list[Tensor] = []
    current: Pass = Questions(curve)
    ids = pack.ids
    with curve.installed(), numbered_from(anatomy.model, beginnings.prefix, index):
        while True:
            logits = curve.run(current, ids).unflatten(1, (len(versions), -1))
            if not made:
                divergence = _divergence(logits)
            new = logits.float().argmax(dim=-1).masked_fill(done, pad)
            made.append(torch.full(shape, pad, device=device).index_put((places[:, None], versions), new))
            done = done | torch.isin(new, ends)
            if len(made) == max_new_tokens or bool(done.all()):
                break
            going = ~done.all(dim=2)
            kept_rows, kept = going.any(dim=1), going.any(dim=0)
            kept[-1] = True  # layers need a row to run on
            if not bool(kept_rows.all() & kept.all()):
                curve.drop(kept_rows, kept, len(made) - 1)
                new, done = (each[kept_rows][:, kept] for each in (new, done))
                places, versions = places[kept_rows], versions[kept]
            ids, current = new.flatten(1), Words(curve, len(made))
    tokens = torch.stack(made, dim=3)
    empty = CurveAnswers(tokens[0, :, :0], divergence[0, :, :0])
    found = {
        row: CurveAnswers(tokens[place, :, : len(own[row])], divergence[place, :, : len(own[row])])
        for place, row in enumerate(rows)
    }
    return [found.get(row, empty) for row in range(len(own))]


def _divergence(logits: Tensor) -> Tensor:
    """KL of each k, from logits ``[rows, ks + 1, questions, words]``; float64 ``[rows, ks, questions]``."""
    full = logits[:, -1].double().log_softmax(dim=-1)
    found = []
    for each in logits[:, :-1].unbind(dim=1):  # one after another: vocabularies are large
        log_p = each.double().log_softmax(dim=-1)
        found.append((log_p.exp() * (log_p - full)).sum(dim=-1))
    return torch.stack(found, dim=1) if found else full.new_zeros(len(logits), 0, logits.shape[2])
