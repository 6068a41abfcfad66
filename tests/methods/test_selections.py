"""Which tokens methods keep, compared with naive formulations: one row, loops, no shared helpers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from tests.support.families import make_inputs, make_model
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.engine import Trace
from vtw_eval.methods import parse_method
from vtw_eval.methods.divprune import most_diverse
from vtw_eval.methods.feather import on_grid
from vtw_eval.verify.oracle import vision_positions

ROWS = {
    "one image": [["t3", "i", "t4"]],
    "rows of different kinds": [["t3", "i", "t4"], ["t2", "i", "t1", "i", "t5"], ["t6"]],
}
MODELS = ["llava", "llava_next", "qwen2_vl"]


def run(name: str, spec: str, rows: list[list[str]]) -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    """Return model, inputs, and which vision tokens there are and enter the last layer, both ``[rows, tokens]``."""
    model = make_model(name, attn="eager" if len(rows) == 1 else "sdpa")  # eager padding is NaN in float64
    inputs = make_inputs(name, model, rows)
    with parse_method(spec)(model) as trace, torch.no_grad():
        model(**inputs)
    vision = vision_positions(model, inputs["input_ids"]) & inputs["attention_mask"].bool()
    assert torch.equal(trace.kept(-1) & ~vision, inputs["attention_mask"].bool() & ~vision), "a text token is gone"
    return model, inputs, vision, trace.kept(-1) & vision


def embeddings(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[0]


def half_up(total: int, removed: str) -> int:
    return math.floor(total * (1 - Fraction(removed)) + Fraction(1, 2))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_divprune_chooses_by_the_smallest_distance(name: str, kind: str) -> None:
    model, inputs, vision, kept = run(name, "divprune,r=0.6", ROWS[kind])
    hidden = embeddings(model, inputs).double()
    for row in range(len(vision)):
        places = vision[row].nonzero()[:, 0].tolist()
        far = {(a, b): 1 - cosine(hidden[row, a], hidden[row, b]) for a in places for b in places}
        chosen: list[int] = []
        while len(chosen) < half_up(len(places), "0.6"):
            left = [place for place in places if place not in chosen]
            rivals = {place: chosen or [other for other in places if other != place] for place in left}
            chosen.append(max(left, key=lambda place: min(far[place, other] for other in rivals[place])))
        assert kept[row].nonzero()[:, 0].tolist() == sorted(chosen)


def test_divprune_spreads_over_clusters() -> None:
    """Three bundles of directions: the first three choices are one of each."""
    directions = torch.eye(3).repeat_interleave(4, dim=0)
    features = directions + 0.01 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    assert {int(place) // 4 for place in most_diverse(features, 3)} == {0, 1, 2}
    assert sorted(most_diverse(features, 12).tolist()) == list(range(12))
    assert most_diverse(torch.ones(4, 3), 2).tolist() == [0, 1]  # all alike: in order


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_cdpruner_chooses_the_largest_determinant(name: str, kind: str) -> None:
    model, inputs, vision, kept = run(name, "cdpruner,r=0.6", ROWS[kind])
    hidden = embeddings(model, inputs).double()
    for row in range(len(vision)):
        places = vision[row].nonzero()[:, 0].tolist()
        if not places:
            continue
        text = range(places[-1] + 1, vision.shape[1])
        near = [sum(cosine(hidden[row, p], hidden[row, t]) for t in text) / len(text) for p in places]
        weight = [(value - min(near) + 1e-6) / (max(near) - min(near)) for value in near]
        kernel = torch.tensor(
            [
                [weight[i] * cosine(hidden[row, a], hidden[row, b]) * weight[j] for j, b in enumerate(places)]
                for i, a in enumerate(places)
            ],
            dtype=torch.float64,
        )
        chosen: list[int] = []
        while len(chosen) < half_up(len(places), "0.6"):
            left = [i for i in range(len(places)) if i not in chosen]
            chosen.append(max(left, key=lambda i: float(kernel[[*chosen, i]][:, [*chosen, i]].det())))
        assert kept[row].nonzero()[:, 0].tolist() == sorted(places[i] for i in chosen)


@pytest.mark.parametrize("name", MODELS)
def test_himap_asks_the_instruction_first_and_images_later(name: str) -> None:
    rows = ROWS["rows of different kinds"]
    _, _, vision, together = run(name, "himap,k1=1,r1=0.3,k2=2,r2=0.7", rows)
    for number, row in enumerate(rows[:2]):
        model, inputs, alone, kept = run(name, "himap,k1=1,r1=0.3,k2=2,r2=0.7", [row])
        places = alone[0].nonzero()[:, 0].tolist()
        text = range(places[-1] + 1, alone.shape[1])
        with torch.no_grad():
            weights = model(**inputs, output_attentions=True).attentions[0][0].mean(dim=0)
        total = {place: sum(float(weights[query, place]) for query in text) for place in places}
        stage = sorted(sorted(places, key=lambda place: -total[place])[: half_up(len(places), "0.3")])
        with parse_method("himap,k1=1,r1=0.3,k2=4,r2=0.7")(model) as trace, torch.no_grad():
            weights = model(**inputs, output_attentions=True).attentions[1][0].mean(dim=0)
        assert (trace.kept(1) & alone)[0].nonzero()[:, 0].tolist() == stage
        total = {place: sum(float(weights[query, place]) for query in stage) for place in stage}
        best = sorted(sorted(stage, key=lambda place: -total[place])[: half_up(len(places), "0.7")])
        assert kept[0].nonzero()[:, 0].tolist() == best
        assert together[number][vision[number]].tolist() == kept[0][alone[0]].tolist()


@pytest.mark.parametrize(("layers", "printed"), [(32, 24.6), (40, 22.2)])
def test_himap_costs_what_its_formula_says(layers: int, printed: float) -> None:
    """The published cost of vision tokens, 4nd^2 + 2n^2d + 2ndm per layer, for LLaVA-1.5-7B and 13B."""
    width, inner = {32: (4096, 11008), 40: (5120, 13824)}[layers]
    vision = dry_run(parse_method("himap"), layers, text=66, vision=576).vision[0].tolist()
    assert vision == [576] * 2 + [288] * 6 + [72] * (layers - 8)
    cost = [4 * n * width**2 + 2 * n**2 * width + 2 * n * width * inner for n in vision]
    assert round(100 * sum(cost) / (layers * cost[0]), 1) == printed


def layer_before(model: nn.Module, inputs: dict[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return keys of layer k-1 as its KV cache holds them, and states before layer k behind the last norm."""
    with torch.no_grad():
        output = model(**inputs, use_cache=True, output_hidden_states=True)
    states, norm = output.hidden_states[k], model.model.language_model.norm
    states = states / (states.pow(2).mean(dim=-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.detach()
    return output.past_key_values.layers[k - 1].keys, states


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("vision_pivots", "text_pivots"), [(1, 2), (4, 4)])
def test_dart_takes_what_is_least_like_its_pivots(name: str, kind: str, vision_pivots: int, text_pivots: int) -> None:
    rows, spec = ROWS[kind], f"dart,k=2,r=0.4,vision_pivots={vision_pivots},text_pivots={text_pivots}"
    model, inputs, vision, kept = run(name, spec, rows)
    keys, states = layer_before(model, inputs, 2)
    for row in range(len(vision)):
        places = vision[row].nonzero()[:, 0].tolist()
        if not places:
            continue
        text = list(range(places[-1] + 1, vision.shape[1]))

        def length(place: int, row: int = row) -> float:
            return sum(abs(float(x)) for head in keys[row] for x in head[place])

        left = half_up(len(places), "0.4")
        longest = sorted(places, key=lambda place: -length(place))[: min(vision_pivots, left)]
        chosen, pivots = list(longest), sorted(longest) + sorted(sorted(text, key=lambda p: -length(p))[:text_pivots])
        more, shares = left - len(chosen), []
        while len(shares) < len(pivots):  # as equal as can be, the larger ones first
            shares.append(math.ceil((more - sum(shares)) / (len(pivots) - len(shares))))
        for pivot, share in zip(pivots, shares, strict=True):
            free = [place for place in places if place not in chosen]
            chosen += sorted(free, key=lambda place: cosine(states[row, pivot], states[row, place]))[:share]
        assert kept[row].nonzero()[:, 0].tolist() == sorted(chosen)


@pytest.mark.parametrize(("tokens", "left"), [(64, 68), (128, 132), (192, 196), (570, 576), (0, 0)])
def test_dart_keeps_as_many_as_its_code(tokens: int, left: int) -> None:
    seen = dry_run(parse_method(f"dart,tokens={tokens}"), 4, text=66, vision=576).vision[0]
    assert seen.tolist() == [576, 576, left, left]
    assert str(parse_method("dart")) == "dart,k=2,tokens=128,vision_pivots=4,text_pivots=4"


def unrotated(model: nn.Module, inputs: dict[str, Tensor], layer: int, vision: list[int]) -> dict[int, float]:
    """Return what the last token would attend to among some tokens of a layer if it had no position, by hand."""
    seen: dict[str, Tensor] = {}
    attention = model.model.language_model.layers[layer].self_attn
    handles = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out[0]}))
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    width = attention.head_dim
    query, keys = seen["q_proj"][-1], seen["k_proj"]
    heads = len(query) // width
    total = dict.fromkeys(vision, 0.0)
    for head in range(heads):
        shared = head * (keys.shape[1] // width) // heads  # heads that share a key
        one, several = query[head * width :][:width], keys[:, shared * width :][:, :width]
        weights = {place: math.exp(float(one @ several[place]) / math.sqrt(width)) for place in vision}
        for place, weight in weights.items():
            total[place] += weight / sum(weights.values()) / heads
    return total


@pytest.mark.parametrize("union", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_feather_looks_without_positions_and_keeps_a_grid(name: str, union: bool) -> None:
    rows, spec = ROWS["rows of different kinds"], f"feather,k1=1,r1=0.6,r2=0.5,grid=3,union={union}"
    _, _, vision, together = run(name, f"{spec},k2=2", rows)
    for number, row in enumerate(rows[:2]):
        model, inputs, alone, kept = run(name, f"{spec},k2=2", [row])
        places = alone[0].nonzero()[:, 0].tolist()
        images = [[p for _, p in g] for _, g in itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
        grid = []
        for image in images:
            side = math.isqrt(len(image))
            square = {y * side + x for y in range(0, side, 3) for x in range(0, side, 3)}
            grid += [image[i] for i in (square if side**2 == len(image) else range(0, len(image), 9))]
        score = unrotated(model, inputs, 0, places)
        best = sorted(places, key=lambda place: -score[place])[: math.floor(len(places) * (1 - Fraction("0.6")))]
        if not union:
            rest = sorted(set(places) - set(grid), key=lambda place: -score[place])
            best = [*sorted(grid, key=lambda place: -score[place]), *rest][: len(best)]
        stage = sorted({*best, *(grid if union else ())})
        with parse_method(f"{spec},k2=4")(model) as trace:
            left = (trace_of(model, inputs, trace) & alone)[0].nonzero()[:, 0].tolist()
            assert left == stage
            slots = trace.kept(1)[0].nonzero()[:, 0].tolist()
            score = unrotated(model, inputs, 1, [slots.index(place) for place in stage])
        best = sorted(stage, key=lambda place: -score[slots.index(place)])[: len(stage) // 2]
        assert kept[0].nonzero()[:, 0].tolist() == sorted(best)
        assert together[number][vision[number]].tolist() == kept[0][alone[0]].tolist()


def trace_of(model: nn.Module, inputs: dict[str, Tensor], trace: Trace) -> Tensor:
    with torch.no_grad():
        model(**inputs)
    return trace.kept(1)


def test_feather_keeps_as_many_as_published() -> None:
    """172 of 576 and a grid of 64, which share about three of ten; then 9 of a hundred of these."""
    ids = torch.tensor([*[10] * 35, *[2] * 576, *[10] * 30])
    grid = on_grid((ids == 2)[None], 3)[0][35:611].reshape(24, 24)
    assert grid.sum() == 64 and torch.equal(grid[::3, ::3], torch.ones(8, 8, dtype=torch.bool))
    assert on_grid((torch.arange(12) > 1)[None], 3)[0].nonzero()[:, 0].tolist() == [2, 11]
    with pytest.raises(ValueError, match="union=false"):
        dry_run(parse_method("feather"), 32, text=66, vision=576)
    seen = dry_run(parse_method(f"feather,r1={1 - 217 / 576},union=false"), 32, text=66, vision=576).vision[0].tolist()
    assert seen == [576] * 8 + [217] * 8 + [19] * 16
    assert str(parse_method("feather")) == "feather,k1=8,r1=0.7,k2=16,r2=0.91,grid=3,union=True"


@pytest.mark.parametrize("name", MODELS)
def test_the_controls_look_at_places_only(name: str) -> None:
    for kind in ROWS.values():
        for spec in ("uniform,r=0.4", "first,r=0.4", "last,r=0.4"):
            _, _, vision, kept = run(name, spec, kind)
            for row in range(len(vision)):
                places = vision[row].nonzero()[:, 0].tolist()
                count = half_up(len(places), "0.4")
                middle = [places[math.floor((i + 0.5) * len(places) / count)] for i in range(count)]
                expected = {"u": middle, "f": places[:count], "l": places[len(places) - count :]}[spec[0]]
                assert kept[row].nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("tokens", [0, 1, 3, 1000])
@pytest.mark.parametrize("method", ["fastv,k=1", "random_vision,k=1", "first", "uniform"])
def test_a_number_of_tokens_is_that_of_each_image(method: str, tokens: int) -> None:
    """An image is an unbroken run of vision tokens; a row keeps the sum, never more than there are."""
    rows = [["t3", "i", "t4"], ["t2", "i", "t1", "i", "t5"], ["t6"]]
    for name in ("llava", "llava_next"):
        _, _, vision, kept = run(name, f"{method},tokens={tokens}", rows)
        for row in range(len(vision)):
            runs = [list(group) for is_image, group in itertools.groupby(vision[row].tolist()) if is_image]
            assert len(runs) == [1, 2, 0][row]
            assert int(kept[row].sum()) == sum(min(len(one), tokens) for one in runs)


def test_a_share_and_a_number_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"r=0\.5 or tokens=64, not both"):
        parse_method("fastv,r=0.5,tokens=64")
    with pytest.raises(ValueError, match="tokens=-1 is out of range"):
        parse_method("fastv,tokens=-1")
    assert str(parse_method("fastv")) == "fastv,k=2,r=0.5,seed=0"
    assert str(parse_method("fastv,tokens=64")) == "fastv,k=2,tokens=64,seed=0"
