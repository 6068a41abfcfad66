"""What a token-reduction method computes of its own: scores, similarities, gates. Closed forms over a trace."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from vtw_eval.cost.geometry import Geometry
from vtw_eval.engine import Reads, Trace
from vtw_eval.methods import Method
from vtw_eval.methods.base import Asked
from vtw_eval.methods.composite import parts_of


def slots_per_layer(trace: Trace) -> Tensor:
    """Return how many tokens each layer computes on in the prefill of a batch, padding included.

    A layer that sees the whole prompt has the prompt's width for every row; from the first removal on, a layer is as
    wide as the longest row's kept tokens.

    Parameters
    ----------
    trace
        Of a method that has run.

    Returns
    -------
    Tensor
        Long ``[rows, layers]``; all rows are the same.
    """
    tokens = trace.tokens_per_layer  # raises if nothing has run
    assert trace.reduction is not None
    length = trace.reduction.prompt.length
    widths = [length if layout is None else layout.slots for layout in trace.reduction.layouts]
    return torch.tensor(widths).expand_as(tokens).clone()


def updated_slots_per_layer(trace: Trace) -> Tensor:
    """Return on how many of its slots each layer runs in the prefill of a batch, padding included.

    Those of :func:`slots_per_layer`, but in layers that leave vision tokens as they are the row with the most text.

    Parameters
    ----------
    trace
        Of a method that has run.

    Returns
    -------
    Tensor
        Long ``[rows, layers]``; all rows are the same.
    """
    slots, updated = slots_per_layer(trace), trace.updated_per_layer
    for i in trace.frozen:
        slots[:, i] = updated[:, i].max()
    return slots


def choice_flops(trace: Trace, geometry: Geometry) -> dict[str, int]:
    """FLOPs of the matrix products by which a method made its choices in the prefill of a batch.

    They are those of what it has read (:func:`read_flops`) and of what it computes itself (:meth:`Method.own_flops`).
    Sorting, masks and moving tokens are no matrix products.

    Parameters
    ----------
    trace
        Of a method that has run.
    geometry
        Sizes of the model.

    Returns
    -------
    dict of str to int
        FLOPs by kind; empty for a method that computes none.
    """
    found = Counter(read_flops(trace, geometry))
    found["similarities"] += sum(look.flops or 0 for look in trace.looks if look.what is Reads.HIDDEN)
    after = trace.vision_per_layer
    assert trace.reduction is not None
    before = torch.cat([trace.reduction.prompt.vision.sum(dim=1, keepdim=True).cpu(), after[:, :-1]], dim=1)
    for part in parts_of(trace.method):
        if isinstance(part, Method):
            for i in part.layers(geometry.layers):
                prompt = trace.reduction.prompt
                sizes = geometry.hidden, geometry.head_dim, geometry.kv_heads
                asked = Asked(i, prompt, before[:, i], after[:, i], *sizes)
                found.update(part.own_flops(asked))
    return {name: flops for name, flops in found.items() if flops}


def read_flops(trace: Trace, geometry: Geometry) -> dict[str, int]:
    """FLOPs of the matrix products that the model does once more, so that a method can read of it.

    * "scores" (attention): the layer is run up to its attention function, so its k matrix works once more on all its
      tokens, q and v on one, and one query meets all keys: ``2 (n h d_kv + h (d_q + d_kv) + n d_q)`` for n tokens,
      d_q = heads x head width and d_kv likewise. For m queries q works on all tokens, and m queries meet all keys.
      The same without the rotary embedding.
      So does the mean query of some tokens: q works on all, and one query meets all keys.
    * "keys": the k matrix works once more on all tokens, ``2 n h d_kv``; for rotated keys the layer is run up to its
      attention function, which takes q and v of one token too: ``2 h (d_q + d_kv)`` more. "values" likewise, with k
      and v changed about.

    * "tower": a layer of the vision tower is run up to its attention function: its k matrix works once more on all its
      tokens, q on one (CLS) or all, v on one, a joint qkv matrix on all; these queries meet all keys of their image or
      window. The look itself tells.

    Hidden states, embeddings, roles and ids are there anyway, and a norm is no matrix product.

    Parameters
    ----------
    trace, geometry
        As in :func:`choice_flops`.
    """
    found: Counter[str] = Counter()
    rows = len(trace.tokens_per_layer)
    width = geometry.heads * geometry.head_dim
    keys = geometry.hidden * geometry.kv_heads * geometry.head_dim
    for look in trace.looks:
        if look.what is Reads.HIDDEN:  # products of its own
            continue
        if look.flops is not None:
            found["tower"] += look.flops
        elif look.what is Reads.KEYS:
            found["keys"] += 2 * rows * look.slots * keys
        elif look.what in (Reads.KEYS_BEFORE, Reads.ROTATED_KEYS, Reads.VALUES_BEFORE):
            kind = "values" if look.what is Reads.VALUES_BEFORE else "keys"
            found[kind] += 2 * rows * (look.slots * keys + geometry.hidden * width + keys)
        else:
            # One query is known beforehand; several are picked from those of all tokens.
            projected, queries = (1, 1) if look.queries is None else (look.slots, look.queries)
            products = look.slots * keys + projected * geometry.hidden * width + keys + queries * look.slots * width
            found["scores"] += 2 * rows * products
    return dict(found)
