"""Methods for videos, compared with naive formulations: one video, loops, no shared helpers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.methods.examples import EXAMPLES, REFUSED
from tests.methods.test_methods import check_cache
from tests.support import families
from tests.support.families import FAMILIES, LONG, VIDEO, make_inputs, make_model
from tests.support.oracle import GLM_VIDEO, KINDS, models, register_attention
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost import Geometry
from vtw_eval.cost.choice import choice_flops
from vtw_eval.cost.measure.flops import torch_flops
from vtw_eval.engine import LayerView, Reads, Trace
from vtw_eval.engine.calls import cache_of_output
from vtw_eval.methods import Method, parse_method
from vtw_eval.methods.frames import VideoMethod, videos
from vtw_eval.verify.oracle import vision_positions

TOKENS = {"video_llava": 5, "onevision": 4, "qwen2_vl": 4, "qwen3_vl": 4, "internvl": 4}
"""Of a frame, by family."""

ROWS = {
    "one video": [["t3", "V", "t4"]],
    "a short video": [["t3", "v", "t4"]],
    "rows of different kinds": [["t3", "V", "t4"], ["t2", "v", "t1", "V", "t5"], ["t6"], ["t1", "i", "t3", "V", "t2"]],
}

Clip = list[list[Tensor]]
"""States of a video by frame and place."""
Kept = set[tuple[int, int]]
"""Frames and places."""


@pytest.fixture(autouse=True)
def _onevision(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-OneVision with four tokens a frame."""

    def config() -> Any:
        made = families._llava_onevision()
        made.vision_config.image_size = 16
        return made

    whole = families._FAMILIES["llava_onevision"]
    monkeypatch.setitem(families._FAMILIES, "onevision", replace(whole, config=config))


@functools.cache
def model_of(name: str, attention: str = "sdpa") -> nn.Module:
    register_attention()
    return make_model(name, attn=attention)


def rows_of(name: str, kind: str) -> list[list[str]]:
    rows = ROWS[kind]
    if name in ("onevision", "video_llava") and len(rows) > 1:  # all videos of a batch have as many frames
        rows = [[segment.upper() if segment == "v" else segment for segment in row] for row in rows]
    return rows[:3] if name == "onevision" else rows  # whose images have newlines


def clips(name: str, segments: Sequence[str], places: list[int]) -> list[list[list[int]]]:
    """Return the places of each video of a row by frame, from what the row was made of."""
    found, left = [], list(places)
    for segment in segments:
        if segment[0] != "t":
            short = 3 if name == "onevision" else 2
            frames = {"V": LONG, "v": short, "i": 1}[segment]
            count = 4 if segment == "i" else TOKENS[name]
            found.append([[left.pop(0) for _ in range(count)] for _ in range(frames)])
            if name == "onevision":
                left.pop(0)  # the newline
    assert not left
    return [[frame for clip in found for frame in clip]] if name == "internvl" and found else found


@dataclass(frozen=True, kw_only=True)
class Peek(Method):
    """Keep everything, and note what the tower attends to and which videos there are."""

    key: ClassVar[str] = "peek"
    reads = Reads.TOWER
    seen: dict[str, Any] = field(default_factory=dict)

    def layers(self, num_layers: int) -> Sequence[int]:
        return (0,)

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        return (-1, -2)

    def keep(self, view: LayerView) -> Tensor:
        self.seen["fastvid"] = view.tower.received(-2)
        self.seen["holitom"] = view.tower.received(-1, by="column")
        self.seen["videos"] = [[video.tolist() for video in videos(view, row)] for row in range(view.rows)]
        return view.valid


@dataclass
class Ran:
    """A method on a batch, and the same batch without it."""

    entering: Tensor
    """What entered the decoder, ``[rows, tokens, width]``."""
    entered: Tensor
    """What entered the first layer under the method, at its place in the prompt."""
    kept: Tensor
    vision: Tensor
    valid: Tensor
    peek: dict[str, Any]
    trace: Trace


@torch.no_grad()
def run(name: str, spec: str, rows: list[list[str]]) -> Ran:
    model = model_of(name)
    inputs = make_inputs(name, model, rows)
    valid = inputs["attention_mask"].bool()
    with (peek := Peek())(model):
        entering = model(**inputs, output_hidden_states=True).hidden_states[0]
    states: list[Tensor] = []
    with parse_method(spec)(model) as trace:
        handle = find_anatomy(model).layers[0].register_forward_hook(lambda _, args, out: states.append(args[0]))
        model(**inputs)
        handle.remove()
    layout = trace.reduction.layouts[0]
    entered = states[0] if layout is None else torch.zeros_like(entering)
    if layout is not None:
        entered.scatter_(1, layout.index[..., None].expand(-1, -1, entered.shape[-1]), states[0])
    vision = vision_positions(model, inputs["input_ids"]) & valid
    return Ran(entering, entered, trace.kept(0), vision, valid, peek.seen, trace)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def lowest(score: dict[Any, float], count: int) -> set[Any]:
    return set(sorted(score, key=lambda key: score[key])[:count])


def naive_evs(clip: Clip, attention: list[list[float]], r: str = "0.5") -> Kept:
    change = {
        (f, p): -math.inf if f == 0 else cosine(state, clip[f - 1][p])
        for f, frame in enumerate(clip)
        for p, state in enumerate(frame)
    }
    return lowest(change, max(len(clip[0]), math.floor(len(change) * (1 - Fraction(r)))))


def naive_vidcom2(clip: Clip, attention: list[list[float]], r: str = "0.5") -> Kept:
    every = torch.stack([state for frame in clip for state in frame])
    spread = {c: float(((every[:, c] - every[:, c].mean()) ** 2).mean()) for c in range(every.shape[1])}
    channels = sorted(lowest(spread, len(spread) // 2))
    unit = [[state[channels] / state[channels].norm() for state in frame] for frame in clip]
    middle = sum(state for frame in unit for state in frame) / len(every)

    def like(one: Tensor, other: Tensor) -> float:
        return sum(math.exp(-float((one - other) @ (one - other)) / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    means = [sum(like(state, middle) for state in frame) / len(frame) for frame in unit]
    weight = [math.exp((min(means) - mean) / 0.01) for mean in means]
    kept: Kept = set()
    for f, frame in enumerate(unit):
        share = min(float(1 - Fraction(r)) * (1 + weight[f] / sum(weight) - 1 / len(clip)), 1)
        own = sum(frame) / len(frame)
        score = {(f, p): like(state, middle) + like(state, own) for p, state in enumerate(frame)}
        kept |= lowest(score, max(1, round(share * len(frame))))
    return kept


def naive_dycoke(clip: Clip, attention: list[list[float]], thin: str = "0.5", literal: bool = False) -> Kept:
    kept = {(f, p) for f, frame in enumerate(clip) for p in range(len(frame))}
    pairs = [(f, f + 1) for f in range(0, len(clip) - 1, 2)]
    pairs += [(f, f + 2) for f in range(0, len(clip) - (4 if literal else 2), 4)]
    for whole, thinned in pairs:
        score = {(thinned, p): cosine(clip[whole][p], clip[thinned][p]) for p in range(len(clip[0]))}
        kept -= set(score) - lowest(score, math.floor(len(score) * (1 - Fraction(thin))))
    if literal and len(clip) % 2 and len(clip) > 1:
        kept -= {(len(clip) - 1, p) for p in range(len(clip[0]))}
    return kept


def naive_uniform(clip: Clip, attention: list[list[float]]) -> Kept:
    count = max(math.floor(len(clip) / 2 + 0.5), 1)
    frames = {math.floor((i + Fraction(1, 2)) * len(clip) / count) for i in range(count)}
    return {(f, p) for f in frames for p in range(len(clip[0]))}


PRUNING: dict[str, Callable[..., Kept]] = {
    "evs,r=0.5": naive_evs,
    "evs,r=0.2": functools.partial(naive_evs, r="0.2"),
    "vidcom2,r=0.5": naive_vidcom2,
    "vidcom2": functools.partial(naive_vidcom2, r="0.75"),
    "dycoke,thin=0.5": naive_dycoke,
    "dycoke": functools.partial(naive_dycoke, thin="0.7"),
    "dycoke,thin=0.5,literal=true": functools.partial(naive_dycoke, literal=True),
    "uniform_frames": naive_uniform,
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("spec", PRUNING)
def test_kept_tokens_are_those_of_loops_over_a_video(name: str, spec: str, kind: str) -> None:
    rows = rows_of(name, kind)
    ran = run(name, spec, rows)
    assert torch.equal(ran.kept & ~ran.vision, ran.valid & ~ran.vision)
    for row, segments in enumerate(rows):
        places = ran.vision[row].nonzero()[:, 0].tolist()
        own = clips(name, segments, places)
        assert ran.peek["videos"][row] == own
        expected = set(places) - {place for clip in own for frame in clip for place in frame}  # newlines
        for clip in own:
            states = [[ran.entering[row, place] for place in frame] for frame in clip]
            expected |= {clip[f][p] for f, p in PRUNING[spec](states, [])}
        assert (ran.kept & ran.vision)[row].nonzero()[:, 0].tolist() == sorted(expected)


def naive_peaks(points: list[Tensor], neighbours: int) -> list[float]:
    far = [[float((a - b).norm()) / len(a) ** 0.5 for b in points] for a in points]
    density = [math.exp(-sum(d**2 for d in sorted(line)[:neighbours]) / min(neighbours, len(line))) for line in far]
    score = []
    for i in range(len(points)):
        denser = [far[i][j] for j in range(len(points)) if (density[j], -j) > (density[i], -i)]
        score.append(min(denser, default=max(map(max, far))) * density[i])
    return score


def naive_fastvid(
    clip: Clip, attention: list[list[float]], r: str = "0.25", context: str = "0.5", least: int = 2, tau: float = 0.84
) -> dict[tuple[int, int], Tensor]:
    frames, count = len(clip), len(clip[0])
    left = math.floor(count * (1 - Fraction(r)))
    merging = math.floor(left * Fraction(context))
    made, loose = {}, []
    for f, frame in enumerate(clip):
        best = lowest({p: -attention[f][p] for p in range(count)}, left - merging)
        made |= {(f, p): frame[p] for p in best}
        loose.append([p for p in range(count) if p not in best])
    means = [sum(frame) / count for frame in clip]
    alike = {f: cosine(means[f], means[f + 1]) for f in range(frames - 1)}
    cuts = lowest(alike, least - 1) | {f for f in alike if alike[f] < tau}
    ends = [*sorted(cuts), frames - 1]
    first = 0
    for end in ends:
        segment = range(first, end + 1)
        anchored = [f for f in segment if (end - f) % 4 == 0]
        members = [clip[f][p] for f in segment for p in loose[f]]
        for f in anchored if merging else []:
            peaks = naive_peaks([clip[f][p] for p in loose[f]], 4)
            number = min(merging * len(segment) // len(anchored), len(loose[f]))
            anchors = sorted(lowest({i: -peaks[i] for i in range(len(peaks))}, number))
            groups: list[list[Tensor]] = [[] for _ in anchors]
            for member in members:
                near = [cosine(member, clip[f][loose[f][i]]) for i in anchors]
                groups[near.index(max(near))].append(member)
            for i, group in zip(anchors, groups, strict=True):
                weight = max(1 / (len(group) + 1), 0.6)
                made[f, loose[f][i]] = weight * clip[f][loose[f][i]] + (1 - weight) * sum(group) / len(group)
        first = end + 1
    return made


def naive_holitom(
    clip: Clip, attention: list[list[float]], r: str = "0.5", tau: float = 0.8
) -> dict[tuple[int, int], Tensor]:
    frames, count = len(clip), len(clip[0])

    def still(first: int, last: int) -> list[int]:
        return [
            p
            for p in range(count)
            if last > first and all(cosine(clip[f][p], clip[f + 1][p]) > tau for f in range(first, last))
        ]

    def gain(cuts: list[tuple[int, int]]) -> int:
        return sum(len(still(first, last)) * (last - first) for first, last in cuts)

    every = [[(0, frames - 1)]]  # all ways to cut, by where there is a cut
    for mask in range(2 ** (frames - 1)):
        ends = [f for f in range(frames - 1) if mask >> f & 1] + [frames - 1]
        every.append(list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True)))
    most = max(map(gain, every))
    share = min(float(1 - Fraction(r)) * frames * count / (frames * count - most), 1)
    options = []
    for cuts in (cuts for cuts in every if gain(cuts) == most):
        made = {}
        for first, last in cuts:
            places = still(first, last)
            moving = [p for p in range(count) if p not in places]
            for f in range(first, last + 1):
                score = {p: -attention[f][p] for p in moving}
                made |= {(f, p): clip[f][p] for p in lowest(score, math.ceil(len(moving) * share - 1e-9))}
            number = round(len(places) * share)
            means = [sum(clip[f][p] for f in range(first, last + 1)) / (last - first + 1) for p in places]
            peaks = naive_peaks(means, min(7, number)) if number else []
            centres = sorted(lowest({i: -peaks[i] for i in range(len(peaks))}, number))
            groups: dict[int, list[Tensor]] = {i: [] for i in centres}
            for i, mean in enumerate(means):
                if number and i not in centres:
                    groups[min(centres, key=lambda c: float((mean - means[c]).norm()))].append(mean)
            for i, group in groups.items():
                made[first, places[i]] = 0.6 * means[i] + 0.4 * sum(group) / len(group) if group else means[i]
        options.append(([last - first for first, last in reversed(cuts)], made))
    return min(options, key=lambda option: option[0])[1]  # the shortest last window, then the one before, ...


MERGING = ("fastvid", "framefusion", "holitom")

MERGED: dict[str, Callable[..., dict[tuple[int, int], Tensor]]] = {
    "fastvid,r=0.25,context=0.5,segments=2": naive_fastvid,
    "fastvid,r=0.5,context=0.5,segments=1,tau=-1.0": functools.partial(naive_fastvid, r="0.5", least=1, tau=-1.0),
    "holitom,r=0.5": naive_holitom,
    "holitom,r=0.6,tau=0.5": functools.partial(naive_holitom, r="0.6", tau=0.5),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("spec", MERGED)
def test_merged_states_are_those_of_loops_over_a_video(name: str, spec: str, kind: str) -> None:
    rows = rows_of(name, kind)
    ran = run(name, spec, rows)
    key = spec.partition(",")[0]
    for row, segments in enumerate(rows):
        expected = {place: ran.entering[row, place] for place in ran.valid[row].nonzero()[:, 0].tolist()}
        for clip in clips(name, segments, ran.vision[row].nonzero()[:, 0].tolist()):
            states = [[ran.entering[row, place] for place in frame] for frame in clip]
            attention = [[float(ran.peek[key][row, place]) for place in frame] for frame in clip]
            made = MERGED[spec](states, attention)
            for frame in clip:
                for place in frame:
                    del expected[place]
            expected |= {clip[f][p]: state for (f, p), state in made.items()}
        assert ran.kept[row].nonzero()[:, 0].tolist() == sorted(expected)
        for place, state in expected.items():
            torch.testing.assert_close(ran.entered[row, place], state, atol=1e-9, rtol=0)


def slow_video(frames: int, tokens: int, seed: int = 0) -> Tensor:
    """Return states that change little from frame to frame at some places, ``[frames, tokens, 16]``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(frames, tokens, 16, generator=generator, dtype=torch.float64)
    return (noise * torch.linspace(0.1, 1.0, tokens, dtype=torch.float64)[:, None]).cumsum(dim=0) + noise[0]


def reduce(spec: str, states: Tensor, attention: Tensor | None = None) -> tuple[Tensor, Tensor | None, int]:
    """Return what a method keeps of a video, what that becomes, and the FLOPs that it notes."""
    view = SimpleNamespace(looks=[], layer=0, index=torch.zeros(1, 1))
    method: Any = parse_method(spec)
    keep, changed = method.reduce(view, states, torch.zeros(states.shape[:2]) if attention is None else attention)
    return keep, changed, sum(look.flops for look in view.looks)


@pytest.mark.parametrize(
    ("spec", "naive"),
    [
        ("fastvid,r=0.5", functools.partial(naive_fastvid, r="0.5", context="0.4", least=8)),
        (
            "fastvid,r=0.4,segments=3,tau=-1.0",
            functools.partial(naive_fastvid, r="0.4", context="0.4", least=3, tau=-1),
        ),
        ("holitom,r=0.7", functools.partial(naive_holitom, r="0.7")),
        ("holitom,r=0.5,tau=0.9", functools.partial(naive_holitom, r="0.5", tau=0.9)),
    ],
)
def test_larger_videos_are_merged_as_by_loops(spec: str, naive: Callable[..., Any]) -> None:
    for frames, tokens in ((9, 12), (1, 12), (5, 7)):
        states = slow_video(frames, tokens)
        attention = torch.rand(frames, tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        keep, changed, flops = reduce(spec, states, attention)
        expected = naive([list(frame) for frame in states], attention.tolist())
        assert {tuple(place) for place in keep.nonzero().tolist()} == set(expected)
        assert flops > 0 or frames == 1
        for place, state in expected.items():
            torch.testing.assert_close((states if changed is None else changed)[place], state, atol=1e-9, rtol=0)


def test_dycoke_keeps_as_many_as_published() -> None:
    """370 of 784 in four frames of 196 tokens, and the same share where the last four are incomplete."""
    kept = [int(reduce("dycoke", slow_video(frames, 196))[0].sum()) for frames in range(1, 9)]
    assert kept == [196, 254, 312, 370, 566, 624, 682, 740]
    kept = [int(reduce("dycoke,literal=true", slow_video(frames, 196))[0].sum()) for frames in range(1, 9)]
    assert kept == [196, 254, 254, 508, 370, 624, 624, 878]


def test_evs_keeps_a_frame_at_least() -> None:
    states = slow_video(8, 10)
    for spec, count in (
        ("evs", 24),
        ("evs,r=0.95", 10),
        ("evs,tokens=3", 24),
        ("evs,tokens=99", 80),
        ("evs,r=0.0", 80),
    ):
        keep = reduce(spec, states)[0]
        assert keep.sum() == count and keep[0].all()
    still = reduce("evs,r=0.5", states[:1, :1].expand(8, 10, -1))[0]  # all alike: in order
    assert still.flatten().tolist() == [True] * 40 + [False] * 40
    assert reduce("evs", states[:1])[0].all()


def test_vidcom2_gives_unusual_frames_more() -> None:
    states = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1)
    states[4] += torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    counts = reduce("vidcom2,r=0.75", states)[0].sum(dim=1)
    assert counts.argmax() == 4 and counts[4] > 10 and counts.sum() == pytest.approx(60, abs=6)
    assert reduce("vidcom2,r=0.0", states)[0].sum(dim=1).tolist()[4] == 40
    assert reduce("vidcom2,r=1.0", states)[0].sum(dim=1).tolist() == [1] * 6
    assert reduce("vidcom2,tokens=10", states[:1])[0].sum() == 10


def test_controls_keep_as_many_of_each_frame_or_whole_frames() -> None:
    noise = torch.rand(5, 7)
    keep = reduce("random_per_frame,r=0.4", slow_video(5, 7), noise)[0]
    assert keep.sum(dim=1).tolist() == [4] * 5  # 4.2
    assert reduce("random_per_frame,tokens=3", slow_video(5, 7), noise)[0].sum(dim=1).tolist() == [3] * 5
    assert reduce("random_per_frame,tokens=9", slow_video(5, 7), noise)[0].all()
    assert float(noise[keep].min()) > 0
    for spec, frames in (
        ("frames=3", [1, 3, 5]),
        ("frames=9", list(range(7))),
        ("r=1.0", [3]),
        ("r=0.5", [0, 2, 4, 6]),
    ):
        keep = reduce(f"uniform_frames,{spec}", slow_video(7, 4))[0]
        assert keep.all(dim=1).nonzero()[:, 0].tolist() == frames and keep.sum() == 4 * len(frames)


@torch.no_grad()
def test_random_tokens_of_a_frame_depend_on_seed_and_prompt_only() -> None:
    rows = ROWS["rows of different kinds"]
    ran = [run("qwen2_vl", f"random_per_frame,r=0.5,seed={seed}", rows) for seed in (0, 0, 1)]
    assert torch.equal(ran[0].kept, ran[1].kept) and not torch.equal(ran[0].kept, ran[2].kept)
    for row, segments in enumerate(rows):
        alone = run("qwen2_vl", "random_per_frame,r=0.5,seed=0", [segments])
        assert alone.kept[0, alone.valid[0]].tolist() == ran[0].kept[row, ran[0].valid[row]].tolist()
        for clip in clips("qwen2_vl", segments, ran[0].vision[row].nonzero()[:, 0].tolist()):
            assert [int(ran[0].kept[row, frame].sum()) for frame in clip] == [len(frame) // 2 for frame in clip]


@torch.no_grad()
def test_images_of_internvl_are_frames_unless_they_have_tiles() -> None:
    model = model_of("internvl")
    with (peek := Peek())(model):
        model(**make_inputs("internvl", model, [["i", "t1", "i", "t2", "I", "t1", "i", "t3"], ["t4"]]))
    assert [[len(frames), len(frames[0])] for frames in peek.seen["videos"][0]] == [[2, 4], [1, 12], [1, 4]]
    assert peek.seen["videos"][1] == []
    model = model_of("qwen2_vl")
    with (peek := Peek())(model):
        model(**make_inputs("qwen2_vl", model, [["t1", "i", "t1", "i", "t2"]]))
    assert [[len(frames), len(frames[0])] for frames in peek.seen["videos"][0]] == [[1, 4], [1, 4]]


def naive_framefusion(
    own: list[list[list[int]]], states: dict[int, Tensor], weights: dict[int, float], past: dict[str, Any], cost: float
) -> tuple[dict[int, Tensor], set[int]]:
    """Return the states that a layer of four changes and the places that it removes; ``past`` goes on."""
    now = [place for clip in own for frame in clip for place in frame if place in states]
    share, spent = past.setdefault("share", 1.0), past.setdefault("spent", 0.0)
    layer = past["layer"] = past.get("layer", -1) + 1
    upper = max(1 - (4 * cost - spent) / ((4 - layer) * share), 0) if share else 0.0
    changed: dict[int, Tensor] = {}
    gone: set[int] = set()
    if past.setdefault("stage", "merge") == "prune":
        left = max(round(len(now) * (1 - upper)), 0)
        gone = set(now) - set(sorted(now, key=lambda place: -weights[place])[:left])
        past["stage"] = "done"
    elif past["stage"] == "merge":
        chains = [[f[p] for f in clip if f[p] in states] for clip in own for p in range(len(clip[0]))]
        like = {b: cosine(states[a], states[b]) for chain in chains for a, b in itertools.pairwise(chain)}
        joining = {place for place, value in like.items() if value >= 0.6}
        if len(joining) < int(upper * len(now) + 1e-9):
            past["stage"] = "prune" if len(joining) / len(now) < 0.1 else "merge"
        else:
            joining = set(sorted(like, key=lambda place: -like[place])[: int(upper * len(now) + 1e-9)])
            past["stage"] = "done"
        for chain in chains:
            groups: list[list[int]] = []
            for place in chain:
                groups = [*groups[:-1], [*groups[-1], place]] if place in joining else [*groups, [place]]
            changed |= {g[0]: sum(states[place] for place in g) / len(g) for g in groups if len(g) > 1}
        gone = joining
    past["share"] = share * (1 - len(gone) / len(now)) if now else 0.0
    past["spent"] = spent + past["share"]
    return changed, gone


@contextmanager
def watched(model: nn.Module, entered: list[Tensor], left: list[Tensor], weights: list[Tensor]) -> Iterator[None]:
    """Note what enters and leaves each layer and its attention, of one row."""

    def layer_ran(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        entered.append(args[0][0])
        left.append((output[0] if isinstance(output, tuple) else output).reshape(args[0].shape)[0])

    def attention_ran(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        weights.append(output[1][0])

    with ExitStack() as stack:
        for layer in find_anatomy(model).layers:
            stack.callback(layer.register_forward_hook(layer_ran).remove)
            stack.callback(layer.self_attn.register_forward_hook(attention_ran).remove)
        yield


@pytest.mark.parametrize("name", ["video_llava", "onevision", "qwen2_vl", "internvl"])
@pytest.mark.parametrize("cost", [0.3, 0.6, 0.8, 1.0])
@torch.no_grad()
def test_framefusion_equals_a_loop_over_tokens(name: str, cost: float) -> None:
    model = model_of(name, "eager")
    layers = find_anatomy(model).layers
    for row in (["t3", "V", "t4"], ["t2", "v", "t5"], ["t1", "i", "t3"])[: 2 if name == "onevision" else 3]:
        inputs = make_inputs(name, model, [row])
        states: list[Tensor] = [model(**inputs, output_hidden_states=True).hidden_states[0][0]]
        entered, weights = [], [torch.empty(0)]
        with watched(model, entered, states, weights), parse_method(f"framefusion,cost={cost}")(model) as trace:
            model(**inputs)
        vision = vision_positions(model, inputs["input_ids"])[0].nonzero()[:, 0].tolist()
        own = clips(name, row, vision)
        places, past = list(range(inputs["input_ids"].shape[1])), {}
        for i in range(len(layers)):
            now = dict(zip(places, states[i], strict=True))
            seen = dict(zip(places, weights[i].mean(dim=(0, 1)).tolist(), strict=True)) if i else {}
            changed, gone = naive_framefusion(own, now, seen, past, cost)
            places = [place for place in places if place not in gone]
            assert trace.kept(i)[0].nonzero()[:, 0].tolist() == places
            torch.testing.assert_close(
                entered[i], torch.stack([changed.get(p, now[p]) for p in places]), atol=1e-9, rtol=0
            )
        if cost < 1 and len(vision) > 20:
            spent = trace.vision_per_layer.double().mean() / len(vision)
            assert spent == pytest.approx(cost, abs=0.1 if past["stage"] == "done" else 0.2)


@pytest.mark.parametrize("name", ["video_llava", "qwen2_vl", "internvl"])
@torch.no_grad()
def test_framefusion_has_a_budget_of_its_own_for_each_row(name: str) -> None:
    rows = rows_of(name, "rows of different kinds")
    together = run(name, "framefusion,cost=0.5", rows)
    for row, segments in enumerate(rows):
        alone = run(name, "framefusion,cost=0.5", [segments])
        assert alone.trace.vision_per_layer[0].tolist() == together.trace.vision_per_layer[row].tolist()
        for layer in range(4):
            mine, other = alone.trace.kept(layer)[0], together.trace.kept(layer)[row]
            assert mine[alone.valid[0]].tolist() == other[together.valid[row]].tolist()


@pytest.mark.parametrize("label", [label for label, method in EXAMPLES.items() if method.key in MERGING])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_merging_leaves_text_alone_on_every_family(name: str, label: str) -> None:
    if (name, EXAMPLES[label].key) in REFUSED:
        return  # test_methods.py checks that
    model, _ = models(name, "sdpa")
    for kind, rows in KINDS.items():
        if kind == "video" and name not in VIDEO:
            continue
        inputs = make_inputs(name, model, GLM_VIDEO if (name, kind) == ("glm4v", "video") else rows)
        valid = inputs["attention_mask"].bool()
        vision = vision_positions(model, inputs["input_ids"]) & valid
        untouched = model(**inputs).logits
        with EXAMPLES[label](model) as trace:
            output = model(**inputs, use_cache=True)
            check_cache(trace, cache_of_output(output))
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.isfinite(output.logits[trace.kept(-1)]).all()
        assert torch.equal(trace.kept(-1) & ~vision, valid & ~vision)
        assert (trace.kept(-1) & vision).sum() < vision.sum()
        assert torch.equal(model(**inputs).logits, untouched), "the method left something behind"


@pytest.mark.parametrize("label", [label for label, method in EXAMPLES.items() if isinstance(method, VideoMethod)])
@pytest.mark.parametrize("name", ["video_llava", "qwen2_vl", "internvl"])
@torch.no_grad()
def test_videos_of_a_batch_never_influence_each_other_and_costs_are_counted(name: str, label: str) -> None:
    model, rows = model_of(name), rows_of(name, "rows of different kinds")
    inputs = make_inputs(name, model, rows)
    with EXAMPLES[label](model) as trace:
        together = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
        counts = trace.tokens_per_layer
        counted = torch_flops(model, {**inputs, "use_cache": False}).method
        assert counted == sum(choice_flops(trace, Geometry.from_config(model.config)).values())
        for row, segments in enumerate(rows):
            alone = model.generate(**make_inputs(name, model, [segments]), max_new_tokens=3, do_sample=False)
            assert torch.equal(alone[0, -3:], together[row])
            assert torch.equal(trace.tokens_per_layer[0], counts[row])


@dataclass(frozen=True, kw_only=True)
class Historian(Method):
    """Keep every other vision token before two layers, and look back."""

    key: ClassVar[str] = "historian"
    reads = Reads.HIDDEN
    ahead: int = 0
    seen: list[list[Tensor]] = field(default_factory=list)

    def layers(self, num_layers: int) -> Sequence[int]:
        return (1, 3)

    def keep(self, view: LayerView) -> Tensor:
        self.seen.append([view.seen_by(layer) for layer in range(view.layer + self.ahead)])
        return ~view.vision | (view.vision.cumsum(dim=1) % 2 == 0)


@torch.no_grad()
def test_a_method_sees_what_earlier_layers_got() -> None:
    model = model_of("qwen2_vl")
    inputs = make_inputs("qwen2_vl", model, rows_of("qwen2_vl", "rows of different kinds"))
    with (method := Historian())(model) as trace:
        model(**inputs)
    assert [len(seen) for seen in method.seen] == [1, 3]
    for seen in method.seen:
        assert all(torch.equal(tokens, trace.kept(layer)) for layer, tokens in enumerate(seen))
    assert not torch.equal(method.seen[1][0], method.seen[1][1])
    with Historian(ahead=1)(model), pytest.raises(ValueError, match=r"seen_by\(1\) before layer 1"):
        model(**inputs)


@torch.no_grad()
def test_what_claims_so_chooses_whatever_is_asked() -> None:
    model = model_of("qwen2_vl")
    inputs = make_inputs("qwen2_vl", model, [["t3", "V", "t4"]])
    other = inputs | {"input_ids": torch.cat([inputs["input_ids"][:, :-4], torch.tensor([[11, 12, 13, 14]])], dim=1)}
    claiming = [
        method for method in EXAMPLES.values() if isinstance(method, VideoMethod) and method.question_independent
    ]
    assert {method.key for method in EXAMPLES.values() if isinstance(method, VideoMethod)} - {
        method.key for method in claiming
    } == {"framefusion", "random_per_frame"}
    for method in claiming:
        kept = []
        with method(model) as trace:
            for asked in (inputs, other):
                model(**asked)
                kept.append(trace.kept(0))
        assert torch.equal(*kept)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("evs,r=0.5,tokens=3", "not both"),
        ("vidcom2,r=1.5", "out of range"),
        ("dycoke,thin=-0.1", "thin=-0.1"),
        ("fastvid,context=2.0", "context=2.0"),
        ("fastvid,segments=0", "segments=0"),
        ("framefusion,cost=1.2", "cost=1.2"),
        ("framefusion,similarity=2.0", "similarity=2.0"),
        ("uniform_frames,r=0.5,frames=2", "not both"),
        ("uniform_frames,frames=0", "frames=0"),
    ],
)
def test_impossible_numbers_are_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_method(spec)
