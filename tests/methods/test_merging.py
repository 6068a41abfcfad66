"""Methods that merge tokens, against loops over single tokens and against shorter prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.methods.test_methods import check_cache
from tests.support.families import FAMILIES, VIDEO, make_inputs
from tests.support.oracle import FLASH, GLM_VIDEO, KINDS, models
from vtw_eval import Downsample, ToMe
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Trace
from vtw_eval.engine.calls import cache_of_output
from vtw_eval.methods.downsample import pooling_cells, runs
from vtw_eval.methods.tome import match
from vtw_eval.verify.oracle import vision_positions


def naive_tome(model: torch.nn.Module, inputs: dict[str, Tensor], method: ToMe) -> Tensor:
    """Last logits of one prompt, token by token: lists instead of layouts, a mask from scratch, no hooks in the way."""
    anatomy = find_anatomy(model)
    entered: list[tuple[Tensor, dict]] = []
    handle = anatomy.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append((args[0], kwargs)), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    states, kwargs = entered[0]
    cos, sin = kwargs["position_embeddings"]
    vision = vision_positions(model, inputs["input_ids"])[0].tolist()
    tokens = [{"h": states[0, i], "size": 1.0, "place": i, "vision": v} for i, v in enumerate(vision)]
    total = sum(vision)
    for i, layer in enumerate(anatomy.layers):
        if i >= method.k:
            images = [token for token in tokens if token["vision"]]
            count = min(len(images) - method.target(total, i, anatomy.num_layers), len(images) // 2)
            normed = layer.input_layernorm(torch.stack([token["h"] for token in images]))
            heads = layer.self_attn.k_proj(normed).unflatten(-1, (-1, layer.self_attn.head_dim))
            keys = heads.mean(dim=1).float()
            pairs = []
            for a in range(0, len(images) if len(images) > 1 else 0, 2):
                found = [torch.cosine_similarity(keys[a], keys[b], dim=0) for b in range(1, len(images), 2)]
                best = max(range(len(found)), key=lambda j: found[j])
                pairs.append((float(found[best]), a, 2 * best + 1))
            groups: dict[int, list[int]] = {}
            for _, a, b in sorted(pairs, key=lambda pair: -pair[0])[: max(count, 0)]:
                groups.setdefault(b, []).append(a)
            for b, sources in groups.items():
                members = [images[j] for j in (b, *sources)]
                size = sum(member["size"] for member in members)
                images[b]["h"] = sum(member["h"] * member["size"] for member in members) / size
                images[b]["size"] = size
                for a in sources:
                    tokens = [token for token in tokens if token is not images[a]]
        places = torch.tensor([token["place"] for token in tokens])
        mask = torch.tensor([token["size"] for token in tokens], dtype=states.dtype).log().expand(len(tokens), -1)
        mask = mask.masked_fill(places[None, :] > places[:, None], -torch.inf)
        hidden = torch.stack([token["h"] for token in tokens])[None]
        embeddings = (cos[..., places, :], sin[..., places, :])
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=embeddings)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        for token, state in zip(tokens, hidden[0], strict=True):
            token["h"] = state
    return model.get_output_embeddings()(anatomy.decoder.norm(tokens[-1]["h"]))


@pytest.mark.parametrize("name", ["llava", "llava_gqa", "qwen2_vl", "mistral3", "internvl"])
@pytest.mark.parametrize("method", [ToMe(), ToMe(k=1, r=0.5), ToMe(k=2, per_layer=1), ToMe(per_layer=3)])
@torch.no_grad()
def test_tome_equals_a_loop_over_tokens(name: str, method: ToMe) -> None:
    model, _ = models(name, "sdpa")
    for row in (["t3", "i", "t4"], ["t2", "I", "t1", "i", "t5"]):
        inputs = make_inputs(name, model, [row])
        with method(model):
            mine = model(**inputs).logits[0, -1]
        torch.testing.assert_close(mine, naive_tome(model, inputs, method), atol=1e-6, rtol=0)


def sizes(trace: Trace, layer: int) -> Tensor:
    assert trace.reduction is not None
    layout = trace.reduction.layouts[layer]
    if layout is None:
        return torch.ones_like(trace.kept(layer), dtype=torch.float32)
    size = layout.valid.float() if layout.size is None else layout.size * layout.valid
    return torch.zeros_like(trace.kept(layer), dtype=torch.float32).scatter(1, layout.index, size)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", [ToMe(k=1, r=0.8), ToMe(per_layer=2), Downsample(r=0.75)])
@torch.no_grad()
def test_counts_sizes_and_text(name: str, method: ToMe | Downsample) -> None:
    model, _ = models(name, "sdpa")
    layers = find_anatomy(model).num_layers
    for kind, rows in KINDS.items():
        if kind == "video" and name not in VIDEO:
            continue
        inputs = make_inputs(name, model, GLM_VIDEO if (name, kind) == ("glm4v", "video") else rows)
        valid = inputs["attention_mask"].bool()
        vision = vision_positions(model, inputs["input_ids"]) & valid
        untouched = model(**inputs).logits
        with method(model) as trace:
            output = model(**inputs, use_cache=True)
            logits = output.logits
            check_cache(trace, cache_of_output(output))
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.isfinite(logits[trace.kept(-1)]).all()
        assert torch.equal(model(**inputs).logits, untouched), "the method left something behind"
        for row, total in enumerate(vision.sum(1).tolist()):
            now = total
            for layer in range(layers):
                kept = trace.kept(layer)[row]
                assert torch.equal(kept & ~vision[row], valid[row] & ~vision[row])
                if isinstance(method, ToMe):
                    if layer >= method.k:
                        now -= max(min(now - method.target(total, layer, layers), now // 2), 0)
                    assert sizes(trace, layer)[row][vision[row]].sum() == total
                    assert sizes(trace, layer)[row][kept & ~vision[row]].eq(1).all()
                else:
                    now = sum(int(pooling_cells(len(run), method.r).max()) + 1 for run in runs(vision[row]))
                assert int((kept & vision[row]).sum()) == now


@torch.no_grad()
def test_merged_tokens_need_additive_masks() -> None:
    model, _ = models("llava", FLASH)
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    with ToMe()(model), pytest.raises(ValueError, match="sdpa"):
        model(**inputs)


def test_matching_takes_the_most_similar_pairs() -> None:
    # tokens 0, 2, 4 may go; 2 is closest to 3, then 0 to 1, and 4 is close to nothing
    keys = torch.tensor([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0], [0.0, 1.1], [-1.0, -1.0]])
    gone, into = match(keys, 2)
    assert (gone.tolist(), into.tolist()) == ([2, 0], [3, 1])


@pytest.mark.parametrize("rows", [[["t3", "i", "t4"]], [["t3", "i", "t2", "i", "t4"], ["t7"], ["t1", "i", "t2"]]])
@torch.no_grad()
def test_downsampling_equals_a_shorter_prompt(rows: list[list[str]]) -> None:
    """Four vision tokens (2 x 2) averaged to one, by a prompt of embeddings for the unchanged model."""
    model, _ = models("llava", "sdpa")
    with Downsample(r=0.75)(model):
        inputs = make_inputs("llava", model, rows)
        mine = model(**inputs).logits
    for row, logits in zip(rows, mine, strict=True):
        inputs = make_inputs("llava", model, [row])
        ids = inputs["input_ids"]
        embeds = model.get_input_embeddings()(ids)[0]
        parts, positions, start = [], [], mine.shape[1] - ids.shape[1]
        features = iter(model.model.get_image_features(inputs["pixel_values"]).pooler_output) if "i" in row else None
        place = 0
        while place < ids.shape[1]:
            if ids[0, place] == model.config.image_token_id:
                parts.append(next(features).mean(dim=0))
                positions.append(start + place + 2)  # the middle one of four
                place += 4
            else:
                parts.append(embeds[place])
                positions.append(start + place)
                place += 1
        expected = model(inputs_embeds=torch.stack(parts)[None], position_ids=torch.tensor([positions])).logits
        torch.testing.assert_close(logits[-1], expected[0, -1], atol=1e-5, rtol=0)


def test_pooling_cells_of_a_grid_are_those_of_average_pooling() -> None:
    grid = torch.arange(576.0).reshape(1, 1, 24, 24)
    cells = pooling_cells(576, 0.75)
    pooled = torch.stack([grid.flatten()[cells == cell].mean() for cell in range(int(cells.max()) + 1)])
    assert torch.equal(pooled, torch.nn.functional.avg_pool2d(grid, 2).flatten())
    for count in (1, 2, 7, 16, 50, 576):
        for removed in (0.1, 0.5, 0.9, 1.0):
            cells = pooling_cells(count, removed)
            side = int(count**0.5 + 0.5)
            wanted = max(int(side * (1 - removed) ** 0.5 + 0.5), 1) ** 2 if side**2 == count else 0
            wanted = wanted or max(int(count * (1 - removed) + 0.5), 1)
            assert set(cells.tolist()) == set(range(wanted))
