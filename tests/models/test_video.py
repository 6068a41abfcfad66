"""The reader of videos against what a player shows, known from how each video was made, and against decord."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.videos import MATRICES, ROTATIONS, SHOWN, Picture, cut, edit, promise, smooth, turn, write_clip
from vtw_eval.models.video import (
    COLOURS,
    COUNTED,
    COVER,
    DAMAGED,
    EDITED,
    REPEATED,
    SHORT,
    SIZES,
    TURNED,
    Clip,
    check_whole,
    frames_of,
    read_clip,
    reader_of,
    uniform,
)


def every(total: int, fps: float) -> list[int]:
    """Choose all frames."""
    return list(range(total))


def stored(path: Path) -> list[Picture]:
    """Return the frames as they lie in the file's first video stream, by the first pixels that PyAV gives."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def noise(count: int) -> list[Picture]:
    """Return pictures that do not compress, so that a file's share is about that of its frames."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8))


KINDS: dict[str, Callable[[Path], Path]] = {
    "h264": lambda folder: write_clip(folder / "a.mp4", smooth(24)),
    "mpeg4": lambda folder: write_clip(folder / "a.mp4", smooth(24), codec="mpeg4"),
    "avi": lambda folder: write_clip(folder / "a.avi", smooth(24), codec="mpeg4"),
    "mkv": lambda folder: write_clip(folder / "a.mkv", smooth(24)),
    "late start": lambda folder: write_clip(folder / "a.mkv", smooth(24), ticks=range(20, 44)),
    "vp8 with hidden frames": lambda folder: write_clip(
        folder / "a.webm", smooth(48), codec="libvpx", codec_options={"auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "one key frame": lambda folder: write_clip(folder / "a.mp4", smooth(60), codec_options={"g": "1000"}),
    "odd sides": lambda folder: write_clip(folder / "a.mp4", smooth(8, 49, 35), pix_fmt="yuv444p"),
    "wide": lambda folder: write_clip(folder / "a.mp4", smooth(4, 360, 640)),
    "30000/1001": lambda folder: write_clip(folder / "a.mp4", smooth(24), rate=Fraction(30000, 1001)),
    "variable rate": lambda folder: write_clip(folder / "a.mp4", smooth(6), ticks=(0, 1, 2, 30, 31, 60)),
    "one frame": lambda folder: write_clip(folder / "a.mp4", smooth(1)),
    "cover": lambda folder: write_clip(folder / "a.mp4", smooth(24), cover=smooth(1, 90, 120)[0]),
    "marked cover": lambda folder: write_clip(folder / "a.mp4", smooth(24), cover=smooth(1, 90, 120)[0], marked=True),
    "header of too many": lambda folder: promised(folder, 26),
    "header of too few": lambda folder: promised(folder, 20),
    **{
        f"{matrix}{', full range' * full}": lambda folder, matrix=matrix, full=full: write_clip(
            folder / "a.mp4", smooth(4), matrix=matrix, full_range=full
        )
        for matrix in MATRICES
        for full in (False, True)
    },
    "vp9, full range": lambda folder: write_clip(folder / "a.webm", smooth(4), codec="libvpx-vp9", full_range=True),
    "10 bits": lambda folder: write_clip(folder / "a.mp4", smooth(4), pix_fmt="yuv420p10le"),
}


def promised(folder: Path, frames: int) -> Path:
    path = write_clip(folder / "a.avi", smooth(24), codec="mpeg4")
    promise(path, frames)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_that_of_decord(tmp_path: Path, kind: str) -> None:
    decord = pytest.importorskip("decord")
    path = str(KINDS[kind](tmp_path))
    clip = read_clip(path, every)
    theirs = decord.VideoReader(path)
    assert clip.total == len(theirs)
    assert clip.fps == theirs.get_avg_fps()
    np.testing.assert_array_equal(clip.frames, theirs.get_batch(range(len(theirs))).asnumpy())
    some = read_clip(path, uniform(5))
    np.testing.assert_array_equal(some.frames, clip.frames[list(some.indices)])
    followed = read_clip(path, uniform(5), "decord")
    np.testing.assert_array_equal(followed.frames, some.frames)
    assert (followed.indices, followed.notes) == (some.indices, some.notes)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("size", [(48, 64), (96, 160)])
def test_frames_are_turned_as_the_file_says(tmp_path: Path, rotation: str, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", smooth(4, *size))
    before = stored(path)
    turn(path, ROTATIONS[rotation], *size)
    expected = np.stack([SHOWN[rotation](picture) for picture in before])
    np.testing.assert_array_equal(read_clip(str(path), every).frames, expected)
    plain = read_clip(str(path), every, "pyav")
    np.testing.assert_array_equal(plain.frames, np.stack(before))
    assert plain.notes == (TURNED,)


def test_decord_shows_a_mirrored_video_otherwise(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord")
    path = write_clip(tmp_path / "a.mp4", smooth(4))
    turn(path, ROTATIONS["mirrored"], 48, 64)
    clip = read_clip(str(path), every, "decord")
    np.testing.assert_array_equal(clip.frames, decord.VideoReader(str(path)).get_batch(range(4)).asnumpy())
    assert clip.notes == (TURNED,)
    assert not np.array_equal(clip.frames, read_clip(str(path), every).frames)


def test_colours_of_bt709(tmp_path: Path) -> None:
    """Against the pictures that were encoded: a smooth one survives, wrong coefficients change it by dozens."""
    pictures = smooth(2)
    path = write_clip(tmp_path / "a.mp4", pictures, pix_fmt="yuv444p", matrix="bt709", codec_options={"qp": "0"})
    right = np.abs(read_clip(str(path), every).frames.astype(int) - np.stack(pictures)).max()
    plain = read_clip(str(path), every, "pyav")
    wrong = np.abs(plain.frames.astype(int) - np.stack(pictures)).max()
    assert right <= 3
    assert wrong > 20
    assert plain.notes == (COLOURS,)
    np.testing.assert_array_equal(plain.frames, np.stack(stored(path)))


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    cover = smooth(1, 90, 120)[0]
    path = str(write_clip(tmp_path / "a.mp4", smooth(24), cover=cover))
    clip = read_clip(path, uniform(8))
    assert (clip.total, clip.frames.shape, clip.notes) == (24, (8, 48, 64, 3), ())
    plain = read_clip(path, uniform(8), "pyav")
    assert (plain.total, plain.frames.shape[1:], plain.notes) == (1, (90, 120, 3), (COVER,))


def test_a_file_with_sound_and_a_cover_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w") as made:
        stream = made.add_stream("aac", rate=44100)
        for i in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 44100, 1024 * i
            made.mux(stream.encode(sound))
        made.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.m4a holds no video stream"):
        read_clip(str(tmp_path / "a.m4a"), every)


@pytest.mark.parametrize(("share", "skip", "places"), [(0.5, 0, range(12)), (1.0, 6 * 2048, range(6, 24))])
def test_what_an_edit_list_hides_is_not_shown(tmp_path: Path, share: float, skip: int, places: range) -> None:
    path = write_clip(tmp_path / "a.mp4", smooth(24))
    whole = stored(path)
    edit(path, share=share, skip=skip)
    clip = read_clip(str(path), every)
    np.testing.assert_array_equal(clip.frames, np.stack([whole[i] for i in places]))
    assert clip.total == len(places)
    assert clip.times == pytest.approx([i / 8 for i in range(len(places))])


def test_decord_repeats_frames_that_an_edit_list_hides(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord")
    path = write_clip(tmp_path / "a.mp4", smooth(24))
    edit(path, share=0.5)
    clip = read_clip(str(path), uniform(8), "decord")
    theirs = decord.VideoReader(str(path))
    assert clip.total == len(theirs) == 24
    np.testing.assert_array_equal(clip.frames, theirs.get_batch(list(clip.indices)).asnumpy())
    assert clip.notes == (EDITED,)


@pytest.mark.parametrize(("frames", "plain"), [(26, (0, 3, 7, 10, 14, 17, 21)), (20, (0, 2, 5, 8, 10, 13, 16, 19))])
def test_headers_of_too_many_or_too_few_frames(tmp_path: Path, frames: int, plain: tuple[int, ...]) -> None:
    path = str(promised(tmp_path, frames))
    clip = read_clip(path, uniform(8))
    assert (clip.total, clip.indices) == (24, (0, 3, 6, 9, 13, 16, 19, 23))
    assert clip.notes == ((SHORT,) if frames > 24 else ())
    counted = read_clip(path, uniform(8), "pyav")
    assert (counted.total, counted.indices) == (frames, plain)
    assert COUNTED in counted.notes


def test_a_cut_mp4_gives_what_there_is_and_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(24), container={"movflags": "faststart"})
    whole = stored(path)
    cut(path, 0.75)
    for reader in ("player", "decord", "pyav"):
        clip = read_clip(str(path), every, reader)  # type: ignore[arg-type]
        assert 12 <= clip.total <= 18
        np.testing.assert_array_equal(clip.frames, np.stack(whole[: clip.total]))
        assert clip.notes == (DAMAGED, SHORT)
    with pytest.raises(ValueError, match=r"a\.mp4: damaged frames of a video left out; a video is cut"):
        check_whole(str(path))


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_file_that_ends_early_without_an_error_is_told(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, noise(24), codec="mpeg4")
    assert read_clip(str(path), every).notes == ()
    whole = stored(path)
    cut(path, 0.6)
    clip = read_clip(str(path), every)
    assert 4 < clip.total < 18
    np.testing.assert_array_equal(clip.frames[:-1], np.stack(whole[: clip.total - 1]))
    assert SHORT in clip.notes


def test_damage_in_the_middle_does_not_end_a_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(24), codec="mpeg4", codec_options={"g": "4"})
    whole = stored(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = range(start + (len(data) - start) // 3, start + (len(data) - start) // 2)
    data[middle.start : middle.stop] = np.random.default_rng(0).bytes(len(middle))
    path.write_bytes(data)
    clip = read_clip(str(path), every)
    assert 12 <= clip.total < 24
    assert clip.notes == (DAMAGED,)
    np.testing.assert_array_equal(clip.frames[-4:], np.stack(whole[-4:]))
    with pytest.raises(ValueError, match=r"damaged|Invalid data"):
        list(frames_of(str(path)))


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>" * 20])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video: .*Is the file whole\?"):
        read_clip(str(tmp_path / "a.mp4"), every)
    with pytest.raises(FileNotFoundError):
        read_clip(str(tmp_path / "b.mp4"), every)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", noise(24))
    cut(path, 0.75)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        read_clip(str(path), every)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    for name, pictures in (("a", smooth(8)), ("b", smooth(8, 96, 80))):
        write_clip(tmp_path / f"{name}.h264", pictures, format="h264")
    (tmp_path / "c.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    first, second = stored(tmp_path / "a.h264"), stored(tmp_path / "b.h264")
    clip = read_clip(str(tmp_path / "c.h264"), every)
    assert clip.frames.shape == (16, 48, 64, 3)
    np.testing.assert_array_equal(clip.frames[:8], np.stack(first))
    small = np.stack([np.asarray(Image.fromarray(x).resize((64, 48), Image.Resampling.BILINEAR)) for x in second])
    assert np.abs(clip.frames[8:].astype(int) - small).mean() < 8
    assert SIZES in clip.notes


def test_times_are_the_frames_own(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", smooth(6), ticks=(20, 21, 22, 50, 51, 80))
    clip = read_clip(str(path), lambda total, fps: [0, 3, 4, 5])
    assert clip.times == pytest.approx([0.0, 3.0, 3.1, 6.0], abs=2e-3)
    assert clip.duration == pytest.approx(6.125, abs=2e-3)  # the last one lasts an eighth, as the encoder was told


def test_a_gif_of_one_frame_has_no_rate(tmp_path: Path) -> None:
    Image.fromarray(smooth(1)[0]).save(tmp_path / "a.gif")
    clip = read_clip(str(tmp_path / "a.gif"), every)
    assert (clip.total, clip.fps, clip.times, clip.notes) == (1, 0.0, (0.0,), ())


def test_a_gif_ends_with_its_trailer(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture) for picture in smooth(6)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100)
    whole = buffer.getvalue()
    for length in range(len(whole) - 2000, len(whole) + 1, 400):
        (tmp_path / "a.gif").write_bytes(whole[:length])
        assert (SHORT in read_clip(str(tmp_path / "a.gif"), lambda total, fps: [0]).notes) == (length < len(whole))
    (tmp_path / "a.gif").write_bytes(whole + b"padding")
    assert read_clip(str(tmp_path / "a.gif"), every).notes == ()


def test_repeated_frames_are_told(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path / "a.mp4", smooth(3)))
    assert read_clip(path, uniform(8)).notes == (REPEATED,)
    assert read_clip(path, uniform(3)).notes == ()


def test_a_rate_of_zero_in_the_header_is_counted_from_the_times(tmp_path: Path) -> None:
    """A Matroska file whose default duration is gone, at an uneven pace."""
    path = write_clip(tmp_path / "a.mkv", smooth(6), ticks=(0, 1, 2, 30, 31, 60))
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex("23e383"))  # DefaultDuration becomes Void
    size = data[at + 3] & 0x7F
    data[at : at + 4 + size] = b"\xec" + struct.pack("B", 0x80 | (2 + size)) + bytes(2 + size)
    path.write_bytes(data)
    seen: list[tuple[int, float]] = []

    def choose(total: int, fps: float) -> list[int]:
        seen.append((total, fps))
        return every(total, fps)

    clip = read_clip(str(path), choose)
    assert len(clip.frames) == 6
    assert all(total == 6 and fps > 0 for total, fps in seen)


def test_without_decord_and_where_it_fails_a_player_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_clip(tmp_path / "a.ts", smooth(8), format="mpegts"))
    right = read_clip(path, every)

    def same(clip: Clip) -> bool:
        return np.array_equal(clip.frames, right.frames) and clip.notes == right.notes

    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert same(read_clip(path, every, "decord"))


def test_the_option_decides_who_is_followed() -> None:
    assert [reader_of(media, "pyav") for media in ("harness", "upright")] == ["pyav", "player"]  # type: ignore[arg-type]
