"""The one place where pictures are opened: what the model is shown of a file, and where that differs from the file.

Harnesses hand pictures on as Pillow opens them, and Pillow converts as its documentation says: values of deep grey are
clipped at 255, transparency is forgotten, the orientation tag is left alone. :func:`open_picture` says so, or opens
them as a viewer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

Made = TypeVar("Made")

Media = Literal["harness", "upright"]
"""How media are read: as the harness's own adapter reads them, or as a viewer shows them."""

Visual = Image.Image | str
"""An image, or the path of an image or a video."""

ToRGB = Callable[[Image.Image], Image.Image]
"""How an adapter makes RGB of a picture."""

Found = tuple[Image.Image, tuple[str, ...]]
"""A picture and the notes on it."""

ORIENTATION = "orientation tag ignored"
TRANSPARENCY = "transparency dropped"
ANIMATION = "first frame of an animation"
PALETTE = "palette resized without smoothing"
PAGES = "first page of several"
DAMAGED = "file is truncated or damaged"
BLANK = "white in the place of the picture"
CLIPPED = {"16": "16-bit grey clipped", "32": "32-bit grey clipped", "F": "float grey clipped"}
"""Reasons, as they stand in results."""

_ANIMATED = frozenset({"AVIF", "FLI", "GIF", "PNG", "WEBP"})
_NOT_STILLS = frozenset({"MPEG"})
"""Pillow knows these, but cannot show them."""

_VIDEO_STARTS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"0&\xb2u\x8ef\xcf\x11")
"""First bytes of Matroska and WebM, Ogg, Flash, MPEG-1 and -2, ASF."""

_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of pictures in the container of MP4."""


def plain_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as Pillow does."""
    return image.convert("RGB")


def open_picture(visual: Any, media: Media, to_rgb: ToRGB = plain_rgb) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a picture given as such or as a path.

    Parameters
    ----------
    visual
        A PIL image, or the path of one.
    media
        "harness": as Pillow opens it, for the adapter to convert. "upright": as a viewer shows it, in mode RGB: turned
        as the orientation tag says, transparent parts white, deep grey scaled to eight bits by the range of its type.
    to_rgb
        How the adapter converts it to RGB afterwards.

    Returns
    -------
    PIL.Image.Image
        The picture; what ``to_rgb`` cannot convert comes in mode RGB.
    tuple of str
        A short reason for each difference between what the model is shown and what a viewer shows.

    Raises
    ------
    OSError
        If there is no such file, if it is no picture, or if it is truncated and Pillow's ``LOAD_TRUNCATED_IMAGES`` is
        not set.
    TypeError
        For anything else.
    ValueError
        For deep grey whose range nobody knows.
    """
    image, notes = _loaded(visual)
    if image.format in {*_ANIMATED, "TIFF"} and getattr(image, "n_frames", 1) > 1:
        notes.append(PAGES if image.format == "TIFF" else ANIMATION)
    if media == "upright":
        return ImageOps.exif_transpose(viewed(image)), tuple(notes)
    if orientation(image) != 1:
        notes.append(ORIENTATION)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, tuple(notes)
    try:
        converted = to_rgb(image)
    except ValueError:  # the harness's own adapter fails
        return viewed(image), tuple(notes)
    if (reason := _lost(image)) and not _equal(converted, image):
        notes.append(reason)
    return image, tuple(notes)


def open_pictures(
    visuals: Iterable[Any], media: Media, to_rgb: ToRGB = plain_rgb
) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """Open pictures, and return them with the notes on all of them, each once; see :func:`open_picture`."""
    opened = [open_picture(visual, media, to_rgb) for visual in visuals]
    return tuple(image for image, _ in opened), once(note for _, notes in opened for note in notes)


def once(notes: Iterable[str]) -> tuple[str, ...]:
    """Return notes without repetitions, in their order."""
    return tuple(dict.fromkeys(notes))


def orientation(image: Image.Image) -> int:
    """Return the orientation that a picture's tag asks for, 1 to 8; 1 is how it is stored."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def viewed(image: Image.Image) -> Image.Image:
    """Return a picture in mode RGB as a viewer shows it, but not turned; the orientation tag stays.

    Raises
    ------
    ValueError
        For deep grey whose range nobody knows.
    """
    if is_deep(image):
        made = eight_bits(image)
        # Only now, because a colour that stands for transparency is one of the deep values.
        made.info = {name: value for name, value in image.info.items() if name != "transparency"}
        return made
    if is_transparent(image):
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        made = Image.alpha_composite(white, image).convert("RGB")
        made.info = {name: value for name, value in image.info.items() if name != "transparency"}
        return made
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture's grey has more than eight bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_transparent(image: Image.Image) -> bool:
    """Tell whether a picture can have transparent parts."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or image.info.get("transparency") is not None


def eight_bits(image: Image.Image) -> Image.Image:
    """Return deep grey in mode RGB, from black at 0 to white at the largest value of its type.

    The type of floats is [0, 1], and that of 32-bit integers the smallest of 8, 16 and 31 bits that holds the values,
    because programs keep smaller types in these; so do floats beyond 1.

    Raises
    ------
    ValueError
        If values are negative, no numbers, or floats beyond 16 bits.
    """
    values: NDArray[Any] = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and (image.mode != "F" or high <= 65535)):
        raise ValueError(f"a picture of mode {image.mode} with values from {low:g} to {high:g} has no known range.")
    white = _white(image, high)
    grey = (values * (255 / white)).round().astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _white(image: Image.Image, high: float) -> float:
    if image.mode == "F" and high <= 1:
        return 1.0
    # Pillow opens 16-bit PNG and PPM in mode I, too.
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 65535.0
    return next(float(white) for white in (255, 65535, 2**31 - 1) if high <= white)


def _lost(image: Image.Image) -> str:
    """Return what converting a picture may have lost."""
    if is_deep(image):
        if image.mode == "F":
            return CLIPPED["F"]
        high = float(np.asarray(image).max())
        return CLIPPED["16" if _white(image, high) <= 65535 else "32"]
    return TRANSPARENCY if is_transparent(image) else ""


def _equal(converted: Image.Image, image: Image.Image) -> bool:
    try:
        right = viewed(image)
    except ValueError:  # nobody knows what is right
        return False
    return np.array_equal(np.asarray(converted), np.asarray(right))


@contextmanager
def strictly() -> Iterator[None]:
    """Let Pillow refuse truncated files within, as it does unless told otherwise."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def noting_damage(make: Callable[[], Made]) -> tuple[Made, tuple[str, ...]]:
    """Return what a function makes of files that it opens, and a note if one of them is damaged.

    lmms-eval tells Pillow to take truncated files for whole ones. The function is called again, as it is told, where
    Pillow refuses them.
    """
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        return make(), ()
    try:
        with strictly():
            return make(), ()
    except (OSError, SyntaxError, EOFError):  # Pillow's ways to say so
        return make(), (DAMAGED,)


def _loaded(visual: Any) -> tuple[Image.Image, list[str]]:
    if isinstance(visual, str | Path):

        def opened() -> Image.Image:
            image = Image.open(visual)
            image.load()
            return image

        image, notes = noting_damage(opened)
        return image, list(notes)
    if not isinstance(visual, Image.Image):
        raise TypeError(f"cannot open an image given as {type(visual).__name__}: pass a PIL image or a path.")
    file = getattr(visual, "fp", None)
    if not getattr(visual, "tile", None) or file is None or not ImageFile.LOAD_TRUNCATED_IMAGES:
        visual.load()
        return visual, []

    def again() -> None:
        file.seek(0)
        Image.open(file).load()  # of its own, because a load that failed cannot be repeated

    place = file.tell()
    _, notes = noting_damage(again)
    file.seek(place)
    visual.load()
    return visual, list(notes)


def inspected(document: Any, media: Media) -> tuple[Any, list[Found]]:
    """Look at the pictures of a document before a task's own code converts them.

    Parameters
    ----------
    document
        A value of any kind; pictures are looked for in dictionaries and sequences.
    media
        "harness": the document stays as it is. "upright": its pictures are replaced by what a viewer shows.

    Returns
    -------
    document
        The document.
    list of Found
        The pictures that are shown otherwise than a viewer shows them once they are converted to RGB, and why.
    """
    if isinstance(document, Image.Image):
        image, notes = open_picture(document, media)
        shown = image if media == "upright" else document
        return shown, ([(shown, notes)] if notes else [])
    if isinstance(document, Mapping):
        pairs = {key: inspected(value, media) for key, value in document.items()}
        found = [one for _, part in pairs.values() for one in part]
        return ({key: value for key, (value, _) in pairs.items()} if media == "upright" else document), found
    if isinstance(document, list | tuple):
        parts = [inspected(value, media) for value in document]
        found = [one for _, part in parts for one in part]
        return (type(document)([value for value, _ in parts]) if media == "upright" else document), found
    return document, []


def is_video(visual: Visual) -> bool:
    """Tell a video's path from an image or an image's path, by what the file holds.

    Animated pictures, such as GIF, are pictures.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither.
    TypeError
        For media that are neither, such as audio.
    """
    if isinstance(visual, Image.Image):
        return False
    if not isinstance(visual, str):
        raise TypeError(f"only images and videos are supported, this document has a {type(visual).__name__}.")
    with open(visual, "rb") as file:
        start = file.read(32)
    if start[4:8] == b"ftyp":
        return start[8:12] not in _STILL_BRANDS
    if start.startswith(_VIDEO_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return True
    try:
        with Image.open(visual) as image:
            return image.format in _NOT_STILLS
    except (OSError, SyntaxError, ValueError):
        return _has_frames(visual)


def _has_frames(path: str) -> bool:
    import av

    try:
        with av.open(path) as container:
            # FFmpeg opens stills, and texts, as videos; what Pillow does not know of them is no video either.
            name = container.format.name
            if container.streams.video and name != "tty":
                return not (name.endswith("pipe") or name == "image2")
    except av.FFmpegError:
        pass
    raise ValueError(f"{path} is neither a picture that Pillow knows nor a video that FFmpeg knows.")


def summary(noted: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each note.

    Parameters
    ----------
    noted
        By note: names of the documents.
    """
    return [
        f"{note}: {len(names)} document{'s' if len(names) > 1 else ''} "
        f"({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for note, names in noted.items()
    ]
