"""The VTW paper's closed form."""

from __future__ import annotations

from torch import Tensor


def eq1_prefill_flops(tokens_per_layer: Tensor, hidden_size: int, updated: Tensor | None = None) -> Tensor:
    """FLOPs of the prefill by Eq. 1 of the VTW paper, https://arxiv.org/abs/2405.05803.

    A decoder layer on ``s`` tokens of width ``h`` takes ``2 s^2 h + 12 s h^2`` multiply-adds (FFN of width 4h), and a
    multiply-add is two FLOPs. No vision tower, projector or head.

    Parameters
    ----------
    tokens_per_layer
        Integer ``[rows, layers]``, as in :attr:`vtw_eval.engine.Trace.tokens_per_layer`.
    hidden_size
        Width ``h`` of the decoder.
    updated
        Of those tokens, the ones that are no keys alone, see :func:`~vtw_eval.cost.exact.exact_prefill_flops`; None for
        all. The paper knows only such layers; the others are charged k and v, 2 of the 12 ``h^2``, and one query less.

    Returns
    -------
    Tensor
        float64 ``[rows]``.
    """
    s = tokens_per_layer.double()
    u = s if updated is None else updated.double()
    return 2 * (2 * u * s * hidden_size + (12 * u + 2 * (s - u)) * hidden_size**2).sum(dim=-1)
