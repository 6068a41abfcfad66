"""Methods that merge tokens, against loops over single tokens and against shorter prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.methods.test_methods import check_cache
from tests.support.families import FAMILIES, VIDEO, make_inputs, make_model
from tests.support.oracle import FLASH, GLM_VIDEO, KINDS, models
from vtw_eval import Downsample, Method, Reads, ToMe
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.engine import LayerView, Merge, Trace
from vtw_eval.engine.calls import cache_of_output
from vtw_eval.methods.budget import runs
from vtw_eval.methods.downsample import pooling_cells
from vtw_eval.methods.pact import PACT
from vtw_eval.methods.sparsevlm import SparseVLM, density_peaks, is_rater
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


SPARSE = SparseVLM(k1=1, k2=2, k3=3)
CLUSTERS = PACT(k1=1, r=0.3, merged=0.4)


def naive_peaks(points: list[Tensor], count: int) -> list[tuple[int, list[int]]]:
    """Return the centre and the members of each group, the clearest first."""
    n = len(points)
    far = [[float((a - b).norm()) / len(a) ** 0.5 for b in points] for a in points]
    density = [math.exp(-sum(d**2 for d in sorted(line)[:count]) / count) for line in far]
    apart = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        apart.append(min((far[i][j] for j in denser), default=max(map(max, far))))
    centres = sorted(range(n), key=lambda i: -apart[i] * density[i])[:count]
    members: dict[int, list[int]] = {centre: [] for centre in centres}
    for i in range(n):
        members[i if i in centres else min(centres, key=lambda centre: far[i][centre])].append(i)
    return list(members.items())


@torch.no_grad()
def test_groups_are_those_of_density_peaks() -> None:
    points = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points += 4 * torch.eye(8).repeat_interleave(10, dim=0)[:60]
    for count in (1, 2, 6, 9):
        centres, group = density_peaks(points, count)
        expected = naive_peaks(list(points), count)
        assert centres.tolist() == [centre for centre, _ in expected]
        assert [(group == i).nonzero()[:, 0].tolist() for i in range(count)] == [members for _, members in expected]
        if count == 6:
            assert sorted(int(centre) // 10 for centre in centres) == list(range(6))
    assert density_peaks(torch.ones(5, 3), 2)[0].tolist() == [0, 1]  # all alike: in order


def test_all_words_rate_where_none_is_above_the_mean() -> None:
    vision = torch.tensor([[1.0, 0.0], [1.0, 0.2]])
    assert is_rater(vision, torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).tolist() == [True, False, False]
    assert is_rater(vision, torch.tensor([[2.0, 0.0]])).tolist() == [True]


def naive_sparsevlm(model: torch.nn.Module, inputs: dict[str, Tensor], stages: dict[int, int]) -> tuple[Tensor, list]:
    """Last logits of one prompt under eager attention, and the counts of vision tokens: lists, no hooks in the way.

    ``stages`` names the share that each stage keeps, in numbers of 576.
    """
    anatomy = find_anatomy(model)
    entered: list[tuple[Tensor, dict]] = []
    handle = anatomy.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append((args[0], kwargs)), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    states, kwargs = entered[0]
    vision = vision_positions(model, inputs["input_ids"])[0].tolist()
    tokens = [{"h": states[0, i], "place": i, "vision": v} for i, v in enumerate(vision)]
    for before, token in zip([None, *tokens], tokens, strict=False):
        token["image"] = before["image"] + (not before["vision"]) if before else 0
    total, last = sum(vision), max(i for i, v in enumerate(vision) if v)
    rating = [0.0] * len(vision)
    words = range(last + 1, len(vision))
    for i in (i for i, v in enumerate(vision) if v):
        products = [math.exp(float(states[0, i] @ states[0, word])) for word in words]
        for word, product in zip(words, products, strict=True):
            rating[word] += product / sum(products)
    raters = {word for word in words if rating[word] / total > 1 / len(words) + 1e-12}
    weights, counts, cut = torch.empty(0), [], False
    for i, layer in enumerate(anatomy.layers):
        if i in stages:
            now = [n for n, token in enumerate(tokens) if token["vision"]]
            score = {
                n: sum(float(weights[:, q, n].mean()) for q, token in enumerate(tokens) if token["place"] in raters)
                for n in now
            }
            best = sorted(now, key=lambda n: -score[n])[: total * stages[i] // 576]
            dropped = [n for n in now if n not in best]
            pool = sorted(sorted(dropped, key=lambda n: -score[n])[: int(0.3 * len(dropped)) + 1])
            groups = naive_peaks([tokens[n]["h"] for n in pool], int(len(pool) / 10) + 1)
            made = [
                {**tokens[pool[centre]], "h": torch.stack([tokens[pool[m]]["h"] for m in members]).mean(dim=0)}
                for centre, members in groups
            ]
            new: list[dict] = []
            for image in sorted({token["image"] for token in tokens}):
                own = [n for n, token in enumerate(tokens) if token["image"] == image]
                new += [tokens[n] for n in own if tokens[n]["vision"] and n in best]
                new += [token for token in made if token["image"] == image]
                new += [tokens[n] for n in own if not tokens[n]["vision"]]
            tokens, cut = new, True
        counts.append(sum(token["vision"] for token in tokens))
        hidden = torch.stack([token["h"] for token in tokens])[None]
        embeddings = kwargs["position_embeddings"]
        if cut:
            positions = torch.arange(len(tokens))[None]
            mrope = "mrope_section" in str(model.config)
            embeddings = anatomy.rotary(hidden, positions.expand(3, 1, -1) if mrope else positions)
        mask = torch.zeros(len(tokens), len(tokens), dtype=hidden.dtype)
        mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), -torch.inf)[None, None]
        seen: list[Tensor] = []
        handle = layer.self_attn.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[1][0]))
        hidden = layer(hidden, attention_mask=mask, position_embeddings=embeddings)
        handle.remove()
        hidden, weights = hidden[0] if isinstance(hidden, tuple) else hidden, seen[0]
        for token, state in zip(tokens, hidden[0], strict=True):
            token["h"] = state
    return model.get_output_embeddings()(anatomy.decoder.norm(tokens[-1]["h"])), counts


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl"])
@torch.no_grad()
def test_sparsevlm_equals_a_loop_over_tokens(name: str) -> None:
    model, eager = make_model(name, attn="sdpa"), make_model(name, attn="eager")
    rows = [["t3", "i", "t4"], ["t2", *"iii", "t1", *"iiiiiiiiiiiiiiiiiiiiiiiiiiiii", "t9"]]
    logits, counts = [], []
    for row in rows:
        inputs = make_inputs(name, model, [row])
        with SparseVLM(k1=1, k2=2, k3=3, budget=128)(model) as trace:
            logits.append(model(**inputs).logits[0, -1])
            counts.append(trace.vision_per_layer[0].tolist())
        expected, count = naive_sparsevlm(eager, inputs, {1: 303, 2: 110, 3: 36})
        torch.testing.assert_close(logits[-1], expected, atol=1e-5, rtol=0)  # rotation is of float32
        assert counts[-1] == count
    with SparseVLM(k1=1, k2=2, k3=3, budget=128)(model) as trace:
        together = model.generate(
            **make_inputs(name, model, [*rows, ["t6"]]),
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
            do_sample=False,
        ).logits[0]
    assert trace.vision_per_layer.tolist() == [*counts, [0] * 4]
    torch.testing.assert_close(together[:2], torch.stack(logits).to(together), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("budget", "kept", "merged"),
    [
        (192, [300, 200, 110], [309, 204, 113]),
        (128, [303, 110, 36], None),
        (96, [238, 48, 26], None),
        (64, [66, 30, 17], None),
    ],
)
def test_sparsevlm_keeps_as_many_as_its_code(budget: int, kept: list[int], merged: list[int] | None) -> None:
    for recycle, expected in ((False, kept), (True, merged)):
        seen = dry_run(SparseVLM(budget=budget, recycle=recycle), 32, text=66, vision=576).vision[0].tolist()
        assert seen[:3] == [576] * 3
        if expected is not None:
            assert seen[3:] == [expected[0]] * 4 + [expected[1]] * 9 + [expected[2]] * 16


def test_sparsevlm_is_the_unchanged_model_where_all_may_stay() -> None:
    assert set(dry_run(SparseVLM(r=0.0), 20, text=66, vision=576).vision[0].tolist()) == {576}
    assert dry_run(SparseVLM(r=1.0, recycle=False), 20, text=66, vision=9).vision[0].tolist() == [9] * 3 + [0] * 17
    for wrong, what in (({"budget": 100}, "192, 128"), ({"budget": 64, "r": 0.5}, "not both"), ({"k1": 7}, "k1=7")):
        with pytest.raises(ValueError, match=what):
            SparseVLM(**wrong)


@torch.no_grad()
def test_states_that_a_method_changes_enter_the_layer_where_no_token_goes() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Louder(Method):
        key: ClassVar[str] = "louder"
        reads = Reads.HIDDEN

        def layers(self, num_layers: int) -> Sequence[int]:
            return (1,)

        def keep(self, view: LayerView) -> Merge:
            return Merge(view.valid, view.hidden * (1 + view.vision[..., None].to(view.hidden)))

    model, _ = models("llava", "sdpa")
    seen: list[Tensor] = []
    with Louder()(model) as trace:
        inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
        handle = find_anatomy(model).layers[1].register_forward_hook(lambda module, args, out: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    entering = model(**inputs, output_hidden_states=True).hidden_states[1]
    vision = vision_positions(model, inputs["input_ids"])
    torch.testing.assert_close(seen[0], torch.where(vision[..., None], 2 * entering, entering))
    assert trace.tokens_per_layer.unique().tolist() == [vision.shape[1]]


def sizes(trace: Trace, layer: int) -> Tensor:
    assert trace.reduction is not None
    layout = trace.reduction.layouts[layer]
    if layout is None:
        return torch.ones_like(trace.kept(layer), dtype=torch.float32)
    size = layout.valid.float() if layout.size is None else layout.size * layout.valid
    return torch.zeros_like(trace.kept(layer), dtype=torch.float32).scatter(1, layout.index, size)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", [ToMe(k=1, r=0.8), ToMe(per_layer=2), Downsample(r=0.75), SPARSE, CLUSTERS])
@torch.no_grad()
def test_counts_sizes_and_text(name: str, method: ToMe | Downsample | SparseVLM | PACT) -> None:
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
                elif isinstance(method, PACT):
                    if layer == method.k1:
                        now = int(int(total * 0.7 + 1e-6) * 0.6 + 1e-6)
                    stands = sizes(trace, layer)[row]
                    assert now <= stands[vision[row]].sum() <= total
                    assert stands[kept & ~vision[row]].eq(1).all()
                elif isinstance(method, SparseVLM):
                    stage = layer - 1
                    left = min(total * (300, 200, 110)[stage] // 576, now) if 0 <= stage < 3 else now
                    now = left + (int(0.3 * (now - left)) + 1) // 10 + 1 if left < now else now
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
