"""What a token-reduction method computes of its own: scores, similarities, gates. Closed forms over a trace."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from vtw_eval.cost.geometry import Geometry
from vtw_eval.engine import Trace
from vtw_eval.methods import DyVTE, FastV, PyramidDrop, ToMe
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


def choice_flops(trace: Trace, geometry: Geometry) -> dict[str, int]:
    """FLOPs of the matrix products by which a method made its choices in the prefill of a batch.

    * "scores" (FastV, PyramidDrop): the layer whose attention is asked for is run up to its attention function, so its
      k matrix works once more on all its tokens, q and v on one, and one query meets all keys:
      ``2 (n h d_kv + h (d_q + d_kv) + n d_q)`` for n tokens, d_q = heads x head width and d_kv likewise.
    * "keys" (ToMe): its k matrix works once more on all tokens, ``2 n h d_kv``, at every layer that merges.
    * "similarities" (ToMe): each even vision token of a row with each odd one, ``2 ceil(v / 2) floor(v / 2) head``.
    * "gates" (DyVTE): ``2 (2h w + 2w)`` with inner width w, per layer and row that still has vision tokens.

    The other methods look at token ids or draw at random. Sorting, masks and moving tokens are no matrix products.

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
    found: Counter[str] = Counter()
    slots, vision = slots_per_layer(trace), trace.vision_per_layer
    rows = len(slots)
    width = geometry.heads * geometry.head_dim
    keys = geometry.hidden * geometry.kv_heads * geometry.head_dim
    single = geometry.hidden * width + keys

    def entering(layer: int) -> tuple[int, Tensor]:
        """Slots, and vision tokens of each row, before the choice at a layer."""
        if layer == 0:
            assert trace.reduction is not None
            return trace.reduction.prompt.length, trace.reduction.prompt.vision.sum(dim=1).cpu()
        return int(slots[0, layer - 1]), vision[:, layer - 1]

    for part in parts_of(trace.method):
        for layer in part.layers(geometry.layers):
            wide, seen = entering(layer)
            if isinstance(part, FastV) and layer and bool(seen.any()):
                wide = int(slots[0, layer - 1])
                found["scores"] += 2 * rows * (wide * (keys + width) + single)
            elif isinstance(part, PyramidDrop) and bool(seen.any()):
                found["scores"] += 2 * rows * (wide * (keys + width) + single)
            elif isinstance(part, DyVTE):
                inner = part.network.inner
                found["gates"] += int((seen > 0).sum()) * 2 * (2 * geometry.hidden * inner + 2 * inner)
            elif isinstance(part, ToMe):
                merging = seen[vision[:, layer] < seen].tolist()
                if merging:
                    found["keys"] += 2 * rows * wide * keys
                pairs = sum(((v + 1) // 2) * (v // 2) for v in merging)
                found["similarities"] += 2 * pairs * geometry.head_dim
    return {name: flops for name, flops in found.items() if flops}
