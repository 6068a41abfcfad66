"""How many vision tokens stay: all but a share that is removed, or a number for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from vtw_eval.methods.base import check_share, kept_count

DEFAULT_R = 0.5
"""Share that is removed where neither it nor a number of tokens is given."""


def checked_share(r: float | None, tokens: int | None) -> float | None:
    """Return the share to remove, None where a number of tokens is given instead.

    Raises
    ------
    ValueError
        If both are given, or one is out of range.
    """
    if r is not None and tokens is not None:
        raise ValueError(f"r={r} or tokens={tokens}, not both: each says how many vision tokens stay.")
    if r is not None:
        check_share("r", r)
    if tokens is not None and tokens < 0:
        raise ValueError(f"tokens={tokens} is out of range: it is a number of vision tokens for each image, 0 or more.")
    return DEFAULT_R if r is None and tokens is None else r


def runs(mask: Tensor) -> list[Tensor]:
    """Return the places of each unbroken run of True in a boolean ``[tokens]``: an image, if they are vision tokens."""
    places = mask.nonzero().flatten()
    if not len(places):
        return []
    borders = (places.diff() > 1).nonzero().flatten() + 1
    return list(places.tensor_split(borders.tolist()))


def kept_of_rows(vision: Tensor, r: float | None, tokens: int | None) -> Tensor:
    """Return how many vision tokens of each row stay, long ``[rows]``.

    Parameters
    ----------
    vision
        Boolean ``[rows, tokens]``, the vision tokens of the whole prompts.
    r
        Share that is removed; halves are rounded up.
    tokens
        Number that stays for each image, all where an image has no more. An image is one of its :func:`runs`: all
        tiles, or the frames of a video, unless the model puts text between them.
    """
    if tokens is None:
        assert r is not None
        return kept_count(vision.sum(dim=1), r)
    return torch.tensor([sum(min(len(run), tokens) for run in runs(row)) for row in vision], device=vision.device)
