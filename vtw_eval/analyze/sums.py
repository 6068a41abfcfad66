"""From rows of attention weights to numbers: shares by role, mean, variance and entropy by kind of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtw_eval.analyze.roles import BETWEEN, CROSS, IMAGE_SELF, KINDS, OUTPUT, ROLES, SYSTEM, TEXT_SELF, VISION, roles
from vtw_eval.engine import AttentionRows, Entering
from vtw_eval.versions import UpstreamChangedError

_OFF = 1e-2
"""How far a row of weights may be from a sum of 1; half precision rounds."""


@dataclass(frozen=True)
class LayerNumbers:
    """What one layer's attention comes to, on one prompt and its answer."""

    shares: Tensor
    """Of the attention of the prompt's last token and of each generated one but the last, what each role gets and, in
    the last column, what the first token gets: ``[queries, roles + 1]``, mean over heads."""
    mean: Tensor
    """Mean weight of the pairs of each kind, ``[kinds]``; NaN for a kind without any."""
    variance: Tensor
    """Their variance, over pairs and heads."""
    mass: Tensor
    """Of the attention of the queries of each kind, the part that goes to its keys, mean over queries and heads."""
    entropy: Tensor
    """Of the weights of a query on the keys of a kind, taken as a distribution (divided by their sum), in nats; mean
    over heads and the queries that see such keys."""
    partial_entropy: Tensor
    """The part of the entropy of a query's whole row that these keys add: the sum of -w log w, not divided."""


class _Totals:
    """Sums over the chunks of a layer, each ``[kinds]`` in float64."""

    def __init__(self, device: torch.device) -> None:
        zeros = torch.zeros(len(KINDS), dtype=torch.float64, device=device)
        self.pairs, self.weight, self.square = zeros.clone(), zeros.clone(), zeros.clone()
        self.queries, self.entropy, self.entropies, self.partial = (zeros.clone() for _ in range(4))


def layer_numbers(entering: Entering, own: Tensor | None = None) -> LayerNumbers:
    """Read the attention of a layer that is about to run.

    Parameters
    ----------
    entering
        One prompt, perhaps with an answer behind it.
    own
        Its :func:`~vtw_eval.analyze.roles.roles`, if they are known.

    Raises
    ------
    ValueError
        If the prompt shows nothing, or the layer's attention cannot be read.
    UpstreamChangedError
        If weights of a query do not sum to one.
    """
    own = (roles(entering.prompt) if own is None else own).to(entering.hidden.device)
    slots = torch.where(entering.valid[0], own[entering.index[0]], -1).to(own.device)
    first = entering.index[0] == int((own >= 0).int().argmax())
    keys = torch.stack(
        [slots == role for role in range(len(ROLES))] + [first.to(own.device)], dim=1
    )  # [slots, roles+1]
    last = int(entering.prompt.last()[0])
    answering = ((slots == OUTPUT) | (entering.index[0].to(own.device) == last)) & (slots >= 0)
    totals, shares = _Totals(own.device), []
    for rows in entering.attention(entering.valid):
        chosen = rows.chosen[0]
        places = rows.places[0][chosen]
        chunk = _Chunk(rows, keys, chosen)
        off = float((chunk.shares[..., : len(ROLES)].sum(dim=-1) - 1).abs().max()) if len(places) else 0.0
        if off > _OFF:
            raise UpstreamChangedError(f"attention weights of layer {entering.layer} sum to one within {off:.2g} only")
        shares.append(chunk.shares[:, answering[places]].mean(dim=0))
        chunk.add_to(totals, slots[places])
    return LayerNumbers(torch.cat(shares).double().cpu(), *_finished(totals))


class _Chunk:
    """Sums of the rows of some queries over the keys of each role, ``[heads, queries, roles + 1]``."""

    def __init__(self, rows: AttentionRows, keys: Tensor, chosen: Tensor) -> None:
        weights = rows.weights[0][:, chosen]
        to_roles = keys.to(weights.dtype)
        self.shares = weights @ to_roles
        self.squares = weights.square() @ to_roles
        self.entropies = torch.special.entr(weights) @ to_roles
        visible = rows.visible[0].expand(rows.weights.shape[1], -1, -1)[:, chosen]
        self.pairs = visible.to(weights.dtype) @ to_roles

    def add_to(self, totals: _Totals, queries: Tensor) -> None:
        """Add what the queries of each kind pay to its keys; ``queries`` are their roles."""
        of_image, of_text = queries == VISION, (queries >= 0) & (queries != VISION) & (queries != OUTPUT)
        for kind, asking in ((IMAGE_SELF, of_image), (CROSS, of_text), (TEXT_SELF, of_text)):
            values = (self.pairs, self.shares, self.squares, self.entropies)
            pairs, weight, square, entropy = (_on(kind, each[:, asking]).double() for each in values)
            seeing = pairs > 0
            totals.pairs[kind] += pairs.sum()
            totals.weight[kind] += weight.sum()
            totals.square[kind] += square.sum()
            totals.partial[kind] += entropy.sum()
            totals.queries[kind] += seeing.sum()
            paid = seeing & (weight > 0)  # a weight too small for its type is 0, and no distribution then
            total = weight[paid]
            totals.entropy[kind] += (entropy[paid] / total + total.log()).sum()
            totals.entropies[kind] += paid.sum()


def _on(kind: int, sums: Tensor) -> Tensor:
    """Return sums over the keys of a kind, ``[heads, queries]``."""
    if kind in (IMAGE_SELF, CROSS):
        return sums[..., VISION]
    return sums[..., SYSTEM] + sums[..., BETWEEN:OUTPUT].sum(dim=-1)


def _finished(totals: _Totals) -> tuple[Tensor, ...]:
    """Return the means of :class:`LayerNumbers`; NaN where there was nothing."""
    mean = totals.weight / totals.pairs
    variance = (totals.square / totals.pairs - mean.square()).clamp(min=0)
    found = (
        mean,
        variance,
        totals.weight / totals.queries,
        totals.entropy / totals.entropies,
        totals.partial / totals.queries,
    )
    return tuple(each.cpu() for each in found)
