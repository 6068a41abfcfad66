"""Density peaks: which tokens stand in the middle of a group, by their nearest neighbours."""

from __future__ import annotations

from torch import Tensor, inf

from vtw_eval.methods.base import precise


def peak_scores(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return how much each token is the middle of a group: dense and far from any denser one.

    The density of a token is ``exp(-m)``, m the mean of the squared distances, per square root of the width, to the
    tokens that are nearest to it, itself among them. The score is its product with the distance to the nearest denser
    token; the densest one has the largest distance that there is, and of equally dense ones the earlier is denser.

    Parameters
    ----------
    features
        ``[..., tokens, width]``.
    neighbours
        How many tokens are nearest.

    Returns
    -------
    score : Tensor
        ``[..., tokens]``.
    distance : Tensor
        ``[..., tokens, tokens]``.
    """
    moved = precise(features) - precise(features).mean(dim=-2, keepdim=True)  # distances of small numbers: more exact
    square = moved.square().sum(dim=-1)
    distance = (square[..., None] + square[..., None, :] - 2 * (moved @ moved.mT)).clamp(min=0).sqrt()
    distance = distance / features.shape[-1] ** 0.5
    distance.diagonal(dim1=-2, dim2=-1).zero_()
    density = (-distance.sort(dim=-1).values[..., :neighbours].square().mean(dim=-1)).exp()
    rank = density.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    farther = distance.masked_fill(rank[..., None, :] >= rank[..., None], inf).amin(dim=-1)
    return farther.minimum(distance.amax(dim=(-2, -1))[..., None]) * density, distance
