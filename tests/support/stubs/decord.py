"""The part of decord that lmms-eval's own adapters use, on PyAV; on the path only where decord is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


class _Frames:
    def __init__(self, frames: Any) -> None:
        self._frames: NDArray[np.uint8] = frames

    def asnumpy(self) -> NDArray[np.uint8]:
        return self._frames


class VideoReader:
    def __init__(self, path: str, ctx: Any = None, num_threads: int = 0) -> None:
        with av.open(path) as container:
            self._fps = float(container.streams.video[0].average_rate or 0)
            frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
        self._frames = np.stack(frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> _Frames:
        return _Frames(self._frames[index])

    def get_batch(self, indices: Sequence[int]) -> _Frames:
        return _Frames(self._frames[list(indices)])

    def get_avg_fps(self) -> float:
        return self._fps


def cpu(index: int = 0) -> None:
    return None
