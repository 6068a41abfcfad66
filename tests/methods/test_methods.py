"""Every method on every family: what it keeps, and that the model then computes what masking computes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.methods.examples import EXAMPLES, REFUSED
from tests.support.families import FAMILIES, VIDEO, make_inputs
from tests.support.gates import fitted
from tests.support.oracle import CASES, FLASH, GLM_VIDEO, KINDS, NEW_TOKENS, models
from vtw_eval import (
    VTW,
    Composite,
    DyVTE,
    FastV,
    Method,
    PyramidDrop,
    Rand,
    RandomK,
    RandomVision,
)
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import LayerView, Reads, Trace, probes
from vtw_eval.engine.calls import cache_of_output
from vtw_eval.methods import METHODS, Scorer
from vtw_eval.methods.feather import Feather
from vtw_eval.methods.fitprune import DELETED, FitPrune
from vtw_eval.methods.frames import FrameMethod
from vtw_eval.methods.himap import HiMAP
from vtw_eval.methods.image_wise import ImageWise
from vtw_eval.methods.ivc_prune import IVCPrune
from vtw_eval.methods.sparsevlm import SparseVLM
from vtw_eval.verify.oracle import extend, masked, oracle_logits, traced, traced_frozen, vision_positions

NEVER = 10**6
"""A withdrawal layer that no model has: nothing is masked."""

_MERGING = {"tome", "sparsevlm", "downsample", "pact", "pool", "visionzip", "prumerge", "holov", "trim", "vscan"}
_MERGING |= {"fastvid", "framefusion", "holitom"}
MERGING = tuple(label for label, method in EXAMPLES.items() if method.key in _MERGING or "downsample" in str(method))
"""These change hidden states: see test_merging.py, test_tower_methods.py, test_video_methods.py."""


def test_every_method_has_an_example() -> None:
    assert {method.key for method in EXAMPLES.values()} == {*METHODS, Composite.key}


@dataclass(frozen=True, kw_only=True)
class Peek(Method):
    """Keep everything, and note the attention rows."""

    key: ClassVar[str] = "peek"
    reads = Reads.ATTENTION | Reads.ATTENTION_BEFORE
    seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    received: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    """Means over several queries."""

    def layers(self, num_layers: int) -> Sequence[int]:
        return (1, 3)

    def keep(self, view: LayerView) -> Tensor:
        for layer in (view.layer - 1, view.layer):
            self.seen[view.layer, layer] = view.attention(layer)
            for label, queries in {"vision": view.vision, "all": torch.ones_like(view.valid)}.items():
                self.received[view.layer, layer, label] = view.attention(layer, queries)
        return view.valid


@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.no_grad()
def test_attention_rows_equal_eager_attention(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_CHUNK", 5)  # several chunks of queries in each prompt
    model, _ = models(name, attention)
    eager, _ = models(name, "eager")
    for kind, rows in KINDS.items():
        if kind == "video":
            continue
        inputs = make_inputs(name, model, rows)
        peek = Peek()
        with peek(model):
            model(**inputs)
        with masked(eager, NEVER, flash=attention == FLASH):
            weights = eager(**inputs, output_attentions=True, use_cache=False).attentions
        assert set(peek.seen) == {(1, 0), (1, 1), (3, 2), (3, 3)}
        for (_, layer), row in peek.seen.items():
            torch.testing.assert_close(row, weights[layer][:, :, -1].mean(dim=1).to(row), atol=2e-6, rtol=1e-5)
        valid = inputs["attention_mask"].bool()
        vision = vision_positions(model, inputs["input_ids"]) & valid
        assert len(peek.received) == 8
        for (_, layer, label), mean in peek.received.items():
            for row, queries in enumerate(vision if label == "vision" else valid):
                of = weights[layer][row, :, queries].mean(dim=0).to(mean)
                expected = of.mean(dim=0) if len(of) else torch.zeros_like(mean[row])
                torch.testing.assert_close(mean[row], expected, atol=2e-6, rtol=1e-5)


def _pairs() -> list[tuple[str, str]]:
    """Return families and examples: each kind of reading on all families, each example on each kind of model.

    Those that a method is refused on are among them.
    """
    labels = [label for label in EXAMPLES if label not in ("vtw", *MERGING)]
    reading = {part: next(label for label in labels if part in EXAMPLES[label].reads) for part in _parts(labels)}
    everywhere = {"rand", *reading.values()}
    return [
        (name, label)
        for name in FAMILIES
        for label in labels
        if label in everywhere or name in _KINDS_OF_MODELS or (name, EXAMPLES[label].key) in REFUSED
    ]


def _parts(labels: Sequence[str]) -> list[Reads]:
    return [part for part in Reads if any(part in EXAMPLES[label].reads for label in labels)]


_KINDS_OF_MODELS = ("llava", "qwen3_vl", "mistral3_sliding", "gemma3")
"""Plain; M-RoPE and DeepStack; sliding windows; images that see each other both ways, and two rotary tables."""


@pytest.mark.parametrize(("name", "label"), _pairs())
@torch.no_grad()
def test_the_model_computes_what_masking_computes(name: str, label: str) -> None:
    """Whatever a method keeps: logits of kept tokens and of generated ones equal those under a mask."""
    model, oracle = models(name, "sdpa")
    method = fitted(EXAMPLES[label], model)
    if (name, method.key) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, method.key]), method(model):
            model(**make_inputs(name, model, KINDS["single"]))
        return
    rearrange = method.bind(find_anatomy(model)).positions == "rearrange"
    if rearrange and name in ("gemma3", "gemma3_full_first"):
        method = replace(method, position="keep")  # two rotary tables: the oracle renumbers one
        rearrange = False
    for kind, rows in KINDS.items():
        if kind == "video" and name not in VIDEO:
            continue
        inputs = make_inputs(name, model, GLM_VIDEO if (name, kind) == ("glm4v", "video") else rows)
        length = inputs["input_ids"].shape[1]
        untouched = model(**inputs).logits
        with method(model) as trace:
            output = model(**inputs, use_cache=True)
            forward = replace(trace)
            generated = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        longer = extend(name, inputs, generated.sequences[:, length:])
        frozen = traced_frozen(forward)
        expected = oracle_logits(oracle, longer, traced(forward), rearrange=rearrange, frozen=frozen)
        last = forward.kept(-1)
        decoded = torch.stack(generated.logits, dim=1).to(expected)
        tolerance = 2e-5 if rearrange else 1e-12
        torch.testing.assert_close(output.logits[last], expected[:, :length][last], atol=tolerance, rtol=0)
        if not torch.equal(
            last, trace.kept(-1)
        ):  # generate() counts positions without padding, which rotated keys tell
            assert method.reads & (Reads.KEYS_BEFORE | Reads.ROTATION)
            expected = oracle_logits(oracle, longer, traced(trace), rearrange=rearrange)
        torch.testing.assert_close(decoded[:, 1:], expected[:, length:-1], atol=2e-5, rtol=0)
        check_kept(method, trace, model, inputs)
        check_cache(trace, cache_of_output(output))
        assert torch.equal(model(**inputs).logits, untouched), "the method left something behind"


def check_cache(trace: Trace, cache: Any) -> None:
    """Check that the KV cache of each layer holds the bytes of the kept tokens of the longest row, and no more."""
    assert trace.reduction is not None
    kept, length = trace.tokens_per_layer.max(dim=0).values.tolist(), trace.reduction.prompt.length
    for slots, layout, count in zip(cache.layers, trace.reduction.layouts, kept, strict=True):
        expected = length if layout is None else count  # nothing was removed yet: padding is stored too
        if getattr(slots, "sliding_window", None) is not None:
            expected = min(expected, slots.sliding_window - 1)
        for states in (slots.keys, slots.values):
            rows, heads, _, width = states.shape
            assert states.nbytes == rows * heads * expected * width * states.element_size()


def check_kept(method: Method, trace: Trace, model: torch.nn.Module, inputs: dict[str, Tensor]) -> None:
    """Check counts by a closed form per method."""
    valid = inputs["attention_mask"].bool()
    vision = vision_positions(model, inputs["input_ids"]) & valid
    layers = trace.tokens_per_layer.shape[1]
    text = (valid & ~vision).sum(1)
    for layer in range(layers):
        kept = trace.kept(layer)
        assert not (kept & ~valid).any()
        if not isinstance(method, Rand):
            assert torch.equal(kept & ~vision, valid & ~vision), "a text token is gone"
        for row, total in enumerate(vision.sum(1).tolist()):
            counts = expected_vision(method, layer, layers, total)
            assert int((kept & vision)[row].sum()) in counts, (layer, row)
            if isinstance(method, Rand):
                assert int(kept[row].sum()) == (int(text[row]) + total if layer < 2 else int(text[row]))


def expected_vision(method: Method, layer: int, layers: int, total: int) -> Sequence[int]:
    """Numbers of vision tokens that a layer may hold."""
    if isinstance(method, Composite):
        return [min(ns) for ns in itertools.product(*(expected_vision(p, layer, layers, total) for p in method.parts))]
    if isinstance(method, Rand):
        return range(total + 1)
    if isinstance(method, RandomK):
        return (total,) if layer < method.low else (0,) if layer >= method.high else (0, total)
    if isinstance(method, FrameMethod):  # exactly: see test_video_methods.py
        return range(total + 1)
    if isinstance(method, VTW):
        return (total,) if layer < method.k else (0,)
    if isinstance(method, ImageWise):  # by image: see test_tower_methods.py
        return range(total + 1)
    if isinstance(method, Scorer):
        left = range(total + 1) if method.r is None else (int(total * (1 - method.r) + 0.5),)
        return (total,) if layer < method.k else left
    if isinstance(method, HiMAP):
        removed = 0 if layer < method.k1 else method.r1 if layer < method.k2 else method.r2
        return (int(total * (1 - removed) + 0.5),)
    if isinstance(method, (Feather, IVCPrune)) and layer >= method.k1:
        least = int(total * (1 - method.r) + 1e-6) if isinstance(method, IVCPrune) else 0
        return (least,) if not method.union else range(least, total + 1)
    if isinstance(method, FitPrune):  # the layers' share of 32 have run, the last of them in part
        whole, part = divmod(32 * layer, layers)
        gone = sum(DELETED[:whole]) + (part / layers * DELETED[whole] if part else 0)
        return (int(total * (576 - gone) / 576 + 0.5),)
    if isinstance(method, SparseVLM):
        stage = sum(layer >= k for k in (method.k1, method.k2, method.k3))
        return (min(total * 3 * (0, 300, 200, 110)[stage] // 1100, total) if stage else total,)
    if isinstance(method, DyVTE):
        return (0, total) if layer else (total,)
    if isinstance(method, PyramidDrop):
        return (int(total * 0.5 ** sum(layer >= layers * stage // 4 for stage in (1, 2, 3))),)
    return (total,)


@pytest.mark.parametrize("name", ["llava", "llava_gqa", "qwen2_vl", "mistral3", "gemma3", "glm4v"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_fastv_keeps_what_eager_attention_ranks_first(name: str, attention: str) -> None:
    model, _ = models(name, attention)
    eager, _ = models(name, "eager")
    for kind in ("single", "batch", "multi-image", "mixed"):
        inputs = make_inputs(name, model, KINDS[kind])
        vision = vision_positions(model, inputs["input_ids"]) & inputs["attention_mask"].bool()
        weights = eager(**inputs, output_attentions=True).attentions
        for k in (1, 2, 3):
            with FastV(k=k, r=0.5)(model) as trace:
                model(**inputs)
            for row in range(len(vision)):
                places = vision[row].nonzero().flatten()
                scores = weights[k - 1][row, :, -1, places].mean(dim=0)
                best = places[scores.argsort(descending=True, stable=True)[: int(len(places) * 0.5 + 0.5)]]
                assert set((trace.kept(k)[row] & vision[row]).nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize(("r", "kept"), [(0.25, 432), (0.5, 288), (0.75, 144), (0.875, 72)])
@pytest.mark.parametrize("k", [0, 2])
@torch.no_grad()
def test_fastv_counts_of_the_paper(r: float, kept: int, k: int) -> None:
    model, _ = models("llava", "sdpa")
    ids = torch.cat([torch.randint(10, 99, (1, 35)), torch.full((1, 576), model.config.image_token_id)], dim=1)
    ids = torch.cat([ids, torch.randint(10, 99, (1, 30))], dim=1)
    embeds = model.get_input_embeddings()(ids)
    vision = vision_positions(model, ids)
    with FastV(k=k, r=r)(model, vision_mask=vision) as trace:
        if k:
            model(inputs_embeds=embeds)
            assert trace.vision_per_layer.tolist() == [[576] * k + [kept] * (4 - k)]
        else:
            with pytest.raises(ValueError, match="input_ids"):
                model(inputs_embeds=embeds)


@pytest.mark.parametrize("label", [label for label in EXAMPLES if label != "vtw"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_rows_never_influence_each_other_and_a_cache_changes_nothing(name: str, label: str) -> None:
    model, _ = models(name, "sdpa")
    rows = [["t3", "i", "t4"], ["t5", "I", "t2"], ["t7"], ["t1", "i", "i", "t3"]]
    with fitted(EXAMPLES[label], model)(model) as trace:
        inputs = make_inputs(name, model, rows)
        together = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
        counts, kept = trace.tokens_per_layer, [trace.kept(layer) for layer in range(4)]
        uncached = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)[:, -4:]
        assert torch.equal(together, uncached)
        for i, row in enumerate(rows):
            inputs = make_inputs(name, model, [row])
            alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
            assert torch.equal(alone[0], together[i])
            assert torch.equal(trace.tokens_per_layer[0], counts[i])
            width = inputs["input_ids"].shape[1]
            for layer in range(4):
                assert torch.equal(trace.kept(layer)[0], kept[layer][i, -width:])


@torch.no_grad()
def test_random_methods_draw_anew_for_another_seed_and_cover_everything() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, [[f"t{n + 3}", "i", "i", "t4"] for n in range(40)])
    valid = inputs["attention_mask"].bool()
    vision = vision_positions(model, inputs["input_ids"])
    for cls in (Rand, RandomVision):
        draws = []
        for seed in range(2):
            with cls(k=1, seed=seed)(model) as trace:
                model(**inputs)
            draws.append(trace.kept(1))
        assert not torch.equal(*draws)
        among = valid if cls is Rand else vision
        share = (draws[0] & among).sum() / among.sum()
        expected = (valid & ~vision).sum() / valid.sum() if cls is Rand else 0.5
        assert abs(share - expected) < 0.1
        if cls is Rand:
            assert 0 < (~draws[0][:, -1]).sum() < 40, "the last prompt token goes sometimes"
