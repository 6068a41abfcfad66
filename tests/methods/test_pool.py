"""Pooling in the grid, compared with loops over the grids that the inputs tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.support.families import make_inputs, make_model
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.engine import Trace
from vtw_eval.methods.pool import Pool
from vtw_eval.verify.oracle import vision_positions

ROWS = {
    "one image": [["t3", "i", "t4"]],
    "rows of different kinds": [["t3", "i", "t4"], ["t2", "I", "t1", "i", "t5"], ["t6"]],
    "video": [["t2", "v", "t3"], ["t1", "i", "t1", "v", "t2"]],
}


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Tensor], method: Pool) -> tuple[Trace, Tensor]:
    """Return the trace, and what enters the first layer at its places in the prompt, ``[rows, tokens, width]``."""
    entered: list[Tensor] = []
    with method(model) as trace:
        handle = find_anatomy(model).layers[0].register_forward_hook(lambda _, args, __: entered.append(args[0]))
        model(**inputs)
        handle.remove()
    layout = trace.reduction.layouts[0]
    if layout is None:
        return trace, entered[0]
    states = torch.zeros(*inputs["input_ids"].shape, entered[0].shape[-1], dtype=entered[0].dtype)
    for row, index in enumerate(layout.index):
        states[row, index] = entered[0][row]
    return trace, states


def grids(name: str, model: nn.Module, inputs: dict[str, Tensor], row: int) -> list[tuple[int, int, int]]:
    """Return frames, rows and columns of each image and video of a row, in the order of the prompt."""
    ids = inputs["input_ids"]
    if name == "llava":
        side = math.isqrt(model.model.get_image_features(inputs["pixel_values"]).pooler_output[0].shape[0])
        begins = vision_positions(model, ids)[row].sum() // side**2
        return [(1, side, side)] * int(begins)
    found, kinds = [], {"image": model.config.image_token_id, "video": model.config.video_token_id}
    counts = dict.fromkeys(kinds, 0)
    for each in range(row + 1):
        place = 0
        while place < ids.shape[1]:
            kind = next((kind for kind, token in kinds.items() if ids[each, place] == token), None)
            if kind is None:
                place += 1
                continue
            frames, high, wide = inputs[f"{kind}_grid_thw"][counts[kind]].tolist()
            counts[kind] += 1
            place += frames * high * wide // 4
            if each == row:
                found.append((frames, high // 2, wide // 2))
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llava", kind) for kind in ROWS if kind != "video"] + [("qwen2_vl", kind) for kind in ROWS],
)
@pytest.mark.parametrize("side", [1, 2, 3])
@torch.no_grad()
def test_squares_of_the_grid_are_averaged(name: str, kind: str, side: int) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, ROWS[kind])
    given = inputs["attention_mask"].bool()
    plain = model(**inputs, output_hidden_states=True).hidden_states[0]
    trace, states = run(model, inputs, Pool(side=side))
    for row in range(len(given)):
        vision = (vision_positions(model, inputs["input_ids"])[row] & given[row]).nonzero()[:, 0].tolist()
        expected: dict[int, list[int]] = {}
        for frames, high, wide in grids(name, model, inputs, row):
            for _ in range(frames):
                frame, vision = vision[: high * wide], vision[high * wide :]
                for top in range(0, high, side):
                    for left in range(0, wide, side):
                        members = [
                            frame[y * wide + x]
                            for y in range(top, min(top + side, high))
                            for x in range(left, min(left + side, wide))
                        ]
                        expected[members[len(members) // 2]] = members
        assert not vision
        kept = trace.kept(0)[row] & vision_positions(model, inputs["input_ids"])[row]
        assert kept.nonzero()[:, 0].tolist() == sorted(expected)
        for place, members in expected.items():
            mean = sum(plain[row, member] for member in members) / len(members)
            torch.testing.assert_close(states[row, place], mean)
        text = given[row] & ~vision_positions(model, inputs["input_ids"])[row]
        assert torch.equal(trace.kept(0)[row] & text, text)
        torch.testing.assert_close(states[row, text], plain[row, text])


@torch.no_grad()
def test_newlines_stay_between_pooled_tiles() -> None:
    """LLaVA-NeXT: the whole image is pooled alone, tiles within their borders, and every newline is still there."""
    model = make_model("llava_next", attn="sdpa")
    inputs = make_inputs("llava_next", model, [["t3", "i", "t4"], ["t1", "I", "t2"]])
    plain = model(**inputs, output_hidden_states=True).hidden_states[0]
    trace, states = run(model, inputs, Pool())
    newline = model.model.image_newline
    for row in range(2):
        was = [bool(torch.equal(state, newline)) for state in plain[row]]
        for place, is_newline in enumerate(was):
            if is_newline:
                assert trace.kept(0)[row, place]
                assert torch.equal(states[row, place], newline)
        vision = vision_positions(model, inputs["input_ids"])[row].nonzero()[:, 0].tolist()
        side = math.isqrt(model.config.vision_config.image_size**2 // model.config.vision_config.patch_size**2)
        whole = [vision[y * side + x] for y in range(2) for x in range(2)]
        torch.testing.assert_close(states[row, whole[2]], sum(plain[row, place] for place in whole) / 4)
        kept = trace.kept(0)[row, vision]
        assert int(kept.sum()) < len(vision) - sum(was) and sum(was) > 0


def test_pooling_where_nothing_can_be_told() -> None:
    assert dry_run(Pool(side=1), 4, text=5, vision=9).vision[0].tolist() == [9] * 4
    with pytest.raises(ValueError, match=r"downsample,r=0\.75"):
        dry_run(Pool(), 4, text=5, vision=9)
    with pytest.raises(ValueError, match="side=0"):
        Pool(side=0)
