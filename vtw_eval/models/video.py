"""The one reader of videos: what a player shows of a file, and what the readers of the harnesses make of it.

Frames are decoded one after the other with PyAV, which needs no system library; nothing is sought, so key frames and
the index of a file do not matter. A player turns and mirrors frames as the file's display matrix says, converts colours
by the matrix that they are marked with, leaves out what an edit list hides, and ignores a cover picture. So does decord
(https://github.com/dmlc/decord), which most adapters of the harnesses use, but for edit lists, mirrored videos and
where its seeking fails. Where an answer has to be that of a harness's own adapter, decord is therefore asked itself,
and what it shows is compared. Plain PyAV, as Video-LLaVA's adapters use it, does none of this.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vtw_eval.media import Media, once
from vtw_eval.models.family import DocumentPrompt

Choose = Callable[[int, float], Sequence[int]]
"""Places of the frames to show, for the number of frames and the frames per second of a video; repetitions allowed."""

Reader = Literal["player", "decord", "pyav"]
"""Who is followed: a player, or the reader of a harness's own adapter."""

DAMAGED = "damaged frames of a video left out"
SHORT = "a video is cut: it ends before its header says"
REPEATED = "frames of a short video shown more than once"
SIZES = "frames of a video that changes its size scaled to the first"
EDITED = "edit list of a video ignored: frames hidden or repeated"
SOUGHT = "other frames of a video than the chosen ones"
TURNED = "rotation or mirroring of a video ignored"
COLOURS = "colour matrix of a video ignored"
COUNTED = "frames of a video counted by its header"
COVER = "cover picture shown instead of the video"
"""Reasons, as they stand in results."""

_NOT_BT601 = frozenset({1, 4, 7, 9, 10})
"""Colour spaces, by their numbers in ITU-T H.273, whose conversion to RGB is not that of BT.601."""
_BT601, _FULL = 5, 2


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
    """Frames per second of the video on average; 0 if that is unknown, which only a single frame leaves open."""
    times: tuple[float, ...] = ()
    """When each frame is presented, in seconds after the video's first frame."""
    duration: float = 0.0
    """Seconds from the first frame's beginning to the last one's end."""
    notes: tuple[str, ...] = ()
    """A short reason for each way in which these frames are not what a player shows, or are fewer than promised."""


@dataclass(frozen=True)
class _File:
    """What the packets of a file tell, before anything is decoded."""

    path: str
    stream: int
    """Index of the video stream that a player shows."""
    first: int
    """Index of the first video stream."""
    packets: int
    """Packets of the stream; not all of them need hold a frame that is shown."""
    hidden: int
    """Those of them that an edit list hides."""
    header: int
    """Frames of the first video stream as the header says, 0 if it does not."""
    rate: float
    """Frames per second, 0 if unknown."""
    promised: float | None
    """Seconds of video that the header promises."""
    slack: float
    """Share of them that may be missing, because they may count other streams too."""
    cut: bool
    """Whether the file has no end mark, or fewer packets than it says, though its format asks for them."""


@dataclass
class _Decoded:
    """One pass over a stream."""

    frames: dict[int, Any] = field(default_factory=dict)
    """The wanted ones, frames of PyAV, by their places."""
    times: list[float | None] = field(default_factory=list)
    """When each frame is presented, wanted or not."""
    last: float = 0.0
    """Seconds that the last frame lasts, 0 if unknown."""
    damaged: int = 0
    """Packets that could not be decoded, or read."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    matrix: tuple[int, ...] | None = None
    """Display matrix of the first frame."""


def reader_of(media: Media, harness: Reader) -> Reader:
    """Return who is followed under the option ``media``, where the harness's own adapter follows ``harness``."""
    return harness if media == "harness" else "player"


def read_clip(path: str, choose: Choose, reader: Reader = "player") -> Clip:
    """Decode the frames that ``choose(total_frames, fps)`` names, in that order, repetitions allowed.

    Parameters
    ----------
    path
        The file.
    choose
        Called with the number of frames that there really are, or that the followed reader takes it for.
    reader
        "player": what a player shows. "decord", "pyav": what that reader shows, as the adapters of the harnesses use
        it; where it fails, or is not installed, what a player shows.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read as a video, or holds none.
    """
    file = _open(path)
    decoded, indices = _choose(file, choose)
    right = _as_player(file, decoded, indices)
    if reader == "decord":
        return _as_decord(path, choose, right, _mirrored(decoded.matrix)) or right
    if reader == "pyav":
        return _as_pyav(file, choose, decoded, right) or right
    return right


def read_clips(prompts: Sequence[DocumentPrompt], choose: Choose, reader: Reader) -> list[list[Clip]]:
    """Read the videos of a batch, and return those of each prompt; see :func:`read_clip`."""
    return [[read_clip(video, choose, reader) for video in prompt.videos] for prompt in prompts]


def notes_on(rows: Sequence[Sequence[Clip]]) -> tuple[tuple[str, ...], ...]:
    """Return for each prompt the notes on its videos, each once."""
    return tuple(once(note for clip in row for note in clip.notes) for row in rows)


def uniform(count: int) -> Choose:
    """Choose ``count`` frames at even distances, first and last included; a shorter video repeats frames."""

    def choose(total: int, fps: float) -> list[int]:
        return [int(i) for i in np.linspace(0, total - 1, count, dtype=int)]

    return choose


def check_whole(path: str) -> None:
    """Decode a video to its end.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`read_clip`; also for one that is damaged or cut.
    """
    clip = read_clip(path, lambda total, fps: [0])
    if broken := [note for note in clip.notes if note in (DAMAGED, SHORT)]:
        raise ValueError(f"{path}: {'; '.join(broken)}")


def frames_of(path: str) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield all frames of a video as a player shows them, with their times.

    Yields
    ------
    frame : numpy.ndarray
        RGB, ``[height, width, 3]``, all of one size.
    seconds : float
        When it is presented, after the first frame.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`read_clip`; also for a frame that is damaged.
    """
    import av

    file = _open(path)
    beat = 1 / file.rate if file.rate > 0 else 0.0
    first: Any = None
    with av.open(path) as container:
        for place, frame in enumerate(_decode(container, file.stream, _Decoded(), strict=True)):
            first = first or frame
            known = frame.time is not None and first.time is not None
            picture = apply_display_matrix(rgb(frame, (first.width, first.height)), _matrix(first))
            yield picture, frame.time - first.time if known else place * beat


def _open(path: str) -> _File:
    """Look through the packets of a file for the video that a player shows.

    Raises
    ------
    ValueError
        If there is none, or the file cannot be opened.
    """
    import av

    try:
        with av.open(path) as container:
            found = _look(path, container)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be read as a video: {reason}. Is the file whole?") from error
    return found


def _look(path: str, container: Any) -> _File:
    import av

    videos = list(container.streams.video)
    counts = {stream.index: 0 for stream in videos}
    hidden = dict.fromkeys(counts, 0)
    stamps: dict[int, list[float]] = {index: [] for index in counts}
    try:
        for packet in container.demux(videos) if videos else ():
            if packet.size:
                counts[packet.stream.index] += 1
                hidden[packet.stream.index] += packet.is_discard
                if packet.pts is not None:
                    stamps[packet.stream.index].append(float(packet.pts * packet.time_base))
    except av.error.FFmpegError:
        pass  # decoding tells how far one gets
    real = [stream for stream in videos if not _is_picture(stream)]
    if not real:
        raise ValueError(f"{path} holds {'only a cover picture' if videos else 'no video stream'}.")
    # A cover picture that is not marked as such has one packet.
    chosen = max(real, key=lambda stream: counts[stream.index])
    promised, slack = _promised(container, chosen)
    return _File(
        path=path,
        stream=chosen.index,
        first=videos[0].index,
        packets=counts[chosen.index],
        hidden=hidden[chosen.index],
        header=videos[0].frames,
        rate=float(chosen.average_rate or 0) or _mean_rate(stamps[chosen.index]),
        promised=promised,
        slack=slack,
        cut=_ends_early(container, chosen, counts[chosen.index]),
    )


def _is_picture(stream: Any) -> bool:
    """Tell whether a stream is an attached picture, such as a cover."""
    disposition = getattr(stream, "disposition", None)  # PyAV 12 has none
    return disposition is not None and "attached_pic" in str(disposition.name or "")


def _mean_rate(times: Sequence[float]) -> float:
    """Return frames per second by the frames' times, 0 if these do not tell."""
    span = max(times, default=0.0) - min(times, default=0.0)
    return (len(times) - 1) / span if span > 0 else 0.0


def _promised(container: Any, stream: Any) -> tuple[float | None, float]:
    """Return the seconds of video that a header promises, and the share of them that may be missing."""
    if stream.duration:
        return float(stream.duration * stream.time_base), 0.02
    if container.duration:  # of the longest stream
        return container.duration / 1_000_000, 0.1
    return None, 0.0


def _ends_early(container: Any, stream: Any, packets: int) -> bool:
    """Tell whether a file is cut though its duration, which ffmpeg estimates for these formats, does not say so."""
    if container.format.name == "gif":
        return not _gif_ends(Path(container.name).read_bytes())
    return container.format.name == "avi" and stream.frames > packets


def _gif_ends(data: bytes) -> bool:
    """Tell whether the blocks of a GIF (specification of version 89a) end with its trailer; decoders do not ask."""
    place = 13 + _table_size(data[10])
    while place < len(data):
        if data[place] == 0x3B:  # trailer
            return True
        if data[place] == 0x2C and place + 9 < len(data):  # image
            place += 11 + _table_size(data[place + 9])
        else:  # extension
            place += 2
        while place < len(data) and data[place]:  # sub-blocks up to an empty one
            place += 1 + data[place]
        place += 1
    return False


def _table_size(flags: int) -> int:
    """Return the bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 128 else 0


def _decode(container: Any, index: int, decoded: _Decoded, *, strict: bool = False) -> Iterator[Any]:
    """Yield the frames of a stream that can be decoded; those that cannot are counted, or raised if ``strict``."""
    import av

    stream = container.streams[index]
    failed = False
    try:
        for packet in container.demux(stream):
            if not packet.size and (failed or packet.pts is not None):
                continue  # what a decoder still holds after the damage at which a file ends; an empty frame
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if strict:
                    raise
                decoded.damaged += 1
                failed = True
                continue
            failed = failed and not packet.size
            yield from frames
    except av.error.FFmpegError as error:
        if strict:
            raise ValueError(f"the video is damaged: {error}") from error
        decoded.damaged += 1


def _run(file: _File, wanted: Sequence[int]) -> _Decoded:
    """Decode the whole stream, and keep the wanted frames."""
    # Several frames at a time, unless there is damage, after which frames in the making would be lost.
    found = _pass(file, wanted, "AUTO")
    if found.damaged:
        found = _pass(file, wanted, "SLICE")
    if not found.times:
        raise ValueError(f"{file.path} holds no video frames that can be decoded. Is the file whole?")
    return found


def _pass(file: _File, wanted: Sequence[int], threads: str) -> _Decoded:
    import av

    found, keep = _Decoded(), set(wanted)
    with av.open(file.path) as container:
        stream: Any = container.streams[file.stream]
        stream.thread_type = threads
        for place, frame in enumerate(_decode(container, file.stream, found)):
            if not place:
                found.matrix = _matrix(frame)
            if place in keep:
                found.frames[place] = frame
            found.times.append(frame.time)
            found.sizes.add((frame.width, frame.height))
            last = getattr(frame, "duration", None)  # PyAV 12 has none
            found.last = float(last * frame.time_base) if last else 0.0
    return found


def _choose(file: _File, choose: Choose) -> tuple[_Decoded, tuple[int, ...]]:
    """Decode the frames chosen of those that there really are."""
    total = max(1, file.packets - file.hidden)
    for _ in range(2):  # the packets' number is that of the frames, nearly always
        indices = tuple(int(i) for i in choose(total, file.rate))
        decoded = _run(file, indices)
        if len(decoded.times) == total:
            break
        total = len(decoded.times)
    return decoded, indices


def _as_player(file: _File, decoded: _Decoded, indices: tuple[int, ...]) -> Clip:
    total = len(decoded.times)
    first = decoded.frames[min(decoded.frames)]
    size = (first.width, first.height)
    pictures = {
        place: apply_display_matrix(rgb(frame, size), decoded.matrix) for place, frame in decoded.frames.items()
    }
    times, duration = _clock(decoded, file.rate)
    notes = [
        *[DAMAGED] * bool(decoded.damaged),
        *[SHORT] * _short(file, decoded, duration),
        *[REPEATED] * (len(set(indices)) < len(indices)),
        *[SIZES] * (len(decoded.sizes) > 1),
    ]
    return Clip(
        frames=np.stack([pictures[place] for place in indices]),
        indices=indices,
        total=total,
        fps=file.rate,
        times=tuple(times[place] for place in indices),
        duration=duration,
        notes=tuple(notes),
    )


def _clock(decoded: _Decoded, rate: float) -> tuple[list[float], float]:
    """Return the times of all frames after the first, and the time at which the last one ends."""
    beat = 1 / rate if rate > 0 else 0.0
    known = [time for time in decoded.times if time is not None]
    start = min(known, default=0.0)
    times = [place * beat if time is None else time - start for place, time in enumerate(decoded.times)]
    return times, max(times) + (decoded.last or beat)


def _short(file: _File, decoded: _Decoded, duration: float) -> bool:
    """Tell whether a video ends noticeably before its header says."""
    if file.promised is None or file.cut:
        return file.cut
    # Some headers count from the first frame, others from zero.
    end = max((time for time in decoded.times if time is not None), default=0.0) + decoded.last
    missing = file.promised - max(duration, end)
    return missing > max(1.5 * duration / len(decoded.times), file.slack * file.promised)


def rgb(frame: Any, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a frame of PyAV in RGB, converted by the colour matrix and the range that it is marked with.

    Parameters
    ----------
    frame
        The frame. One that is not marked is taken for BT.601, as ffmpeg and decord do.
    size
        Width and height to scale it to; its own by default.

    Returns
    -------
    numpy.ndarray
        ``[height, width, 3]``.
    """
    width, height = size or (frame.width, frame.height)
    colours: dict[str, int] = {}
    if not frame.format.is_rgb:
        # PyAV tells swscale of a frame's matrix and range only where the target's are others. Limited range is 0 for
        # the source, and RGB, which has all values, is 1, in PyAV 12 and in later ones, which number them otherwise.
        full = int(frame.color_range) == _FULL
        if full or int(frame.colorspace) in _NOT_BT601:
            colours = {"src_color_range": _FULL if full else 0, "dst_color_range": 1}
        if int(frame.colorspace) in _NOT_BT601:
            colours["dst_colorspace"] = _BT601
    return _converted(frame, width=width, height=height, interpolation="BILINEAR", **colours)


def _converted(frame: Any, **arguments: Any) -> NDArray[np.uint8]:
    from av.video.reformatter import VideoReformatter

    # One for each conversion: it remembers the colours of the last one.
    made = VideoReformatter().reformat(frame, format="rgb24", **arguments)
    return np.asarray(made.to_ndarray(), dtype=np.uint8)


def _matrix(frame: Any) -> tuple[int, ...] | None:
    """Return the nine numbers of a frame's display matrix (ISO 14496-12, 8.3.2), None if it has none."""
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    return None if found is None else struct.unpack("=9i", bytes(found))


def _turn(matrix: tuple[int, ...] | None) -> tuple[bool, int] | None:
    """Return what a display matrix does: mirror left and right first or not, then quarter turns counter-clockwise.

    None for a matrix that does not map rows and columns to such.
    """
    if matrix is None:
        return False, 0
    # Stored (x, y) is shown at (a x + c y, b x + d y), y downwards.
    a, b, c, d = (int(np.sign(matrix[i])) for i in (0, 1, 3, 4))
    known = {
        (1, 0, 0, 1): (False, 0),
        (0, -1, 1, 0): (False, 1),
        (-1, 0, 0, -1): (False, 2),
        (0, 1, -1, 0): (False, 3),
        (-1, 0, 0, 1): (True, 0),
        (0, -1, -1, 0): (True, 3),
        (1, 0, 0, -1): (True, 2),
        (0, 1, 1, 0): (True, 1),
    }
    return known.get((a, b, c, d))


def _mirrored(matrix: tuple[int, ...] | None) -> bool:
    return (_turn(matrix) or (False, 0))[0]


def apply_display_matrix(picture: NDArray[np.uint8], matrix: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """Return a picture ``[height, width, 3]`` turned and mirrored as a display matrix says.

    A matrix that turns by other than quarters leaves it as it is, which is what decord and ffmpeg's own tools do
    with small angles.
    """
    mirror, turns = _turn(matrix) or (False, 0)
    return np.ascontiguousarray(np.rot90(picture[:, ::-1] if mirror else picture, turns))


def _as_decord(path: str, choose: Choose, right: Clip, mirrored: bool) -> Clip | None:
    """Return what decord shows, None if it fails or is not installed.

    It counts packets, those too that an edit list hides, and shows its last frame again where it finds none.
    """
    try:
        import decord
    except ImportError:
        return None
    try:
        reader = decord.VideoReader(path)
        total, rate = len(reader), float(reader.get_avg_fps())
    except decord.DECORDError:
        return None
    indices = tuple(int(i) for i in choose(total, rate))
    try:
        frames = reader.get_batch(list(indices)).asnumpy()
    except decord.DECORDError:
        return None
    if indices == right.indices and np.array_equal(frames, right.frames):
        return right
    same_count = TURNED if mirrored else SOUGHT
    own = right.indices == indices
    return replace(
        right,
        frames=frames,
        indices=indices,
        total=total,
        fps=rate,
        times=right.times if own else tuple(i / rate for i in indices),
        notes=once((*right.notes, same_count if total == right.total else EDITED)),
    )


def _as_pyav(file: _File, choose: Choose, decoded: _Decoded, right: Clip) -> Clip | None:
    """Return what plain PyAV shows of the first video stream, None if that fails.

    It does without a number of frames in the header, at damaged frames, and where the size changes. Chosen frames that
    do not exist are left out.
    """
    if not file.header or decoded.damaged:
        return None
    notes = [note for note in right.notes if note in (SHORT, REPEATED)]
    indices = tuple(int(i) for i in choose(file.header, file.rate))
    if file.first != file.stream:
        decoded, notes = _run(replace(file, stream=file.first), indices), [COVER]
    elif file.header != right.total:
        decoded = _run(file, indices)
        notes.append(COUNTED)
    indices = tuple(i for i in indices if i in decoded.frames)
    used = [decoded.frames[i] for i in indices]
    if not used or len({(frame.width, frame.height) for frame in used}) > 1:
        return None
    frames = np.stack([_converted(frame) for frame in used])
    if _turn(decoded.matrix) not in ((False, 0), None):
        notes.append(TURNED)
    if not np.array_equal(frames, np.stack([rgb(frame) for frame in used])):
        notes.append(COLOURS)
    times, duration = _clock(decoded, file.rate)
    return Clip(
        frames=frames,
        indices=indices,
        total=file.header,
        fps=file.rate,
        times=tuple(times[i] for i in indices),
        duration=duration,
        notes=once(notes),
    )
