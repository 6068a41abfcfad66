"""The vision tower, token by token: against the tower run by the test and packed by loops, and against pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.families import make_inputs, make_model
from vtw_eval import Composite, FastV, Method, Reads
from vtw_eval.anatomy import find_anatomy, find_tower
from vtw_eval.engine import LayerView
from vtw_eval.engine.tower import TowerView
from vtw_eval.engine.tower_packing import pack
from vtw_eval.families import TESTED
from vtw_eval.versions import UpstreamChangedError

CLOSE = {"atol": 1e-6, "rtol": 1e-5}  # eager attention of float64 rounds to float32


def peek(read: Callable[[TowerView], Any], layers: Sequence[int] = (0, -2, -1)) -> tuple[Method, list[Any]]:
    """Return a method that keeps everything, and what it has read of the tower."""
    seen: list[Any] = []

    @dataclass(frozen=True, kw_only=True)
    class Peek(Method):
        key: ClassVar[str] = "peek"
        reads = Reads.TOWER

        def layers(self, num_layers: int) -> Sequence[int]:
            return (0,)

        def tower_layers(self, num_layers: int) -> Sequence[int]:
            return layers

        def keep(self, view: LayerView) -> Tensor:
            seen.append(read(view.tower))
            return view.valid

    return Peek(), seen


@torch.no_grad()
def look(model: PreTrainedModel, inputs: dict[str, Tensor], read: Callable[[TowerView], Any], **options: Any) -> Any:
    method, seen = peek(read, **options)
    with method(model):
        model(**inputs)
    return seen[-1]


@dataclass
class Naive:
    """What a tower gives for images, run by the test: hidden states by number, column means and CLS rows by layer."""

    states: Sequence[Tensor]
    column: list[Tensor]
    cls: list[Tensor]
    keys: list[Tensor]


def naive(model: PreTrainedModel, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, which: int = 0) -> Naive:
    """Run a tower, and note queries and keys of the attention function that it calls, chunk by chunk."""
    calls: list[tuple[Tensor, Tensor]] = []
    own = torch.nn.functional.scaled_dot_product_attention
    states: list[Tensor] = []

    def noted(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((query, key))
        return own(query, key, *args, **kwargs)

    layers = find_tower(find_anatomy(model)).layers[which]
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda _, __, output: states.append(output)) for layer in layers]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        run()
    for hook in hooks:
        hook.remove()
    column: list[Tensor] = []
    cls: list[Tensor] = []
    keys: list[Tensor] = []
    done: list[list[Tensor]] = []
    tokens = states[0].shape[-2]
    for query, key in calls:
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        if not done or sum(part.shape[-1] for part in done[-1]) == tokens:
            done.append([])
            keys.append(key[:, :, :0])
        done[-1].append(weights.sum(dim=(1, 2)) / (weights.shape[1] * weights.shape[2]))
        keys[-1] = torch.cat((keys[-1], key), dim=2)
        cls.append(weights[:, :, 0].mean(dim=1))
    column = [torch.cat(parts, dim=-1) for parts in done]
    return Naive(states, column, cls, keys)


def everything(tower: TowerView) -> dict[str, Any]:
    by = {"column": tower.received(-1, by="column"), "before": tower.received(-2, by="column")}
    if tower.has_cls:
        by["cls"] = tower.received(-1)
    else:
        torch.testing.assert_close(tower.received(-1), by["column"])
    each = tower.received(-1, heads="each", by="column")
    torch.testing.assert_close(each.mean(dim=-1), by["column"])
    keys = tower.keys(-1, heads="each")
    torch.testing.assert_close(keys.mean(dim=2), tower.keys(-1))
    states = {"first": tower.features(0), "penultimate": tower.features(-2), "last": tower.features(-1)}
    return {**by, **states, "keys": keys, "places": tower.places, "extent": tower.extent, "vision": tower.prompt.vision}


def check(found: dict[str, Any], row: int, expected: Naive, groups: Sequence[Sequence[tuple[int, ...]] | None]) -> None:
    """Compare a row with the means over groups of patches ``(image, patch)`` of each of its vision tokens."""
    places = found["vision"][row].nonzero().flatten().tolist()
    assert len(places) == len(groups)
    wanted = {
        "first": expected.states[0],
        "penultimate": expected.states[-2],
        "last": expected.states[-1],
        "column": expected.column[-1],
        "before": expected.column[-2],
        "keys": expected.keys[-1].transpose(1, 2).squeeze(0) if expected.states[0].ndim == 2 else None,
    }
    if expected.states[0].ndim == 3:
        wanted["keys"] = expected.keys[-1].transpose(1, 2)
        wanted["cls"] = expected.cls[-1]
    else:
        wanted |= {"column": expected.column[-1][0], "before": expected.column[-2][0]}
    for name, values in wanted.items():
        if name not in found or values is None:
            continue
        for place, group in zip(places, groups, strict=True):
            here = found[name][row, place]
            if group is None:
                assert not here.any()
            else:
                mean = sum(values[patch] for patch in group) / len(group)
                torch.testing.assert_close(here, mean.to(here), **CLOSE)
    outside = ~found["vision"][row]
    assert not found["last"][row, outside].any() and bool((found["places"][row, outside] == -1).all())


def places(found: dict[str, Any], row: int) -> list[tuple[int, ...]]:
    return [tuple(place) for place in found["places"][row][found["vision"][row]].tolist()]


def test_llava(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t5"], ["t2", "i", "i", "t1"]])
    found = look(model, inputs, everything)
    expected = naive(model, lambda: model.model.vision_tower(inputs["pixel_values"]), monkeypatch)
    images = [[[(image, 1 + patch)] for patch in range(4)] for image in range(3)]
    check(found, 0, expected, images[0])
    check(found, 2, expected, images[1] + images[2])
    square = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places(found, 0) == [(0, 0, 0, *at) for at in square] and places(found, 1) == []
    assert places(found, 2) == [(image, 0, 0, *at) for image in (0, 1) for at in square]
    assert found["extent"][found["vision"]].tolist() == [[2, 2]] * 12
    # One softmax over the full width, as if there were one head.
    joined = look(model, inputs, lambda tower: tower.received(-1, heads="joined"))
    attention = model.model.vision_tower.encoder.layers[-1].self_attn
    with torch.no_grad():
        normed = model.model.vision_tower.encoder.layers[-1].layer_norm1(expected.states[-2][0])
        row = (attention.q_proj(normed[0]) @ attention.k_proj(normed).T / 16**0.5).softmax(dim=-1)
    torch.testing.assert_close(joined[0][found["vision"][0]], row[1:])
    # Attentions and hidden states as transformers itself gives them.
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    row = output.attentions[-1].mean(dim=1)[0, 0, 1:]
    torch.testing.assert_close(found["cls"][0][found["vision"][0]], row.to(found["cls"]), **CLOSE)
    states = output.hidden_states[-2][0, 1:]
    torch.testing.assert_close(found["penultimate"][0][found["vision"][0]], states)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_tiles_are_unpadded_and_newlines_have_no_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t3", "i", "t4"], ["t2", "I", "t1"]])
    found = look(model, inputs, everything)
    tall, wide = inputs["pixel_values"][0], inputs["pixel_values"][1, :4]
    expected = naive(model, lambda: model.model.vision_tower(torch.cat((tall, wide))), monkeypatch)
    cls = int(name == "llava_next")

    def patch(tile: int, y: int, x: int) -> list[tuple[int, int]]:
        return [(tile, cls + (y % 2) * 2 + x % 2)]

    # 16 x 8 in 2 x 2 tiles of 2 x 2 patches: the outer columns are padding. 8 x 24 in 1 x 3 tiles: nothing is.
    groups = [patch(0, y, x) for y in range(2) for x in range(2)]
    for y in range(4):
        groups += [patch(1 + y // 2 * 2 + x // 2, y, x) for x in (1, 2)] + [None]  # type: ignore[list-item]
    check(found, 0, expected, groups)
    groups = [patch(5, y, x) for y in range(2) for x in range(2)]
    for y in range(2):
        groups += [patch(6 + x // 2, y, x) for x in range(6)] + [None]  # type: ignore[list-item]
    check(found, 1, expected, groups)
    tiles = [place[2] for place in places(found, 0)]
    assert tiles == [0] * 4 + [1, 2, -1] * 2 + [3, 4, -1] * 2
    assert places(found, 0)[4:10] == [
        (0, 0, 1, 0, 0),
        (0, 0, 2, 0, 0),
        (-1,) * 5,
        (0, 0, 1, 1, 0),
        (0, 0, 2, 1, 0),
        (-1,) * 5,
    ]
    assert places(found, 1)[4:8] == [(0, 0, 1, 0, 0), (0, 0, 1, 0, 1), (0, 0, 2, 0, 0), (0, 0, 2, 0, 1)]


def test_frames_that_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava_onevision", attn="sdpa")
    inputs = make_inputs("llava_onevision", model, [["t3", "v", "t4"], ["t1", "i", "t1", "v", "t1"]])
    found = look(model, inputs, everything)
    videos = inputs["pixel_values_videos"]
    expected = naive(model, lambda: model.model.vision_tower(videos.flatten(0, 1)), monkeypatch)
    check(found, 0, expected, [*([(frame, patch) for patch in range(4)] for frame in range(3)), None])
    assert places(found, 0) == [*((0, frame, 0, 0, 0) for frame in range(3)), (-1,) * 5]
    assert places(found, 1)[-4:] == [*((1, frame, 0, 0, 0) for frame in range(3)), (-1,) * 5]
    assert {place[0] for place in places(found, 1)[:-4]} == {0, -1}


def test_frames_with_their_cls_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("video_llava", attn="sdpa")
    inputs = make_inputs("video_llava", model, [["t3", "v", "t4"], ["t1", "i", "t1", "v", "t1"]])
    found = look(model, inputs, everything)
    frames_of = inputs["pixel_values_videos"].flatten(0, 1)
    expected = naive(model, lambda: model.model.video_tower(frames_of), monkeypatch, which=1)
    frames = [[[(frame, token)] for token in range(5)] for frame in range(4)]
    check(found, 0, expected, frames[0] + frames[1])
    at = [(-1, -1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert places(found, 0) == [(0, frame, 0, *where) for frame in (0, 1) for where in at]
    assert places(found, 1) == [(0, 0, 0, *where) for where in at[1:]] + [
        (1, frame, 0, *where) for frame in (0, 1) for where in at
    ]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_patches_that_are_merged_in_the_tower(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t3", "I", "t4"], ["t2", "i", "i", "t1"]])
    found = look(model, inputs, everything)
    grids = inputs["image_grid_thw"]
    run = naive(model, lambda: model.model.visual(inputs["pixel_values"], grid_thw=grids), monkeypatch)
    # Qwen2.5-VL's windows of 2 x 2 tokens: those of the wide image (2 x 3) stand first two columns, then the third.
    wide = [0, 1, 4, 2, 3, 5] if name == "qwen2_5_vl" else range(6)
    groups = [[(4 * at + patch,) for patch in range(4)] for at in wide]
    check(found, 0, run, groups)
    check(found, 1, run, [[(24 + 4 * at + patch,) for patch in range(4)] for at in range(8)])
    assert places(found, 0) == [(0, 0, 0, row, column) for row in range(2) for column in range(3)]
    assert places(found, 1) == [(image, 0, 0, row, column) for image in (0, 1) for row in (0, 1) for column in (0, 1)]
    assert found["extent"][0][found["vision"][0]].tolist() == [[2, 3]] * 6
    videos = look(model, make_inputs(name, model, [["t3", "v", "t4"]]), everything)
    assert places(videos, 0) == [(0, frame, 0, row, column) for frame in (0, 1) for row in (0, 1) for column in (0, 1)]


def test_pixel_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("internvl", attn="sdpa")
    inputs = make_inputs("internvl", model, [["t3", "I", "t4"], ["t2", "i", "i", "t1"]])
    found = look(model, inputs, everything)
    run = naive(model, lambda: model.model.vision_tower(inputs["pixel_values"]), monkeypatch)

    def tile(number: int) -> list[list[tuple[int, int]]]:
        corners = [(y, x) for y in (0, 2) for x in (0, 2)]
        return [[(number, 1 + (y + i) * 4 + x + j) for i in (0, 1) for j in (0, 1)] for y, x in corners]

    check(found, 0, run, tile(0) + tile(1) + tile(2))
    check(found, 1, run, tile(3) + tile(4))
    square = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places(found, 0) == [(0, 0, which, *at) for which in (1, 2, 0) for at in square]  # the thumbnail is the last
    assert places(found, 1) == [(image, 0, 0, *at) for image in (0, 1) for at in square]


# --- every family: the token whose patch changes is the one that stands there


SQUARE = ["llava", "vipllava", "video_llava", "internvl", "idefics3", "smolvlm", "gemma3", "paligemma"]
SQUARE += ["aya_vision", "cohere2_vision", "mistral3", "pixtral_llava"]
FLAT = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"]
TILED = ["llava_next", "llava_onevision"]
ROWS = [["t2", "i", "t3"], ["t4"], ["t1", "i", "i", "t2"]]
OWNERS = [(0, 0), (2, 0), (2, 1)]
"""Row, and image in it, of each image."""


def changed_tokens(model: PreTrainedModel, inputs: dict[str, Tensor], before: Tensor) -> list[tuple[int, int]]:
    after = look(model, inputs, lambda tower: tower.features(0), layers=(0,))
    return [tuple(at) for at in (after != before).any(dim=-1).nonzero().tolist()]


@pytest.mark.parametrize("name", SQUARE + FLAT)
def test_the_token_of_a_changed_patch_stands_there(name: str) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, ROWS)
    before, where, extent = look(model, inputs, lambda t: (t.features(0), t.places, t.extent), layers=(0,))
    generator = torch.Generator().manual_seed(0)
    for image, (row, number) in enumerate(OWNERS):
        rows, columns = extent[row][where[row, :, 0] == number][0].tolist()
        pixels = inputs["pixel_values"].clone()
        if name in FLAT:
            patch = int(torch.randint(4 * rows * columns, (), generator=generator))
            pixels[16 * image + patch] += 1
            y, x = divmod(patch // 4, columns)
        else:
            one = pixels[row, number] if pixels.ndim == 5 else pixels[image]
            height, width = one.shape[-2] // rows, one.shape[-1] // columns
            at = torch.rand(2, generator=generator) * torch.tensor([one.shape[-2], one.shape[-1]])
            top, left = (at.long() // 4 * 4).tolist()  # of a patch, in a token of height x width pixels
            one[:, top : top + 2, left : left + 2] += 1
            y, x = top // height, left // width
        expected = (where[row] == torch.tensor([number, 0, 0, y, x])).all(dim=-1).nonzero().flatten().tolist()
        assert len(expected) == 1
        assert changed_tokens(model, {**inputs, "pixel_values": pixels}, before) == [(row, expected[0])]


@pytest.mark.parametrize("name", TILED)
def test_the_token_of_a_changed_patch_of_a_tile_stands_there(name: str) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t3", "I", "t4"], ["t2", "i", "t1"]])
    before, where = look(model, inputs, lambda t: (t.features(0), t.places), layers=(0,))
    reached = []
    for row, tiles in ((0, 4), (1, 5)):
        for tile in range(tiles):
            for y in (0, 1):
                for x in (0, 1):
                    pixels = inputs["pixel_values"].clone()
                    pixels[row, tile, :, 4 * y, 4 * x] += 1
                    found = changed_tokens(model, {**inputs, "pixel_values": pixels}, before)
                    assert len(found) <= 1  # padding that was cut off has none
                    for at in found:
                        image, frame, which, down, right = where[at].tolist()
                        assert at[0] == row and (image, frame, which, down) == (0, 0, tile, y)
                        assert right == (x if row == 0 or tile == 0 else 0)  # half of the tall image's tiles is cut
                    reached += found
    assert sorted(reached) == [tuple(at) for at in (where[..., 0] >= 0).nonzero().tolist()]


@pytest.mark.parametrize("name", ["llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_the_tokens_of_a_changed_frame_stand_in_it(name: str) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t2", "v", "t3"], ["t1", "v", "t1"]])
    before, where = look(model, inputs, lambda t: (t.features(0), t.places), layers=(0,))
    for row in (0, 1):
        for frame in (0, 1):
            pixels = inputs["pixel_values_videos"].clone()
            if name in FLAT:
                pixels[32 * row + 16 * frame : 32 * row + 16 * frame + 16] += 1
            else:
                pixels[row, frame] += 1
            found = changed_tokens(model, {**inputs, "pixel_values_videos": pixels}, before)
            of_frame = (where[..., 0] == 0) & (where[..., 1] == frame)
            if name == "video_llava":
                of_frame &= where[..., 3] >= 0  # what enters for the CLS token does not depend on pixels
            of_frame[1 - row] = False
            assert found == [tuple(at) for at in of_frame.nonzero().tolist()]


# --- batches, beams, charges, refusals


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "internvl", "idefics3"])
@torch.no_grad()
def test_a_row_is_the_same_in_any_batch_and_for_each_beam(name: str) -> None:
    model = make_model(name, attn="sdpa")
    rows = [["t3", "i", "t4"], ["t2", "i", "i", "t1"]]
    batch = look(model, make_inputs(name, model, rows), everything)
    inputs = make_inputs(name, model, [rows[0]])
    alone = look(model, inputs, everything)
    for key in set(alone) - {"vision"}:
        torch.testing.assert_close(alone[key][0][alone["vision"][0]], batch[key][0][batch["vision"][0]])
    method, seen = peek(everything)
    with method(model):
        model.generate(**inputs, max_new_tokens=2, num_beams=2)
    for beam in (0, 1):
        torch.testing.assert_close(seen[0]["penultimate"][beam], alone["penultimate"][0])
        assert torch.equal(seen[0]["places"][beam], alone["places"][0])


def test_the_tower_runs_as_without_a_method_and_nothing_stays() -> None:
    model = make_model("llava_next", attn="sdpa")
    inputs = make_inputs("llava_next", model, [["t3", "i", "t4"], ["t5"]])
    with torch.no_grad():
        expected = model(**inputs).logits
        method, _ = peek(everything)
        with method(model):
            assert torch.equal(model(**inputs).logits, expected)
            assert model.model.__dict__["get_image_features"].__closure__ is not None
    assert "get_image_features" not in model.model.__dict__
    tower = find_tower(find_anatomy(model))
    modules = [*tower.towers[0].modules(), *tower.projector.modules()]
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)


@torch.no_grad()
def test_features_are_projected_as_the_model_does() -> None:
    for name in ("llava", "llava_onevision", "paligemma", "video_llava"):
        model = make_model(name, attn="sdpa")
        inputs = make_inputs(name, model, [["t3", "i", "t4"]])
        layer = getattr(model.config, "vision_feature_layer", None)
        if layer is None:
            continue  # behind a norm of the tower
        read = functools.partial(projected, layer=layer)
        found = look(model, inputs, read, layers=(layer,))
        features = model.model.get_image_features(**_features(inputs)).pooler_output
        features = torch.cat(list(features))
        kept = [i for i in range(len(features)) if (features[i] - found).abs().sum(dim=-1).min() < 1e-9]
        assert len(kept) == len(found)


def projected(tower: TowerView, layer: int) -> Tensor:
    return tower.project(tower.features(layer)[tower.places[..., 0] >= 0][:, None])


def _features(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value for name, value in inputs.items() if name in ("pixel_values", "image_sizes", "batch_num_images")
    }


@torch.no_grad()
def test_what_cannot_be_told_is_refused() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    with pytest.raises(ValueError, match=r"reads layer -1 of the vision tower and does not declare it"):
        look(model, inputs, lambda tower: tower.features(-1), layers=(0,))
    with pytest.raises(ValueError, match=r"tower layer 7 is out of range: this tower has 2 layers"):
        look(model, inputs, lambda tower: None, layers=(7,))
    with pytest.raises(ValueError, match=r"joins several patches"):
        look(model, inputs, lambda tower: tower.project(torch.ones(1, 4, 16)))
    siglip = make_model("paligemma", attn="sdpa")
    with pytest.raises(ValueError, match=r"attention of a CLS token, which this model's tower has not"):
        look(siglip, make_inputs("paligemma", siglip, [["i", "t3"]]), lambda tower: tower.received(by="cls"))
    features = model.model.get_image_features(inputs["pixel_values"])
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match=r"which has not run for this prompt: pass the pixel values"):
        look(model, {**rest, "mm_encoder_outputs": {"image": features}}, lambda tower: tower.places)
    wrong = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    wrong[:, 3:6] = True
    method, _ = peek(lambda tower: tower.features())
    match = r"the vision tower has \d+ tokens for the \d+ of the prompt"
    with method(model, vision_mask=wrong), pytest.raises(UpstreamChangedError, match=match):
        model(**inputs)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl", "mistral3", "gemma3", "glm4v", "idefics3"])
def test_a_tower_that_is_wider_than_the_decoder_is_packed_in_parts(name: str) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t2", "i", "t3"], ["t1", "i", "i", "t2"]])

    def wide(tower: TowerView) -> tuple[Tensor, Tensor]:
        [call] = tower.calls
        state = call.states[1]
        both = [pack(tower.recorder, call, values, tower.width) for values in (torch.cat([state] * 9, dim=-1), state)]
        return both[0].values, both[1].values

    found, one = look(model, inputs, wide)
    assert found.shape[1] == 9 * 16 > model.config.text_config.hidden_size
    assert torch.equal(found, one.repeat(1, 9)) and one.any()


def test_a_composition_keeps_the_layers_of_its_parts() -> None:
    method, _ = peek(lambda tower: tower.features(0), layers=(-1, 0))
    assert Composite(parts=(FastV(k=1), method)).tower_layers(2) == [-1, 0]


def test_every_family_is_here_or_refused() -> None:
    assert set(SQUARE + FLAT + TILED) - {"pixtral_llava"} == TESTED - {"internvl_chat"}
