"""Methods that choose image by image before the first layer, against naive formulations: one image, loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.families import _spread_weights, make_inputs, make_model
from vtw_eval import Method, Reads
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.engine import LayerView, Trace
from vtw_eval.methods import parse_method
from vtw_eval.verify.oracle import vision_positions

ROWS = [["t3", "i", "t4"], ["t2", "I", "t1", "i", "t5"], ["t6"]]
MODELS = ["large", "llava", "llava_next", "qwen2_vl", "internvl"]
SIDE, DEPTH = 6, 6
"""Of the grid, and of the tower, of "large": a LLaVA with more than four tokens an image."""


@functools.cache
def model_of(name: str) -> Any:
    if name != "large":
        return make_model(name, attn="sdpa")
    config = AutoConfig.for_model(
        "llava",
        text_config={
            "model_type": "llama",
            "vocab_size": 120,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 2,
            "image_size": SIDE * 4,
            "patch_size": 4,
        },
        image_token_index=100,
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float64, attn_implementation="sdpa")
    _spread_weights(model, 3)
    return model.eval()


def inputs_of(name: str, rows: Sequence[Sequence[str]] = ROWS) -> dict[str, Tensor]:
    model = model_of(name)
    return make_inputs("llava" if name == "large" else name, model, rows)


@dataclass
class Shown:
    """One image as the paper's code sees it: numbers of each of its patches, and where they stand in the prompt."""

    places: list[int]
    """All its vision tokens, newlines too."""
    patches: list[int]
    """Those of patches."""
    cls: dict[int, list[float]]
    """Attention of the CLS token by layer; where there is none, that of all tokens."""
    column: dict[int, list[float]]
    """Attention of all tokens by layer."""
    joined: list[float]
    features: list[Tensor]
    key: list[Tensor]
    """Of the last layer but one, mean over heads."""
    wide_key: list[Tensor]
    """Of the last layer."""
    grid: list[tuple[int, int, int]]
    """Tile, row and column."""
    extent: list[tuple[int, int]]
    entering: list[Tensor] = field(default_factory=list)
    words: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.patches)


@dataclass(frozen=True, kw_only=True)
class Peek(Method):
    """Keep everything, and note what the tower did."""

    key: ClassVar[str] = "peek"
    reads = Reads.TOWER
    seen: dict[str, Any] = field(default_factory=dict)

    def layers(self, num_layers: int) -> Sequence[int]:
        return (0,)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        return range(num_layers)

    def keep(self, view: LayerView) -> Tensor:
        tower = view.tower
        layers = range(tower.num_layers)
        self.seen.update(
            depth=tower.num_layers,
            cls={i: tower.received(i) for i in layers},
            column={i: tower.received(i, by="column") for i in layers},
            joined=tower.received(-1, heads="joined"),
            features=tower.features(-2),
            key=tower.keys(-2),
            wide_key=tower.keys(-1, heads="each").flatten(-2),
            places=tower.places,
            extent=tower.extent,
        )
        return view.valid


@functools.cache
def shown(name: str) -> tuple[list[list[Shown]], Tensor, Tensor]:
    """Return the images of each row of ``ROWS``, what enters the decoder, and which tokens are vision tokens."""
    model, inputs = model_of(name), inputs_of(name)
    peek = Peek()
    with torch.no_grad(), peek(model):
        entering = model(**inputs, output_hidden_states=True).hidden_states[0]
        features = model.model.get_image_features(
            **{k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")},
            return_dict=True,
        ).pooler_output
    valid = inputs["attention_mask"].bool()
    vision = vision_positions(model, inputs["input_ids"]) & valid
    lengths = [len(part) for part in features]
    if name == "internvl":  # three tiles of the large image
        lengths = [lengths[0], sum(lengths[1:4]), lengths[4]]
    seen, rows, newline = peek.seen, [], getattr(model.model, "image_newline", None)
    assert sum(lengths) == int(vision.sum())
    sizes = iter(lengths)
    for row, segments in enumerate(ROWS):
        tokens, images = vision[row].nonzero()[:, 0].tolist(), []
        for _ in range(sum(segment in "iI" for segment in segments)):
            size = next(sizes)
            own, tokens = tokens[:size], tokens[size:]
            patches = [p for p in own if newline is None or not torch.allclose(entering[row, p], newline.detach())]

            def numbers(tensor: Tensor, row: int = row, patches: list[int] = patches) -> list[float]:
                return [float(tensor[row, place]) for place in patches]

            def vectors(tensor: Tensor, row: int = row, patches: list[int] = patches) -> list[Tensor]:
                return [tensor[row, place] for place in patches]

            last = int(vision[row].nonzero()[-1])
            images.append(
                Shown(
                    own,
                    patches,
                    {i: numbers(tensor) for i, tensor in seen["cls"].items()},
                    {i: numbers(tensor) for i, tensor in seen["column"].items()},
                    numbers(seen["joined"]),
                    *(vectors(seen[what]) for what in ("features", "key", "wide_key")),
                    [tuple(seen["places"][row, place, 2:].tolist()) for place in patches],
                    [tuple(seen["extent"][row, place].tolist()) for place in patches],
                    vectors(entering),
                    list(entering[row, last + 1 :]),
                )
            )
        assert not tokens
        rows.append(images)
    return rows, entering, vision


Answer = tuple[list[int], list[Tensor] | None]
"""Numbers of patches that stay, and what they are in the order in which they enter the decoder, if they change."""


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def best(values: Sequence[float], count: int, among: Sequence[int] | None = None) -> list[int]:
    return sorted(range(len(values)) if among is None else among, key=lambda i: (-values[i], i))[:count]


def fastervlm(image: Shown, count: int) -> Answer:
    return best(image.cls[max(image.cls) - 1], count), None


def vtc_cls(image: Shown, count: int) -> Answer:
    """From the middle to the last but one."""
    last = max(image.cls) - 1
    layers = range(min((last + 2) // 2, last), last + 1)
    return best([sum(image.cls[layer][i] for layer in layers) for i in range(len(image))], count), None


def fopru(image: Shown, count: int) -> Answer:
    return best(image.column[max(image.cls) - 1], count), None


def fopru_rows(image: Shown, count: int) -> Answer:
    lines = sorted({place[:2] for place in image.grid})
    score = image.column[max(image.cls) - 1]
    sums = [sum(score[i] for i, place in enumerate(image.grid) if place[:2] == line) for line in lines]
    chosen = [lines[i] for i in best(sums, count * len(lines) // len(image))]
    return [i for i, place in enumerate(image.grid) if place[:2] in chosen], None


def vispruner(image: Shown, count: int) -> Answer:
    score = image.cls[max(image.cls) - 1]
    order = best(score, len(image))
    important, left = order[: count // 2], order[count // 2 :]
    wanted = count - count // 2
    while len(left) > wanted:
        even, odd = left[::2], left[1::2]
        alike = {a: max(cosine(image.features[a], image.features[b]) for b in odd) for a in even}
        falling = sorted(even, key=lambda a: -alike[a])
        left = falling[min(8, len(left) - wanted) :] + odd
    return [*important, *left[:wanted]], None


def scope(image: Shown, count: int) -> Answer:
    score, n = image.cls[max(image.cls) - 1], len(image)
    alike = [[cosine(a, b) for b in image.features] for a in image.features]
    chosen: list[int] = []
    while len(chosen) < count:
        covered = [max((alike[i][j] for j in chosen), default=0.0) for i in range(n)]
        covered = [max(c, 0.0) for c in covered]
        gain = [score[j] * sum(max(0.0, alike[i][j] - covered[i]) for i in range(n)) for j in range(n)]
        chosen += best(gain, 1, [j for j in range(n) if j not in chosen])
    return chosen, None


def hiprune(image: Shown, count: int, alpha: float = 1.0) -> Answer:
    middle, late = image.column[(max(image.cls) + 1) // 3], image.column[max(image.cls) - 1]
    kept: set[int] = set()
    for anchor in best(middle, min(int(alpha * count / 5 + 0.5), count // 5)):
        tile = [i for i in range(len(image)) if image.grid[i][0] == image.grid[anchor][0]]
        at, width = tile.index(anchor), image.extent[anchor][1]
        kept |= {tile[min(max(at + step, 0), len(tile) - 1)] for step in (0, -1, 1, -width, width)}
    rest = [i for i in range(len(image)) if i not in kept]
    return [*kept, *best(late, count - len(kept), rest)], None


def stretches(n: int, parts: int) -> list[list[int]]:
    parts = min(parts, n)
    sizes = [n // parts + (part < n % parts) for part in range(parts)]
    return [list(range(sum(sizes[:part]), sum(sizes[: part + 1]))) for part in range(parts)]


def holov(image: Shown, count: int, *, redistribute: bool = False) -> Answer:
    score = image.cls[max(image.cls) - 1]
    parts = stretches(len(image), 4)
    mass = [sum(score[i] for i in part) / len(part) for part in parts]
    shares = [int(count * m / sum(mass)) for m in mass]
    for part in itertools.islice(itertools.cycle(best(mass, len(parts))), count - sum(shares)):
        shares[part] += 1
    if redistribute:
        excess = sum(max(share - len(part), 0) for share, part in zip(shares, parts, strict=True))
        order = best(shares, len(parts))
        shares = [min(share, len(part)) for share, part in zip(shares, parts, strict=True)]
        while excess:
            for part in order:
                if excess and shares[part] < len(parts[part]):
                    shares[part], excess = shares[part] + 1, excess - 1
    states, kept = [], []
    for share, part in zip(shares, parts, strict=True):
        here = best(score, share, part)
        kept += here
        states += [image.entering[i] for i in here] + [torch.zeros_like(image.entering[0])] * (share - len(here))
    return kept, states


def mmtok(image: Shown, count: int) -> Answer:
    rows = []
    for word in image.words:
        row = [math.exp(cosine(word, state) / 0.02) for state in image.entering]
        rows.append([value / sum(row) / len(image.words) for value in row])
    for one in image.features:
        row = [math.exp(cosine(one, other) / 0.2) for other in image.features]
        rows.append([0.5 * value / sum(row) / len(image) for value in row])
    chosen: list[int] = []
    while len(chosen) < count:
        covered = [max((row[j] for j in chosen), default=0.0) for row in rows]
        gain = [sum(max(row[j] - c, 0.0) for row, c in zip(rows, covered, strict=True)) for j in range(len(image))]
        chosen += best(gain, 1, [j for j in range(len(image)) if j not in chosen])
    return chosen, None


def quartile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the values around it."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def standing_out(values: Sequence[float]) -> int:
    first, third = quartile(values, 0.25), quartile(values, 0.75)
    return max(sum(value > third + 1.5 * (third - first) for value in values), 1)


def trim(image: Shown, count: int) -> Answer:
    alike = [sum(cosine(state, word) for word in image.words) / len(image.words) for state in image.entering]
    score = [math.exp(value) for value in alike]
    score = [value / sum(score) for value in score]
    kept = sorted(best(score, count - 1 if count else standing_out(score)))
    gone = [i for i in range(len(image)) if i not in kept]
    mean = sum(image.entering[i] for i in gone) / len(gone)
    return [*kept, gone[-1]], [*(image.entering[i] for i in kept), mean]


def visionzip(image: Shown, count: int, space: list[Tensor], enter: Callable[[Tensor], Tensor]) -> Answer:
    score = image.cls[max(image.cls) - 1]
    contextual = math.floor(count * 0.4 + 0.5)
    dominant = sorted(best(score, count - contextual))
    rest = [i for i in range(len(image)) if i not in dominant]
    if not contextual:
        return dominant, None
    targets = [rest[t * (len(rest) // contextual)] for t in range(contextual)]
    sources: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if i not in targets:
            sources[max(targets, key=lambda t: cosine(image.key[i], image.key[t]))].append(i)
    made = [
        space[target] + sum((space[i] for i in members), torch.zeros_like(space[0])) / max(len(members), 1)
        for target, members in sources.items()
    ]
    return [*dominant, *targets], [*(image.entering[i] for i in dominant), *map(enter, made)]


def prumerge(
    image: Shown, count: int, space: list[Tensor], enter: Callable[[Tensor], Tensor], *, plus: bool = False
) -> Answer:
    score, n = image.joined, len(image)
    kept = best(score, count - 1 if count else standing_out(score))
    if plus:
        step = max(int(int(1 / (len(kept) / n)) / 3), 1)
        kept = kept + [i for i in range(0, n - 1, step) if i not in kept]
    made = []
    for i in kept:
        others = [j for j in range(n) if j != i]
        near = sorted(others, key=lambda j: -cosine(image.wide_key[i], image.wide_key[j]))[:32]
        made.append(space[i] + sum(score[j] * space[j] for j in near))
    gone = best(score, n, [i for i in range(n) if i not in kept])
    if gone:
        made.append(sum(score[j] * space[j] for j in gone))
    return kept + gone[:1], list(map(enter, made))


def vscan(image: Shown, count: int) -> Answer:
    depth = max(image.cls) + 1
    early, late = image.cls[depth * 5 // 24], image.cls[depth - 2]
    windows: dict[tuple[int, int, int], list[int]] = {}
    for i, ((tile, row, column), (rows, columns)) in enumerate(zip(image.grid, image.extent, strict=True)):
        windows.setdefault((tile, row * 4 // rows, column * 4 // columns), []).append(i)
    each = int(count / 2) // len(windows)
    local = [i for window in windows.values() for i in best(early, each, window)]
    kept = sorted(local + best(late, count - len(local), [i for i in range(len(image)) if i not in local]))
    into: dict[int, list[int]] = {i: [] for i in kept}
    for i in range(len(image)):
        if i not in kept:
            into[max(kept, key=lambda j: cosine(image.entering[i], image.entering[j]))].append(i)
    states = [
        sum((image.entering[j] for j in members), image.entering[i]) / (1 + len(members)) for i, members in into.items()
    ]
    return kept, states


NAIVE: dict[str, Callable[[Shown, int], Answer]] = {
    "fastervlm": fastervlm,
    "vtc_cls": vtc_cls,
    "fopru": fopru,
    "fopru,strategy=row": fopru_rows,
    "vispruner": vispruner,
    "scope": scope,
    "hiprune,alpha=1": hiprune,
    "holov,stretches=4": holov,
    "holov,stretches=4,redistribute=true": functools.partial(holov, redistribute=True),
    "mmtok": mmtok,
    "trim": trim,
    "vscan,r2=0": vscan,
    "visionzip,contextual=0.4,space=decoder": lambda image, count: visionzip(
        image, count, image.entering, lambda state: state
    ),
    "prumerge,space=decoder": lambda image, count: prumerge(image, count, image.entering, lambda state: state),
}
DECIDES = {
    "trim": trim,
    "prumerge,space=decoder": NAIVE["prumerge,space=decoder"],
    "prumerge,plus=true,space=decoder": lambda image, count: prumerge(
        image, count, image.entering, lambda state: state, plus=True
    ),
}


def entering_first(name: str, spec: str, rows: Sequence[Sequence[str]] = ROWS) -> tuple[Trace, Tensor, Tensor]:
    """Return the trace, what enters the first layer, and which of its slots are no padding."""
    model, inputs = model_of(name), inputs_of(name, rows)
    seen: list[Tensor] = []
    with torch.no_grad(), parse_method(spec)(model) as trace:
        handle = find_anatomy(model).layers[0].register_forward_hook(lambda module, args, out: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    kept = trace.kept(0).sum(dim=1, keepdim=True)
    return trace, seen[0], torch.arange(seen[0].shape[1]) >= seen[0].shape[1] - kept


def check(name: str, spec: str, naive: Callable[[Shown, int], Answer], removed: float | None) -> None:
    rows, entering, vision = shown(name)
    valid = inputs_of(name)["attention_mask"].bool()
    trace, states, there = entering_first(name, spec)
    axes = name == "qwen2_vl"
    for row, images in enumerate(rows):
        at: dict[int, Tensor] = {p: entering[row, p] for p in (valid[row] & ~vision[row]).nonzero()[:, 0].tolist()}
        for image in images:
            assert len(image) == len(image.places) or name == "llava_next"
            if spec.startswith("trim"):  # which looks at no tower: a newline is a token
                image = replace(image, patches=image.places, entering=[entering[row, p] for p in image.places])
            count = 0 if removed is None else math.floor(len(image.places) * (1 - removed) + 0.5)
            kept, new = naive(image, min(count, len(image)))
            assert len(set(kept)) == len(kept)
            if new is None:
                kept = sorted(kept)
                new = [image.entering[i] for i in kept]
            elif axes and len(new) > len(kept):  # at whose places zeros stand does not matter
                new = [state for state in new if state.any()]
            elif len(new) > len(kept):
                kept = [*kept, *(i for i in range(len(image)) if i not in kept)][: len(new)]
            places = [image.patches[i] for i in kept]
            places = places if axes else sorted(places)
            at |= dict(zip(places, new, strict=True))
        found = states[row, there[row]]
        found = found[found.any(dim=1)] if axes else found
        torch.testing.assert_close(found, torch.stack([at[p] for p in sorted(at)]), atol=1e-9, rtol=0)
        if "holov" not in spec:
            assert trace.kept(0)[row].nonzero()[:, 0].tolist() == sorted(at)


@pytest.mark.parametrize("removed", [0.4, 0.75])
@pytest.mark.parametrize("spec", NAIVE)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_and_merged_is_what_loops_keep_and_merge(name: str, spec: str, removed: float) -> None:
    check(name, f"{spec},r={removed}", NAIVE[spec], removed)


@pytest.mark.parametrize("spec", DECIDES)
@pytest.mark.parametrize("name", MODELS)
def test_outliers_decide_how_many_stay(name: str, spec: str) -> None:
    check(name, spec, DECIDES[spec], None)


@pytest.mark.parametrize("spec", ["visionzip,r=0.5,contextual=0.4", "prumerge", "prumerge,plus=true", "prumerge,r=0.6"])
@pytest.mark.parametrize("name", ["large", "llava", "llava_next"])
def test_features_are_merged_before_the_projector(name: str, spec: str) -> None:
    projector = model_of(name).model.multi_modal_projector

    def enter(state: Tensor) -> Tensor:
        with torch.no_grad():
            return projector.linear_2(projector.act(projector.linear_1(state)))

    def naive(image: Shown, count: int) -> Answer:
        if spec.startswith("visionzip"):
            return visionzip(image, count, image.features, enter)
        return prumerge(image, count, image.features, enter, plus="plus" in spec)

    removed = {"visionzip,r=0.5,contextual=0.4": 0.5, "prumerge,r=0.6": 0.6}.get(spec)
    check(name, spec, naive, removed)


@pytest.mark.parametrize(
    ("name", "what"),
    [("qwen2_vl", "others"), ("internvl", "layer -1"), ("llava_onevision", "layer -1"), ("gemma3", "others")],
)
@pytest.mark.parametrize("key", ["visionzip", "prumerge"])
def test_merging_before_the_projector_is_refused_where_it_takes_something_else(key: str, name: str, what: str) -> None:
    model = make_model(name, attn="sdpa")
    with pytest.raises(ValueError, match=rf"{key} merges .* projects .*{what}.* give space=decoder"):
        parse_method(key)(model).__enter__()


@pytest.mark.parametrize("key", ["visionzip", "prumerge", "holov", "trim"])
def test_another_order_is_refused_where_features_are_added_by_place(key: str) -> None:
    space = ",space=decoder" if key in ("visionzip", "prumerge") else ""
    model = make_model("qwen3_vl", attn="sdpa")
    with pytest.raises(ValueError, match=f"{key} puts vision tokens in another order.*position=keep"):
        parse_method(f"{key},position=rearrange{space}")(model).__enter__()
    assert parse_method(key + space).bind(find_anatomy(model)).positions == "keep"


COUNTS = [
    ("fastervlm", 144),
    ("fastervlm,tokens=58", 58),
    ("fastervlm,tokens=29", 29),
    ("vispruner", 128),
    ("vispruner,tokens=192", 192),
    ("scope,tokens=192", 192),
    ("scope", 128),
    ("hiprune,tokens=192", 192),
    ("hiprune", 128),
    ("hiprune,tokens=64", 64),
    ("visionzip,space=decoder", 64),
    ("visionzip,tokens=192,space=decoder", 192),
    ("holov", 64),
    ("mmtok,tokens=64", 64),
    ("mmtok", 115),
    ("fopru", 144),
    ("vtc_cls", 144),
]


@pytest.mark.parametrize(("spec", "left"), COUNTS)
def test_numbers_that_stay_are_the_published_ones(spec: str, left: int) -> None:
    assert dry_run(parse_method(spec), 4, text=66, vision=576).vision[0].tolist() == [left] * 4


def test_shares_of_published_budgets() -> None:
    """10 of 64, 30 of 192 and 20 of 128 contextual tokens; 4, 3 and 1 anchors."""
    share = parse_method("visionzip").contextual  # type: ignore[attr-defined]
    assert [int(total * share + 0.5) for total in (64, 192, 128)] == [10, 30, 20]
    alpha = parse_method("hiprune").alpha  # type: ignore[attr-defined]
    assert [int(alpha * total / 5 + 0.5) for total in (192, 128, 64)] == [4, 3, 1]


@pytest.mark.parametrize("layers", [32, 28])
def test_vscan_chooses_twice(layers: int) -> None:
    half = layers // 2
    seen = dry_run(parse_method("vscan"), layers, text=66, vision=576).vision[0].tolist()
    assert seen == [96] * half + [32] * half
    assert sum(seen) / layers == 64


def test_numbers_of_the_tower_are_those_of_eager_attention() -> None:
    """FasterVLM, HiPrune's score and VisionZip's keys, from the tower alone."""
    model, inputs = model_of("large"), inputs_of("large")
    rows, _, _ = shown("large")
    tower = model.model.vision_tower
    with torch.no_grad():
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        for number, image in enumerate(image for images in rows for image in images):
            layer = tower.encoder.layers[DEPTH - 2] if hasattr(tower, "encoder") else None
            layer = layer or tower.vision_model.encoder.layers[DEPTH - 2]
            normed = layer.layer_norm1(states[DEPTH - 2][number])
            query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
            heads = [slice(0, 8), slice(8, 16)]
            weights = [(query[:, head] @ key[:, head].T / math.sqrt(8)).softmax(dim=-1) for head in heads]
            mean = (weights[0] + weights[1]) / 2
            cls, column = torch.tensor(image.cls[DEPTH - 2]), torch.tensor(image.column[DEPTH - 2])
            torch.testing.assert_close(cls, mean[0, 1:].float(), atol=1e-6, rtol=0)
            torch.testing.assert_close(column, mean.mean(dim=0)[1:].float(), atol=1e-6, rtol=0)
            torch.testing.assert_close(torch.stack(image.key), (key[1:, :8] + key[1:, 8:]) / 2)
            torch.testing.assert_close(torch.stack(image.features), states[DEPTH - 1][number, 1:])


@pytest.mark.parametrize("spec", [spec for spec in NAIVE if not spec.startswith("vscan")])
def test_nothing_goes_where_all_may_stay_and_everything_where_none_may(spec: str) -> None:
    model, inputs = model_of("llava_next"), inputs_of("llava_next")
    with torch.no_grad():
        untouched = model(**inputs).logits
        for full in ("tokens=99", "r=0"):
            with parse_method(f"{spec},{full}")(model) as trace:
                assert torch.equal(model(**inputs).logits, untouched)
            assert set(trace.vision_per_layer.sum(dim=1).tolist()) - {0} == {
                4 * int(own.sum()) for own in vision_positions(model, inputs["input_ids"]) if own.any()
            }
        for none in ("tokens=0", "r=1"):
            with parse_method(f"{spec},{none}")(model) as trace:
                model(**inputs)
            assert trace.vision_per_layer.sum() == 0


@dataclass(frozen=True, kw_only=True)
class Even(Peek):
    """Nothing but ties, for what a method is shown."""

    method: Method

    def keep(self, view: LayerView) -> Tensor:
        tower = view.tower
        same = torch.ones_like(tower.features(-2))
        alike = SimpleNamespace(
            num_layers=tower.num_layers,
            received=lambda layer=-2, heads="mean", by=None: same[..., 0],
            features=lambda layer=-2: same,
            keys=lambda layer=-1, heads="mean": same if heads == "mean" else same.unflatten(-1, (2, -1)),
            places=tower.places,
            extent=tower.extent,
        )
        return self.method.keep(replace(view.shown_to(self.method), tower_view=alike))


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("fastervlm", range(4)),
        ("vtc_cls", range(4)),
        ("fopru", range(4)),
        ("scope", range(4)),
        # two by attention; the rest loses eight at a time, the even ones first, which stand before the odd ones
        ("vispruner", None),
        ("hiprune", range(4)),
    ],
)
def test_of_equal_tokens_the_earlier_stay(key: str, kept: range | None) -> None:
    model = model_of("large")
    inputs = inputs_of("large", [["t3", "i", "t4"]])
    found = []
    for _ in range(2):
        with torch.no_grad(), Even(method=parse_method(f"{key},tokens=4"))(model) as trace:
            model(**inputs)
        found.append((trace.kept(0)[0].nonzero()[:, 0] - 3).tolist()[3:-4])
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert kept is None or found[0] == list(kept)


@pytest.mark.parametrize("name", ["video_llava", "qwen2_vl", "llava_onevision"])
def test_each_frame_of_a_video_is_an_image(name: str) -> None:
    model = make_model(name, attn="sdpa")
    inputs = make_inputs(name, model, [["t3", "v", "t4"], ["t2", "i", "t6"]])
    peek = Peek()
    with torch.no_grad(), peek(model):
        model(**inputs)
    with torch.no_grad(), parse_method("fastervlm,tokens=1")(model) as trace:
        model(**inputs)
    frames = {(row, *place) for row in range(2) for place in peek.seen["places"][row, :, :2].tolist() if place[0] >= 0}
    assert len({frame[2] for frame in frames if frame[0] == 0}) > 1
    kept = trace.kept(0) & (peek.seen["places"][..., 0] >= 0)
    for row, image, frame in frames:
        own = (peek.seen["places"][row, :, :2] == torch.tensor([image, frame])).all(dim=1)
        score = peek.seen["cls"][0][row]
        assert kept[row, own].sum() == 1
        assert score[kept[row] & own] == score[own].max()


@pytest.mark.parametrize("spec", ["fastervlm,position=keep", "fastervlm,position=rearrange", "scope,r=0.5"])
def test_positions_are_those_of_the_code_unless_given(spec: str) -> None:
    method = parse_method(spec)
    for name in ("llava", "qwen2_vl", "qwen3_vl"):
        bound = method.bind(find_anatomy(model_of(name)))
        given = spec.partition("position=")[2]
        assert bound.positions == (given or ("rearrange" if name == "llava" else "keep"))


def test_wrong_parameters_are_refused() -> None:
    for spec, words in (
        ("fastervlm,r=0.5,tokens=3", "not both"),
        ("fastervlm,r=2", "out of range"),
        ("prumerge,plus=true,r=0.5", "leave out r and tokens"),
        ("hiprune,alpha=2", "alpha=2"),
        ("holov,stretches=0", "stretches=0"),
        ("mmtok,text_temperature=0", "more than 0"),
        ("vispruner,important=-1", "important=-1"),
        ("visionzip,contextual=1.5", "contextual=1.5"),
        ("vscan,r2=-1", "r2=-1"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_method(spec)
    for spec, words in (("vtc_cls,first=9", "first=9"), ("vscan,k=0", "k=0"), ("vscan,k=9", "k=9")):
        with pytest.raises(ValueError, match=words):
            parse_method(spec)(model_of("llava")).__enter__()


def test_a_weaker_method_costs_less_and_prumerge_plus_has_no_strength() -> None:
    for key in ("fastervlm", "vscan", "prumerge", "trim"):
        weakest, strongest = parse_method(key).scaled(0, 32), parse_method(key).scaled(1, 32)
        assert weakest is not None
        assert strongest is not None
        assert set(dry_run(weakest, 4, text=9, vision=16).vision[0].tolist()) == {16}
        assert set(dry_run(strongest, 4, text=9, vision=16).vision[0].tolist()) == {0}
    assert parse_method("prumerge,plus=true").scaled(0.5, 32) is None
