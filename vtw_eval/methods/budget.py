"""How many vision tokens stay: all but a share that is removed, or a number for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from vtw_eval.methods.base import check_share, kept_count


def check_budget(r: float | None, tokens: int | None) -> None:
    """Raise ``ValueError`` unless exactly one of a share to remove and a number of tokens is given, and possible."""
    if r is not None and tokens is not None:
        raise ValueError(f"r={r} or tokens={tokens}, not both: each says how many vision tokens stay.")
    if r is not None:
        check_share("r", r)
    if tokens is not None and tokens < 0:
        raise ValueError(f"tokens={tokens} is out of range: it is a number of vision tokens for each image, 0 or more.")


def kept_of_rows(vision: Tensor, r: float | None, tokens: int | None) -> Tensor:
    """Return how many vision tokens of each row stay, long ``[rows]``.

    Parameters
    ----------
    vision
        Boolean ``[rows, tokens]``, the vision tokens of the whole prompts.
    r
        Share that is removed; halves are rounded up.
    tokens
        Number that stays for each image, all where an image has no more. An image is an unbroken run of vision tokens:
        its tiles, or the frames of a video, unless the model puts text between them.
    """
    if tokens is None:
        assert r is not None
        return kept_count(vision.sum(dim=1), r)
    begins = vision & ~torch.nn.functional.pad(vision, (1, 0))[:, :-1]
    run = begins.cumsum(dim=1) * vision  # 1, 2, ... by image; 0 for text
    sizes = torch.zeros(len(vision), vision.shape[1] + 1, dtype=torch.long, device=vision.device)
    sizes = sizes.scatter_add(1, run, vision.long())
    return sizes[:, 1:].clamp(max=tokens).sum(dim=1)
