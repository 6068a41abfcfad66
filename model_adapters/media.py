"""The one place where pictures are opened: what the model is shown of a file, and where that differs from the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from PIL import Image

Media = Literal["harness", "upright"]
"""How media are read: as the harness's own adapter reads them, or as a viewer shows them."""

Visual = Image.Image | str
"""An image, or the path of an image or a video."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tiff", ".webp"})


def open_picture(visual: Any, media: Media) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a picture given as such or as a path.

    Parameters
    ----------
    visual
        A PIL image, or the path of one.
    media
        "harness": as the harness's own adapter gets it. "upright": as a viewer shows it, in mode RGB.

    Returns
    -------
    PIL.Image.Image
        The picture.
    tuple of str
        A short reason for each difference between what the model is shown and what a viewer shows.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        For anything else.
    """
    if isinstance(visual, Image.Image):
        return visual, ()
    if isinstance(visual, str | Path):
        return Image.open(visual), ()
    raise TypeError(f"cannot open an image given as {type(visual).__name__}: pass a PIL image or a path.")


def open_pictures(visuals: Iterable[Any], media: Media) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """Open pictures, and return them with the notes on all of them, each once; see :func:`open_picture`."""
    opened = [open_picture(visual, media) for visual in visuals]
    return tuple(image for image, _ in opened), tuple(dict.fromkeys(note for _, notes in opened for note in notes))


def is_video(visual: Visual) -> bool:
    """Tell a video's path from an image or an image's path.

    Raises
    ------
    TypeError
        For media that are neither, such as audio.
    """
    if isinstance(visual, Image.Image):
        return False
    if isinstance(visual, str):
        return Path(visual).suffix.lower() not in IMAGE_SUFFIXES
    raise TypeError(f"only images and videos are supported, this document has a {type(visual).__name__}.")
