"""Small videos of every kind that a reader has to get right, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]

MATRICES = {"bt709": 1, "bt601": 5, "smpte240m": 7, "bt2020": 9}
"""Colour matrices by their number in ITU-T H.273."""

_UNIT = 1 << 16
ROTATIONS = {
    "90 clockwise": lambda height, width: (0, _UNIT, -_UNIT, 0, height, 0),
    "180": lambda height, width: (-_UNIT, 0, 0, -_UNIT, width, height),
    "90 counter-clockwise": lambda height, width: (0, -_UNIT, _UNIT, 0, 0, width),
    "mirrored": lambda height, width: (-_UNIT, 0, 0, _UNIT, width, 0),
    "upside down": lambda height, width: (_UNIT, 0, 0, -_UNIT, 0, height),
}
"""Display matrices by what a player does: a, b, c, d, and where the picture goes (ISO 14496-12, 8.3.2)."""

SHOWN = {
    "90 clockwise": lambda picture: np.rot90(picture, -1),
    "180": lambda picture: np.rot90(picture, 2),
    "90 counter-clockwise": lambda picture: np.rot90(picture, 1),
    "mirrored": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
}
"""What that makes of a picture."""


def smooth(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[Picture]:
    """Return pictures ``[height, width, 3]`` that change slowly in space and time, as compression likes them."""
    base = np.random.default_rng(seed).integers(0, 256, (6, 8, 3))
    pictures = []
    for i in range(count):
        small = ((np.roll(base, i, axis=1) + 5 * i) % 256).astype(np.uint8)
        pictures.append(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))
    return pictures


def write_clip(
    path: Path,
    pictures: Sequence[Picture],
    *,
    codec: str = "libx264",
    rate: int | Fraction = 8,
    ticks: Sequence[int] | None = None,
    base: Fraction = Fraction(1, 10),
    pix_fmt: str = "yuv420p",
    matrix: str | None = None,
    full_range: bool = False,
    format: str | None = None,
    container: Mapping[str, str] | None = None,
    codec_options: Mapping[str, str] | None = None,
    cover: Picture | None = None,
    marked: bool = False,
) -> Path:
    """Write a video and return its path.

    Parameters
    ----------
    path, pictures
        Where, and what.
    codec, rate, pix_fmt, format, container, codec_options
        As PyAV takes them.
    ticks, base
        When each picture is presented, in units of ``base`` seconds; evenly by default.
    matrix, full_range
        Colours, converted and marked so.
    cover
        Picture that comes first, as a stream of its own.
    marked
        Whether the cover is marked as attached picture.
    """
    with av.open(str(path), "w", options=dict(container or {}), format=format) as made:
        first: Any = None
        if cover is not None:
            first = made.add_stream("mjpeg", rate=1)
            first.height, first.width = cover.shape[:2]
            first.pix_fmt = "yuvj420p"
            if marked and hasattr(first, "disposition"):  # PyAV 12 cannot mark it
                first.disposition = av.stream.Disposition.attached_pic.value
        stream: Any = made.add_stream(codec, rate=rate, options=dict(codec_options or {}))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if ticks is not None:
            stream.codec_context.time_base = base
        if matrix is not None:
            stream.codec_context.colorspace = MATRICES[matrix]
        if full_range:
            stream.codec_context.color_range = 2
        if cover is not None:
            made.mux(first.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            made.mux(first.encode())
        for i, picture in enumerate(pictures):
            frame = yuv_frame(picture, pix_fmt, matrix, full_range)
            if ticks is not None:
                frame.pts, frame.time_base = ticks[i], base
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return path


def yuv_frame(picture: Picture, pix_fmt: str, matrix: str | None, full_range: bool) -> Any:
    """Return a frame whose colours are converted by the definition of BT.709, or by PyAV where none is asked for."""
    if matrix != "bt709" or full_range or pix_fmt != "yuv444p":
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    else:
        red, green, blue = (picture[..., i] / 255 for i in range(3))
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        planes = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
        frame = av.VideoFrame.from_ndarray(np.stack(planes).round().astype(np.uint8), format="yuv444p")
    if matrix is not None:
        frame.colorspace = MATRICES[matrix]
    if full_range:
        frame.color_range = 2
    return frame


def turn(path: Path, rotation: Any, height: int, width: int) -> None:
    """Put a display matrix into the track header of an MP4 or MOV file."""
    a, b, c, d, x, y = rotation(height, width)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x * _UNIT, y * _UNIT, 1 << 30)
    path.write_bytes(data)


def edit(path: Path, *, share: float = 1.0, skip: int = 0) -> None:
    """Change the edit list of an MP4 file: show a share of its duration only, from ``skip`` units of media time on."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    duration, start = struct.unpack(">Ii", data[at + 8 : at + 16])
    data[at + 8 : at + 16] = struct.pack(">Ii", int(duration * share), start + skip)
    path.write_bytes(data)


def promise(path: Path, frames: int) -> None:
    """Change the number of frames in the stream header of an AVI file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = struct.pack("<I", frames)
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    """Keep the first part of a file only, as a broken download does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
