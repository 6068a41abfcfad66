"""Pictures in which the patches of some tokens stand out."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

GONE, HATCH = (24, 26, 30), (120, 124, 130)
"""What lies over a patch whose tokens are gone: dark, with lines, so that it is seen on pictures of any colour."""
COVER = 208
"""How opaque that is, of 255."""
EDGE = (213, 94, 0, 255)
"""The line around what is kept, on the side of what is gone."""
COLOURS = ((0, 114, 178), (240, 228, 66), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
"""What lies over patches whose tokens were merged into one, a colour for each group in turn: seen apart by all."""
TINT = 140
"""How opaque that is, of 255."""
_NOTHING = 0.02
"""Share of a patch below which it counts as gone, and distance from 1 below which as kept."""


def overlay(present: ArrayLike, colour: ArrayLike, height: int, width: int) -> NDArray[np.uint8]:
    """Return what lies over a picture so that patches that are present stand out.

    Parameters
    ----------
    present
        ``[rows, columns]``: how much of each patch goes on, 0 to 1; NaN counts as gone, since no token has it.
    colour
        Integers ``[rows, columns]``: which of :data:`COLOURS` a patch has; -1 for none.
    height, width
        Of the picture.

    Returns
    -------
    NDArray
        Red, green, blue, opacity, ``[height, width, 4]``; all of it clear over patches that go on whole and alone.
    """
    share = np.nan_to_num(np.asarray(present, dtype=float), nan=0.0)
    share = np.where(share > 1 - _NOTHING, 1.0, np.where(share < _NOTHING, 0.0, share))
    rows = np.arange(height) * share.shape[0] // height
    columns = np.arange(width) * share.shape[1] // width
    large, tint = (values[rows][:, columns] for values in (share, np.asarray(colour)))
    found = np.zeros((height, width, 4), dtype=np.uint8)
    lines = (np.arange(height)[:, None] + np.arange(width)) % max(5, min(height, width) // 24)
    found[..., :3] = np.where((lines == 0)[..., None], HATCH, GONE)
    found[..., 3] = np.round((1 - large) * COVER)
    gone = large == 0
    found[gone & _beside(~gone, max(1, min(height, width) // 160))] = EDGE
    for number, shade in enumerate(COLOURS):
        found[(tint == number) & (large == 1)] = (*shade, TINT)
    return found


def _beside(where: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return which pixels are at most some pixels away, sideways or up and down, from one that is True."""
    found = where.copy()
    for step in range(1, distance + 1):
        found[step:] |= where[:-step]
        found[:-step] |= where[step:]
        found[:, step:] |= where[:, :-step]
        found[:, :-step] |= where[:, step:]
    return found


def drawn(pixels: NDArray[np.uint8], over: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture, ``[height, width, 3]``, with what lies over it."""
    opacity = over[..., 3:].astype(np.float64) / 255
    return np.round(pixels * (1 - opacity) + over[..., :3] * opacity).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture, with opacity or without, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_url(pixels: NDArray[np.uint8]) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def sheet(pictures: Sequence[NDArray[np.uint8]], least: int = 224, gap: int = 8) -> NDArray[np.uint8]:
    """Return pictures side by side on white, at most as many in a row as there are rows, or four.

    Parameters
    ----------
    pictures
        ``[height, width, 3]`` each.
    least
        Smaller ones are enlarged by a whole factor to this many pixels of the shorter side.
    gap
        Pixels between them.
    """
    large = [_enlarged(picture, least) for picture in pictures]
    across = max(min(len(large), 4), math.isqrt(len(large)))
    height, width = (max(picture.shape[axis] for picture in large) for axis in (0, 1))
    down = -(-len(large) // across)
    found = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(large):
        top, left = number // across * (height + gap), number % across * (width + gap)
        found[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return found


def _enlarged(picture: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """Return a picture by the smallest whole factor with which its shorter side has so many pixels."""
    factor = max(1, -(-least // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
