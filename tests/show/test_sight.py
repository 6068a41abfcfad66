"""A method that keeps the tokens of one quadrant lights up exactly that quadrant, in every family.

Pictures are blue, with one quadrant red; a token is kept if what the tower makes of its own pixels changes much with
the paint. Which pixels must light up is written down by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.models.test_runner import ADAPTERS
from vtw_eval import Method, Reads
from vtw_eval.engine import LayerView
from vtw_eval.models.adapters import ADAPTERS as TABLE
from vtw_eval.models.family import DocumentPrompt, Encoded, Family, content_of
from vtw_eval.models.loading import load
from vtw_eval.models.options import parse_options
from vtw_eval.report.render.patches import drawn, overlay
from vtw_eval.show.sight import Panel, look
from vtw_eval.show.steps import steps

BLUE, RED = (40, 90, 200), (220, 40, 40)
Box = tuple[slice, slice]


@pytest.fixture(scope="module")
def family(checkpoint: Callable[[str], str]) -> Callable[[str], Family[Any]]:
    def make(name: str) -> Family[Any]:
        adapter = ADAPTERS[name][0]
        options, _ = parse_options(adapter, TABLE[adapter].options, {"pretrained": checkpoint(name)})
        return load(adapter, options, simple=False, device=torch.device("cpu"))

    return make


def painted(width: int, height: int, box: Box | None) -> NDArray[np.uint8]:
    pixels = np.full((height, width, 3), BLUE, dtype=np.uint8)
    if box is not None:
        pixels[box] = RED
    return pixels


def of_image(family: Family[Any], pixels: NDArray[np.uint8]) -> Encoded:
    content = content_of("What is it?", [Image.fromarray(pixels)])
    return family.encode([family.chat_prompt([{"role": "user", "content": content}])])


def of_video(family: Family[Any], frames: NDArray[np.uint8]) -> Encoded:
    """Frames as they are: those of a file would be compressed."""
    content = [{"type": "video", "url": "clip.mp4"}, {"type": "text", "text": "What is it?"}]
    text = family.render([{"role": "user", "content": content}])
    sampled = {"do_sample_frames": False} if family.model_type in ("internvl",) else {}
    return family.process([DocumentPrompt(text, videos=("clip.mp4",))], videos=[frames], **sampled)


def method_of(choose: Callable[[LayerView], Tensor], reads: Reads) -> Method:
    @dataclass(frozen=True, kw_only=True)
    class Made(Method):
        key: ClassVar[str] = "made"

        def layers(self, num_layers: int) -> Sequence[int]:
            return (1,)

        def tower_layers(self, num_layers: int) -> Sequence[int]:
            return (0,)

        def keep(self, view: LayerView) -> Tensor:
            return choose(view)

    Made.reads = reads
    return Made()


@torch.no_grad()
def patches_of(family: Family[Any], encoded: Encoded) -> Tensor:
    """What the tower makes of the pixels of each token alone, ``[tokens, width]``."""
    seen: list[Tensor] = []

    def note(view: LayerView) -> Tensor:
        seen.append(view.tower.features(0)[0])
        return view.valid

    with method_of(note, Reads.TOWER)(family.model):
        family.model(**encoded.inputs)
    return seen[0]


def lit(family: Family[Any], plain: Encoded, encoded: Encoded) -> list[tuple[Panel, NDArray[np.bool_]]]:
    """Return the pictures, and which pixels are drawn as they were when the tokens that the paint changes are kept."""
    change = (patches_of(family, encoded) - patches_of(family, plain)).norm(dim=-1)
    chosen = change > 0.5 * change.max()
    with method_of(lambda view: ~view.vision | chosen[view.index], Reads.ROLES)(family.model) as trace, torch.no_grad():
        family.model(**encoded.inputs)
    every, some = steps(trace)
    assert (every.layers, some.layers) == ("layer 0", "layers 1 to 3")
    assert trace.reduction is not None
    assert torch.equal(some.kept, (trace.reduction.prompt.valid & ~trace.reduction.prompt.vision)[0] | chosen)
    sight = look(family, encoded)
    found = []
    assert not some.groups and torch.equal(some.into >= 0, some.kept)
    for panel, [share] in zip(sight.panels, sight.shares(some.kept[None]), strict=True):
        none = torch.full(share.shape, -1)
        picture = drawn(panel.pixels, overlay(share, none, *panel.pixels.shape[:2]))
        found.append((panel, (picture == panel.pixels).all(axis=-1)))
    return found


def quarter(panel: Panel) -> NDArray[np.bool_]:
    """The upper right one."""
    height, width = panel.pixels.shape[:2]
    expected = np.zeros((height, width), dtype=bool)
    expected[: height // 2, width // 2 :] = True
    return expected


PANELS = {
    "llava": ["picture 1"],
    "llava_next": ["picture 1, whole", *(f"picture 1, tile {number}" for number in range(1, 5))],
    "llava_onevision": ["picture 1, whole", "picture 1, tile 1", "picture 1, tile 2"],
    "qwen2_vl": ["picture 1"],
    "qwen2_5_vl": ["picture 1"],
    "qwen3_vl": ["picture 1"],
    "internvl": [*(f"picture 1, tile {number}" for number in range(1, 5)), "picture 1, whole"],
    "video_llava": ["picture 1"],
}


@pytest.mark.parametrize("name", PANELS)
def test_the_tokens_of_a_quadrant_light_it_up(name: str, family: Callable[[str], Family[Any]]) -> None:
    opened = family(name)
    height = 56 if name == "llava_onevision" else 112  # the tiny one knows tiles side by side only
    box = (slice(0, height // 2), slice(56, 112))
    plain, encoded = (of_image(opened, painted(112, height, where)) for where in (None, box))
    found = lit(opened, plain, encoded)
    assert [panel.name for panel, _ in found] == PANELS[name]
    for panel, pixels in found:
        tile = re.search(r"tile (\d)", panel.name)
        expected = quarter(panel) if tile is None else np.full_like(pixels, tile[1] == "2")
        if name == "llava_onevision" and tile:
            expected[len(expected) // 2 :] = False
        np.testing.assert_array_equal(pixels, expected, err_msg=panel.name)
        # The picture is the one that was given.
        middle = panel.pixels[expected]
        if len(middle):
            assert np.abs(np.median(middle, axis=0) - RED).max() <= 3
        if not expected.all():
            assert np.abs(np.median(panel.pixels[~expected], axis=0) - BLUE).max() <= 3


FRAMES = {"video_llava": 8, "llava_onevision": 4, "qwen2_vl": 4, "qwen2_5_vl": 4, "internvl": 4}


@pytest.mark.parametrize("name", FRAMES)
def test_the_tokens_of_a_quadrant_of_some_frames_light_it_up(name: str, family: Callable[[str], Family[Any]]) -> None:
    opened, count = family(name), FRAMES[name]
    box = (slice(0, 56), slice(56, 112))
    plain = np.stack([painted(112, 112, None)] * count)
    frames = np.stack([painted(112, 112, box if number >= count // 2 else None) for number in range(count)])
    found = lit(opened, of_video(opened, plain), of_video(opened, frames))
    pairs = name.startswith("qwen")
    assert len(found) == count // 2 if pairs else count
    for number, (panel, pixels) in enumerate(found):
        kind = "picture" if name == "internvl" else "video"
        place = f"frames {2 * number + 1} to {2 * number + 2}" if pairs else f"frame {number + 1}"
        assert panel.name == (f"picture {number + 1}" if kind == "picture" else f"video 1, {place}")
        expected = quarter(panel) if number >= len(found) // 2 else np.zeros_like(pixels)
        np.testing.assert_array_equal(pixels, expected, err_msg=panel.name)


def test_padding_of_tiles_is_never_lit(family: Callable[[str], Family[Any]]) -> None:
    opened = family("llava_next")
    plain, encoded = (of_image(opened, painted(112, 84, where)) for where in (None, (slice(0, 84), slice(0, 112))))
    found = lit(opened, plain, encoded)
    assert len(found) == 5
    assert found[0][1].all()
    for panel, pixels in found[1:]:
        # The tiles of the upper row are padded above, those of the lower row below: whole rows of patches are cut.
        red = (panel.pixels[..., 0].astype(int) - panel.pixels[..., 2]) > 90
        assert pixels.any() and not pixels.all()
        assert (red[pixels]).mean() > 0.95
