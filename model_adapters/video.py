"""Decoding of sampled video frames with PyAV, which needs no system library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video."""

    frames: NDArray[np.uint8]
    """RGB, ``[frames, height, width, 3]``."""
    indices: tuple[int, ...]
    """Place of each frame in the video."""
    total: int
    """Number of frames of the video."""
    fps: float
    """Frames per second of the video."""


def read_clip(path: str, choose: Callable[[int, float], Sequence[int]]) -> Clip:
    """Decode the frames that ``choose(total_frames, fps)`` names, in that order, repetitions allowed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no video frames.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.video[0] if container.streams.video else None
        if stream is None:
            raise ValueError(f"{path} holds no video stream.")
        fps = float(stream.average_rate or 0.0)
        total = stream.frames
    if not total:  # some containers do not say
        with av.open(path) as container:
            total = sum(1 for _ in container.decode(video=0))
    if not total:
        raise ValueError(f"{path} holds no video frames.")
    indices = tuple(int(i) for i in choose(total, fps))
    wanted = set(indices)
    frames: dict[int, NDArray[np.uint8]] = {}
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames[i] = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            if len(frames) == len(wanted):
                break
    if missing := wanted - frames.keys():
        raise ValueError(f"{path} promises {total} frames, but {len(missing)} of them cannot be decoded.")
    return Clip(np.stack([frames[i] for i in indices]), indices, total, fps)


def uniform(count: int) -> Callable[[int, float], list[int]]:
    """Choose ``count`` frames at even distances, first and last included; a shorter video repeats frames."""

    def choose(total: int, fps: float) -> list[int]:
        return [int(i) for i in np.linspace(0, total - 1, count, dtype=int)]

    return choose
