"""What pictures look like to a model, against pixels computed without Pillow's conversions."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.support.harness_data import picture, write_gif, write_video
from vtw_eval.media import inspected, is_video, noting_damage, open_picture, strictly, summary
from vtw_eval.models.family import processor_rgb

RAMP = (np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16)
"""Dark above, bright below."""

DEEP = {
    "a.png": (RAMP, "16-bit grey clipped"),
    "b.tif": (RAMP, "16-bit grey clipped"),
    "c.tif": (RAMP.astype(np.int32), "16-bit grey clipped"),
    "d.tif": ((RAMP / 65535).astype(np.float32), "float grey clipped"),
    "e.tif": ((RAMP / 257).astype(np.float32), ""),
    "f.tif": ((RAMP.astype(np.int64) * 32768).astype(np.int32), "32-bit grey clipped"),
}
"""The ramp in the types that programs save grey in, and what is said of each."""

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""From what is stored to what is seen, by the tag (Exif 2.32, orientation)."""


@pytest.fixture(autouse=True)
def as_pillow_comes() -> Iterator[None]:
    with strictly():
        yield


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey(tmp_path: Path, name: str) -> None:
    values, reason = DEEP[name]
    path = tmp_path / name
    Image.fromarray(values).save(path)
    seen, notes = open_picture(str(path), "upright")
    right = np.rint(RAMP / 257).astype(int)
    assert notes == ()
    for channel in range(3):
        assert np.abs(pixels(seen)[..., channel] - right).max() <= 1
    stock, notes = open_picture(str(path), "harness")
    assert notes == ((reason,) if reason else ("float grey clipped",))
    assert np.array_equal(stock, values), "as Pillow opens it"
    assert np.array_equal(stock.convert("RGB"), Image.open(path).convert("RGB"))


def test_grey_that_fits_eight_bits_is_not_noted(tmp_path: Path) -> None:
    Image.fromarray((RAMP >> 8).astype(np.int32)).save(tmp_path / "dark.tif")
    seen, notes = open_picture(str(tmp_path / "dark.tif"), "harness")
    assert notes == ()
    assert np.array_equal(pixels(open_picture(seen, "upright")[0])[..., 0], RAMP >> 8)


@pytest.mark.parametrize("worst", [-1.0, float("nan"), 1e6])
def test_grey_without_a_known_range_is_refused(worst: float) -> None:
    values = np.array([[0.0, worst]], dtype=np.float32)
    with pytest.raises(ValueError, match="picture of mode F with values"):
        open_picture(Image.fromarray(values), "upright")
    assert open_picture(Image.fromarray(values), "harness")[1] == ("float grey clipped",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", TURNS)
def test_orientation(form: str, tag: int) -> None:
    stored = np.zeros((16, 48, 3), dtype=np.uint8)
    stored[:8, :24], stored[8:, 24:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = tag
    file = io.BytesIO()
    Image.fromarray(stored).save(file, form, exif=exif, **({} if form == "PNG" else {"quality": 95}))
    seen, notes = open_picture(Image.open(file), "upright")
    assert notes == ()
    right = TURNS[tag](stored).astype(int)
    assert pixels(seen).shape == right.shape
    assert np.abs(pixels(seen) - right).mean() < 12, "but for compression"
    again, _ = open_picture(seen, "upright")
    assert np.array_equal(again, seen), "turned once"
    stock, notes = open_picture(Image.open(file), "harness")
    # Pillow itself turns TIFF files.
    assert notes == (() if tag == 1 or form == "TIFF" else ("orientation tag ignored",))
    assert np.array_equal(stock, Image.open(file))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_white(kind: str) -> None:
    rng = random.Random(0)
    grey = [[rng.randrange(256) for _ in range(8)] for _ in range(8)]
    alpha = [[rng.choice([0, 255] if kind in ("P", "RGB") else range(256)) for _ in range(8)] for _ in range(8)]
    right = np.rint(np.array(grey) * np.array(alpha) / 255 + 255 - np.array(alpha)).astype(int)
    values, mask = np.array(grey, dtype=np.uint8), np.array(alpha, dtype=np.uint8)
    if kind in ("RGBA", "LA"):
        image = Image.merge(kind, [Image.fromarray(v) for v in [*[values] * (len(kind) - 1), mask]])
    else:  # one colour stands for transparency
        values[values == 7] = 8
        right[right == 7] = 8
        values[mask == 0] = 7
        image = Image.fromarray(values)
        if kind == "P":
            image.putpalette([i for i in range(256) for _ in range(3)])
        else:
            image = image.convert("RGB")
        file = io.BytesIO()
        image.save(file, "PNG", transparency=7 if kind == "P" else (7, 7, 7))
        image = Image.open(file)
    seen, notes = open_picture(image, "upright")
    assert notes == ()
    assert np.abs(pixels(seen)[..., 0] - right).max() <= 1
    assert open_picture(image, "harness")[1] == ("transparency dropped",)
    # What the image processors of transformers show is asked of them.
    lost = not np.array_equal(np.asarray(processor_rgb(image)), np.asarray(seen))
    assert open_picture(image, "harness", processor_rgb)[1] == (("transparency dropped",) if lost else ())


def test_opaque_alpha_is_not_noted() -> None:
    image = picture(0).convert("RGBA")
    assert open_picture(image, "harness") == (image, ())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.gif", "first frame of an animation"),
        ("a.png", "first frame of an animation"),
        ("a.webp", "first frame of an animation"),
        ("a.tif", "first page of several"),
    ],
)
@pytest.mark.parametrize("media", ["harness", "upright"])
def test_only_the_first_frame_is_shown(tmp_path: Path, name: str, reason: str, media: Any) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    seen, notes = open_picture(str(tmp_path / name), media)
    assert notes == (reason,)
    red, green, blue = seen.convert("RGB").getpixel((4, 4))
    assert red > 250 and green < 5 and blue < 5
    assert not is_video(str(tmp_path / name))


def test_inks_become_colours() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "JPEG")
    for media in ("harness", "upright"):
        seen, notes = open_picture(Image.open(file), media)
        assert notes == ()
        assert np.abs(np.asarray(seen.convert("RGB"))[4, 4].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "JPEG2000"])
@pytest.mark.parametrize("opened", [False, True])
def test_cut_files_are_told(tmp_path: Path, form: str, opened: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    cut = file.getvalue()[: len(file.getvalue()) * 9 // 10]
    (tmp_path / "cut").write_bytes(cut)

    def given() -> Any:
        return Image.open(io.BytesIO(cut)) if opened else str(tmp_path / "cut")

    with pytest.raises(OSError, match=r"truncated|broken data stream"):
        open_picture(given(), "harness")
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # as lmms-eval does
    for media in ("harness", "upright"):
        assert open_picture(given(), media)[1] == ("file is truncated or damaged",)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert open_picture(Image.open(io.BytesIO(file.getvalue())), "harness")[1] == ()


def test_damage_is_noted_where_a_task_opens_files() -> None:
    calls = []

    def make() -> str:
        calls.append(ImageFile.LOAD_TRUNCATED_IMAGES)
        if not calls[-1]:
            raise OSError("image file is truncated")
        return "made"

    ImageFile.LOAD_TRUNCATED_IMAGES = True
    assert noting_damage(make) == ("made", ("file is truncated or damaged",))
    assert calls == [False, True]
    assert noting_damage(lambda: "whole") == ("whole", ())

    def missing() -> None:
        raise FileNotFoundError("nowhere")

    with pytest.raises(FileNotFoundError):
        noting_damage(missing)


FORMATS = {
    "x.tif": "TIFF",
    "x.jfif": "JPEG",
    "x.jp2": "JPEG2000",
    "x.ppm": "PPM",
    "x": "PNG",
    "x.mp4": "BMP",
    "x.webm": "WEBP",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_is_no_video_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    picture(0).save(tmp_path / name, format=FORMATS[name])
    assert not is_video(str(tmp_path / name))


@pytest.mark.parametrize("name", ["film.mp4", "film.png", "film"])
def test_a_video_is_a_video_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "made.mp4", 0)
    (tmp_path / "made.mp4").rename(tmp_path / name)
    assert is_video(str(tmp_path / name))


def test_other_containers(tmp_path: Path) -> None:
    import av

    for name, codec in {"a.mkv": "mpeg4", "a.avi": "mpeg4", "a.ts": "mpeg2video", "a.mpg": "mpeg1video"}.items():
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(4):
                frame = av.VideoFrame.from_image(picture(i).resize((64, 48)))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert is_video(str(tmp_path / name)), name
    write_gif(tmp_path / "a.gif", 0)
    assert not is_video(str(tmp_path / "a.gif"))


def test_what_is_neither_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00" * 400)
    (tmp_path / "x.txt").write_text("words\n" * 40)
    for name in ("x", "x.txt"):
        with pytest.raises(ValueError, match=f"{name} is neither a picture that Pillow knows nor a video"):
            is_video(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        is_video(str(tmp_path / "nowhere.png"))
    with pytest.raises(TypeError, match="only images and videos"):
        is_video({"array": []})  # type: ignore[arg-type]


def test_a_documents_pictures_are_found() -> None:
    deep, plain = Image.fromarray(RAMP), picture(0)
    document = {"question": "?", "image": deep, "more": [plain, {"deeper": (deep,)}], "none": None}
    same, found = inspected(document, "harness")
    assert same is document
    assert [(image is deep, notes) for image, notes in found] == [(True, ("16-bit grey clipped",))] * 2
    upright, found = inspected(document, "upright")
    assert found == []
    assert upright["question"] == "?" and document["image"] is deep
    assert np.array_equal(pixels(upright["more"][1]["deeper"][0])[..., 0], np.rint(RAMP / 257))
    assert np.array_equal(upright["more"][0], plain)


def test_summary_counts_and_names_the_first() -> None:
    assert summary({"cut": ["a"], "turned": list("abcd")}) == [
        "cut: 1 document (a)",
        "turned: 4 documents (a; b; c; ...)",
    ]
