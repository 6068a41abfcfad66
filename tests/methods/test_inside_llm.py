"""PACT, FitPrune and IVC-Prune, compared with naive formulations: one row, loops, no shared helpers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.support.families import make_inputs, make_model
from vtw_eval import Method
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.engine import LayerView, Reads, Trace
from vtw_eval.methods import parse_method
from vtw_eval.methods.fitprune import FitPrune
from vtw_eval.methods.ivc_prune import IVCPrune
from vtw_eval.methods.pact import PACT, clusters
from vtw_eval.verify.oracle import vision_positions

ROWS = {
    "one image": [["t3", "i", "t6"]],
    "rows of different kinds": [["t3", "i", "t4"], ["t2", "i", "t1", "i", "t5"], ["t6"]],
}
MODELS = ["llava", "llava_next", "qwen2_vl"]


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@dataclass
class Seen:
    """What the unchanged model computes at a layer and before it."""

    entering: Tensor
    query: Tensor
    """Unrotated, ``[rows, tokens, heads, head width]``."""
    key: Tensor
    """The same of keys."""
    rotated: Tensor
    """``[rows, key heads, tokens, head width]``."""
    values: Tensor
    """Of the layer before."""
    angles: tuple[Tensor, Tensor]


@torch.no_grad()
def look(model: nn.Module, inputs: dict[str, Tensor], k: int) -> Seen:
    anatomy = find_anatomy(model)
    layer: Any = anatomy.layers[k]
    seen: dict[str, Tensor] = {}
    rotary: list[Any] = []
    handles = [
        getattr(layer.self_attn, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in ("q_proj", "k_proj")
    ]
    handles.append(anatomy.rotary.register_forward_hook(lambda _, __, out: rotary.append(out)))
    output = model(**inputs, use_cache=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    width = layer.self_attn.head_dim
    query, key = (seen[name].unflatten(-1, (-1, width)) for name in ("q_proj", "k_proj"))
    cache = output.past_key_values.layers
    return Seen(output.hidden_states[k], query, key, cache[k].keys, cache[k - 1].values, rotary[0])


def sizes(trace: Trace, layer: int) -> Tensor:
    """Return for how many tokens each token of the prompt stands, ``[rows, tokens]``."""
    layout = trace.reduction.layouts[layer]  # type: ignore[union-attr]
    found = torch.zeros_like(trace.kept(layer), dtype=torch.float32)
    if layout is None or layout.size is None:
        return trace.kept(layer).float()
    return found.scatter(1, layout.index, layout.size * layout.valid)


def naive_pact(
    seen: Seen, row: int, places: list[int], before: list[int], left: int, cutoff: float
) -> dict[int, list[int]]:
    """Return the members of each cluster by its centre."""
    heads, width = seen.query.shape[2:]
    group = heads // seen.key.shape[2]
    score = dict.fromkeys(places, 0.0)
    for head in range(heads):
        mean = sum(seen.query[row, place, head] for place in before) / len(before)
        logits = {place: float(mean @ seen.key[row, place, head // group]) / math.sqrt(width) for place in places}
        total = sum(math.exp(value) for value in logits.values())
        for place, value in logits.items():
            score[place] += math.exp(value) / total / heads
    matters = {place: score[place] * float(seen.entering[row, place].norm()) for place in places}
    stay = sorted(sorted(places, key=lambda place: -matters[place])[:left])
    flat = {place: torch.cat([head[place] for head in seen.rotated[row]]) for place in places}
    apart = {(a, b): 1 - cosine(flat[a], flat[b]) for a in places for b in places}
    density = {place: sum(math.exp(-((apart[place, other] / 2) ** 2)) for other in stay) for place in stay}
    made: dict[int, list[int]] = {}
    for place in sorted(stay, key=lambda place: -density[place]):
        if all(apart[place, centre] > cutoff for centre in made):
            made[place] = [place]
    for place in places:
        if place not in made:
            nearest = min(made, key=lambda centre: apart[place, centre])
            if place in stay or apart[place, nearest] <= 1.5 * cutoff:
                made[nearest].append(place)
    return made


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("cutoff", "r"), [(0.6, 0.3), (0.9, 0.5), (2.0, 0.0), (0.0, 0.25)])
@torch.no_grad()
def test_pact_merges_what_is_near_the_densest(name: str, kind: str, cutoff: float, r: float) -> None:
    rows, k = ROWS[kind], 2
    model = make_model(name, attn="eager" if len(rows) == 1 else "sdpa")
    inputs = make_inputs(name, model, rows)
    seen = look(model, inputs, k)
    vision = vision_positions(model, inputs["input_ids"]) & inputs["attention_mask"].bool()
    entered: list[Tensor] = []
    with PACT(k1=k, r=r, cutoff=cutoff)(model) as trace:
        handle = find_anatomy(model).layers[k].register_forward_hook(lambda _, args, __: entered.append(args[0]))
        model(**inputs)
        handle.remove()
    layout = trace.reduction.layouts[k]
    assert layout is not None
    states = torch.zeros_like(seen.entering)
    for row in range(len(rows)):
        states[row, layout.index[row]] = entered[0][row]
    for row in range(len(rows)):
        places = vision[row].nonzero()[:, 0].tolist()
        if not places:
            assert torch.equal(trace.kept(k)[row], inputs["attention_mask"][row].bool())
            continue
        before = [p for p in range(places[-1] + 1) if inputs["attention_mask"][row, p]]
        left = math.floor(len(places) * (1 - r) + 1e-9)
        made = naive_pact(seen, row, places, before, left, cutoff)
        assert (trace.kept(k)[row] & vision[row]).nonzero()[:, 0].tolist() == sorted(made)
        for centre, members in made.items():
            assert int(sizes(trace, k)[row, centre]) == len(members)
            mean = sum(seen.entering[row, member] for member in members) / len(members)
            torch.testing.assert_close(states[row, centre], mean)
        if cutoff in (0.0, 2.0):
            assert len(made) == (1 if cutoff else left)
        text = trace.kept(k)[row] & ~vision[row]
        torch.testing.assert_close(states[row, text], seen.entering[row, text])
        assert sizes(trace, k)[row, text].eq(1).all()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])  # llava_next has too many pairs of tokens for the loop
@torch.no_grad()
def test_pact_of_a_known_number_has_the_least_cutoff_that_leaves_no_more(name: str) -> None:
    model = make_model(name, attn="eager")
    inputs = make_inputs(name, model, [["t3", "i", "i", "t4"]])
    seen = look(model, inputs, 1)
    vision = vision_positions(model, inputs["input_ids"])
    places = vision[0].nonzero()[:, 0].tolist()
    staying = math.floor(len(places) * 0.8 + 1e-9)
    flat = {place: torch.cat([head[place] for head in seen.rotated[0]]) for place in places}
    cutoffs = sorted(1 - cosine(flat[a], flat[b]) + 1e-9 for a in places for b in places)
    before = list(range(places[-1] + 1))
    centres = [set(naive_pact(seen, 0, places, before, staying, cutoff)) for cutoff in (0.0, *cutoffs)]
    for merged in (0.0, 0.25, 0.5, 0.8):
        with PACT(k1=1, r=0.2, merged=merged)(model) as trace:
            model(**inputs)
        kept = set((trace.kept(1) & vision)[0].nonzero()[:, 0].tolist())
        count = math.floor(staying * (1 - merged) + 1e-9)
        assert len(kept) == count
        fitting = [each for each in centres if len(each) <= count]
        assert fitting and any(each <= kept for each in fitting)
        assert max(map(len, fitting)) <= count


def test_clusters_of_equal_tokens_have_the_first_as_centre() -> None:
    keys = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor([4, 3, 2]), dim=0)
    assert clusters(keys, torch.arange(9), 0.5, None).tolist() == [0, 0, 0, 0, 4, 4, 4, 7, 7]
    assert clusters(keys, torch.arange(7), 0.5, None).tolist() == [0, 0, 0, 0, 4, 4, 4, -1, -1]
    assert clusters(keys, torch.tensor([1, 2, 5, 8]), 0.5, None).tolist() == [1, 1, 1, 1, 5, 5, 5, 8, 8]
    assert clusters(keys, torch.tensor([1, 5]), 0.7, None).tolist() == [1, 1, 1, 1, 5, 5, 5, 1, 1]  # within 1.05
    assert clusters(keys, torch.arange(9), 1.0, None).tolist() == [0] * 9
    assert clusters(keys, torch.arange(9), None, 3).tolist() == [0, 0, 0, 0, 4, 4, 4, 7, 7]
    assert clusters(keys, torch.arange(9), None, 2).tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]  # one cluster and the next
    assert clusters(keys, torch.arange(9), None, 9).tolist() == list(range(9))


def test_pact_is_the_unchanged_model_where_all_may_stay() -> None:
    for spec, last in (("r=0,merged=0", 9), ("r=1,merged=0", 0), ("r=0,merged=1", 0), ("r=0.5,merged=0.5", 2)):
        seen = dry_run(parse_method(f"pact,{spec}"), 6, text=5, vision=9).vision[0].tolist()
        assert seen == [9] * 4 + [last] * 2
    with pytest.raises(ValueError, match=r"merged=0\.5 in place of cutoff"):
        dry_run(PACT(), 6, text=5, vision=9)
    for wrong, what in (
        ({"cutoff": 0.1, "merged": 0.1}, "not both"),
        ({"cutoff": 3.0}, r"0\.\.2"),
        ({"merged": -1.0}, "merged=-1"),
    ):
        with pytest.raises(ValueError, match=what):
            PACT(**wrong)


@torch.no_grad()
def naive_fitprune(model: nn.Module, inputs: dict[str, Tensor], left: Sequence[int]) -> list[list[int]]:
    """Return which places enter each layer of a model of four, of one row, token after token."""
    anatomy = find_anatomy(model)
    entered: dict[str, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = anatomy.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs)
    handle.remove()
    vision = vision_positions(model, inputs["input_ids"])[0].tolist()
    behind = len(vision) - 1 - vision[::-1].index(True)
    total, hidden, alive, layers = sum(vision), entered["hidden"], list(range(len(vision))), []
    for layer, count in zip(anatomy.layers, left, strict=True):
        layers.append(list(alive))
        mask = torch.full((len(alive), len(alive)), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
        angles = tuple(table[:, alive] for table in entered["position_embeddings"])
        seen: list[Tensor] = []
        handle = layer.self_attn.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[1][0]))
        hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
        handle.remove()
        hidden, weights = hidden[0] if isinstance(hidden, tuple) else hidden, seen[0]
        score = {}
        for n, place in enumerate(alive):
            if vision[place]:
                sums = {"text": 0.0, "vision": 0.0}
                for q, query in enumerate(alive):
                    if query > behind or vision[query]:
                        sums["vision" if vision[query] else "text"] += max(float(head[q, n]) for head in weights)
                score[n] = sums["text"] * sums["vision"]
        best = sorted(score, key=lambda n: -score[n])[: math.floor(total * count / 576 + 0.5)]
        stays = [n for n, place in enumerate(alive) if not vision[place] or n in best]
        alive, hidden = [alive[n] for n in stays], hidden[:, stays]
    return layers


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_fitprune_equals_a_loop_over_tokens(name: str) -> None:
    model, eager = make_model(name, attn="sdpa"), make_model(name, attn="eager")
    rows = [["t3", "i", "t4"], ["t2", "i", "t1", *"iii", "t5"]]
    with FitPrune()(model) as trace:
        model.generate(**make_inputs(name, model, [*rows, ["t6"]]), max_new_tokens=1, do_sample=False)
    together = [trace.kept(layer) for layer in range(4)]
    for number, row in enumerate(rows):
        inputs = make_inputs(name, eager, [row])
        expected = naive_fitprune(eager, inputs, (272, 220, 129, 127))
        width = inputs["input_ids"].shape[1]
        assert [kept[number, -width:].nonzero()[:, 0].tolist() for kept in together] == expected


def test_fitprune_costs_what_its_table_says() -> None:
    """59.7 % less by the repository's formula, in which deleted tokens skip the layer's output projection and FFN."""
    seen = [int(n) for n in dry_run(FitPrune(), 32, text=66, vision=576).vision[0].tolist()]
    deleted = [14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1]
    assert seen == [576 - sum(deleted[:layer]) for layer in range(32)]
    d, m, left = 4096, 11008, [*seen[1:], 127]
    cost = sum(3 * n * d * d + 2 * n * n * d + after * (d * d + 3 * d * m) for n, after in zip(seen, left, strict=True))
    assert round(100 * (1 - cost / (32 * (4 * 576 * d * d + 2 * 576**2 * d + 3 * 576 * d * m))), 1) == 59.7


def test_fitprune_at_other_strengths_and_depths() -> None:
    assert dry_run(FitPrune(r=0.0), 32, text=66, vision=576).vision[0].tolist() == [576] * 32
    assert dry_run(FitPrune(r=1.0), 4, text=66, vision=9).vision[0].tolist() == [9, 0, 0, 0]
    by_default, same = FitPrune().shares(32), FitPrune(r=1 - 127 / 576).shares(32)
    assert same == pytest.approx(by_default)
    assert FitPrune().shares(16) == by_default[::2]
    assert FitPrune().shares(64)[::2] == by_default
    with pytest.raises(ValueError, match="r=2"):
        FitPrune(r=2.0)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("union", [True, False])
@torch.no_grad()
def test_ivc_prune_keeps_coordinates_seeds_and_foreground(name: str, kind: str, union: bool) -> None:
    rows = ROWS[kind]
    model = make_model(name, attn="eager" if len(rows) == 1 else "sdpa")
    inputs = make_inputs(name, model, rows)
    seen = look(model, inputs, 2)
    given = inputs["attention_mask"].bool()
    vision = vision_positions(model, inputs["input_ids"]) & given
    for r, coordinates in ((0.6, 0.2), (0.9, 0.3), (0.1, 0.0)):
        with IVCPrune(k1=2, r=r, coordinates=coordinates, union=union)(model) as trace:
            model(**inputs)
        for row in range(len(rows)):
            places = vision[row].nonzero()[:, 0].tolist()
            if not places:
                continue
            prompt = given[row].nonzero()[:, 0].tolist()
            text = [place for place in prompt if place > places[-1]]

            def weight(query: int, place: int, row: int = row, prompt: list[int] = prompt) -> float:
                total = 0.0
                for head in seen.values[row]:
                    logits = {p: float(head[query] @ head[p]) / math.sqrt(head.shape[-1]) for p in prompt}
                    total += math.exp(logits[place]) / sum(math.exp(value) for value in logits.values())
                return total / len(seen.values[row])

            asking = {query: {place: weight(query, place) for place in places} for query in text[2:]}
            seeds = sorted(places, key=lambda place: -sum(by[place] for by in asking.values()))[:1]
            asking |= {seed: {place: weight(seed, place) for place in places} for seed in seeds}
            score = {place: sum(by[place] for by in asking.values()) / len(asking) for place in places}
            first = set(seeds)
            for table in seen.angles:
                of_row = table.expand(len(rows), -1, -1)[row]
                mean = {place: float(of_row[place].mean()) for place in places}
                first |= set(sorted(places, key=lambda place: -mean[place])[: math.floor(len(places) * coordinates)])
            count = math.floor(len(places) * (1 - r) + 1e-9)
            if union:
                stays = first | set(sorted(places, key=lambda place: -score[place])[:count])
            else:
                stays = set(sorted(places, key=lambda place: (place not in first, -score[place]))[:count])
            assert (trace.kept(2) & vision)[row].nonzero()[:, 0].tolist() == sorted(stays)


def test_ivc_prune_numbers() -> None:
    """The published half of Qwen; degenerate cases; nothing known of a union."""
    seen = dry_run(IVCPrune(k1=2, r=0.5, coordinates=0.1, union=False), 4, text=20, vision=301).vision[0].tolist()
    assert seen == [301, 301, 150, 150]
    for r, last in ((0.0, 9), (1.0, 0)):
        assert dry_run(IVCPrune(k1=1, r=r, union=False), 4, text=5, vision=9).vision[0].tolist() == [9] + [last] * 3
    with pytest.raises(ValueError, match="union=false keeps"):
        dry_run(IVCPrune(), 20, text=20, vision=40)
    for wrong, what in (({"k1": 0}, "k1=0"), ({"coordinates": 2.0}, r"coordinates=2.*0\.\.1"), ({"r": -1.0}, "r=-1")):
        with pytest.raises(ValueError, match=what):
            IVCPrune(**wrong)


@dataclass(frozen=True, kw_only=True)
class AtFirst(Method):
    """Keep everything, and note what is read before the first layer."""

    key: ClassVar[str] = "at_first"
    reads = Reads.MEAN_QUERY | Reads.ROTATED_KEYS | Reads.ROTATION
    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def layers(self, num_layers: int) -> Sequence[int]:
        return (0,)

    def keep(self, view: LayerView) -> Tensor:
        last = torch.zeros_like(view.valid)
        last[:, -1] = True
        row, of_all = (view.mean_query_attention(queries, view.vision) for queries in (last, view.valid))
        self.seen.append((row, of_all, view.rotated_keys(), *view.rotation))
        return view.valid


@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_vl", "qwen3_vl", "glm4v", "aya_vision", "paligemma"])
@torch.no_grad()
def test_readings_of_the_layer_about_to_run(name: str) -> None:
    """A mean query of one token is its attention at one place; of all it is another. Keys are those of the cache."""
    model = make_model(name, attn="eager")
    inputs = make_inputs(name, model, [["t3", "i", "t2", "i", "t4"]])
    vision = vision_positions(model, inputs["input_ids"])
    method, rotary = AtFirst(), []
    handle = (
        find_anatomy(model)
        .layers[0]
        .register_forward_pre_hook(lambda _, __, kwargs: rotary.append(kwargs["position_embeddings"]), with_kwargs=True)
    )
    with method(model):
        output = model(**inputs, use_cache=True)
    ((row, of_all, keys, cos, sin),) = method.seen
    handle.remove()
    axes = (3,) if "mrope_section" in str(model.config) else ()
    still = torch.zeros(*axes, *vision.shape, dtype=torch.long)
    weights = model(**inputs, position_ids=still, output_attentions=True).attentions[0][:, :, -1] * vision
    expected = (weights / weights.sum(dim=-1, keepdim=True)).mean(dim=1)
    torch.testing.assert_close(row, expected.to(row), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(of_all.sum(dim=-1), torch.ones_like(of_all[:, 0]))
    assert (of_all - row).abs().max() > 1e-5
    held = output.past_key_values.layers[0].keys
    torch.testing.assert_close(keys.transpose(1, 2)[:, :, -held.shape[2] :], held)
    torch.testing.assert_close((cos, sin), tuple(table.expand_as(cos) for table in rotary[0]))
