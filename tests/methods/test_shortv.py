"""ShortV: layers that leave vision tokens as they are, against a loop over the model's own layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.families import make_inputs, make_model
from tests.support.oracle import FLASH, KINDS, models
from vtw_eval.cost import PRESETS, exact_prefill_flops, profiler_prefill_flops
from vtw_eval.cost.dry_run import dry_run
from vtw_eval.cost.eq1 import eq1_prefill_flops
from vtw_eval.cost.measure.counted import counted_costs
from vtw_eval.methods import Baseline
from vtw_eval.methods.layer_order import LayerOrder, find_order
from vtw_eval.methods.shortv import PUBLISHED, ShortV
from vtw_eval.models.traces import counts_of

LLAVA = PRESETS["llava-1.5-7b"]


def looped(model: PreTrainedModel, inputs: dict[str, Tensor], frozen: set[int]) -> Tensor:
    """Return logits of one prompt: every layer runs on all tokens, and some give vision tokens back as they were."""
    decoder: Any = model.model.language_model
    entered: list[Tensor] = []
    handle = decoder.layers[0].register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    model(**inputs)
    handle.remove()
    [hidden] = entered
    length = hidden.shape[1]
    places = torch.arange(length)[None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    vision = inputs["input_ids"] == model.config.image_token_id
    for i, layer in enumerate(decoder.layers):
        rotary = decoder.rotary_emb(hidden, places)
        new = layer(hidden, attention_mask=causal, position_ids=places, position_embeddings=rotary)
        hidden = torch.where(vision[:, :, None], hidden, new) if i in frozen else new
    return model.lm_head(decoder.norm(hidden))


@pytest.mark.parametrize("frozen", [(3,), (0, 2), (1, 2), (0, 1, 2, 3)])
@torch.no_grad()
def test_it_is_a_loop_that_puts_vision_tokens_back(frozen: tuple[int, ...]) -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, KINDS["single"])
    plain, expected = model(**inputs).logits, looped(model, inputs, set(frozen))
    method = ShortV(order="-".join(map(str, frozen)))
    with method(model) as trace:
        for use_cache in (False, True):
            logits = model(**inputs, use_cache=use_cache).logits
            torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)
        recorded = model(**inputs, output_hidden_states=True).hidden_states
    vision = inputs["input_ids"] == model.config.image_token_id
    for i, (before, after) in enumerate(itertools.pairwise(recorded[:-1])):
        assert torch.equal(before[vision], after[vision]) == (i in frozen)
        assert not torch.equal(before[~vision], after[~vision])
    assert float((expected - plain)[:, -1].abs().max()) > 1e-3 or frozen == (3,)  # nothing reads the last layer's
    assert trace.tokens_per_layer.tolist() == [[11] * 4]
    assert trace.updated_per_layer.tolist() == [[7 if i in frozen else 11 for i in range(4)]]


@torch.no_grad()
def test_frozen_layers_really_run_on_text_alone() -> None:
    model, _ = models("llava_gqa", "sdpa")
    inputs = make_inputs("llava_gqa", model, KINDS["mixed"])  # text of 7, 7 and 4 tokens
    ran: dict[str, list[int]] = {"q_proj": [], "k_proj": [], "o_proj": []}
    layer = model.model.language_model.layers[1]
    handles = [
        getattr(layer.self_attn, name).register_forward_hook(lambda m, args, out, at=at: at.append(args[0].shape[1]))
        for name, at in ran.items()
    ]
    with ShortV(order="1")(model):
        model(**inputs)
    for handle in handles:
        handle.remove()
    length = inputs["input_ids"].shape[1]
    assert ran == {"q_proj": [0, 7], "k_proj": [length - 7, 7], "o_proj": [7]}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_a_static_cache_holds_the_same(name: str) -> None:
    model, _ = models(name, "sdpa")
    inputs = make_inputs(name, model, KINDS["mixed"])
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with ShortV(order="0-2")(model):
        dynamic = model.generate(**inputs, **options)
        static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), atol=2e-5, rtol=0)


@torch.no_grad()
def test_what_is_kept_of_it() -> None:
    model, _ = models("llava_gqa", "sdpa")
    inputs = make_inputs("llava_gqa", model, KINDS["mixed"])
    with ShortV(order="1-2")(model) as trace:
        model(**inputs)
    found = counts_of(trace, 1)
    assert [each.updated_per_layer for each in found] == [(11, 7, 7, 11), (7, 7, 7, 7), (12, 4, 4, 12)]
    assert [each.tokens_per_layer for each in found] == [(11,) * 4, (7,) * 4, (12,) * 4]
    assert found[2].behind(3).updated_per_layer == (15, 7, 7, 15)
    with Baseline()(model) as trace:
        model(**inputs)
    assert [each.updated_per_layer for each in counts_of(trace, 1)] == [()] * 3


def test_what_a_frozen_vision_token_costs() -> None:
    tokens, updated = torch.tensor([[642.0] * 32]), torch.tensor([[66.0] * 32])
    for costs in (
        lambda u: float(profiler_prefill_flops(tokens, LLAVA, updated=u)),
        lambda u: float(exact_prefill_flops(tokens, LLAVA, updated=u)) - 4 * 4096 * 32 * float((u * tokens).sum() / 32),
    ):
        saved = (costs(tokens) - costs(updated)) / (2 * 576 * 32 * LLAVA.layer_macs)
        assert (
            1 - saved == pytest.approx(2 * 4096**2 / (4 * 4096**2 + 3 * 4096 * 11008)) == pytest.approx(0.166, abs=5e-4)
        )
    # By Eq. 1's own terms: k and v of 12 h^2, and queries of text alone.
    assert float(eq1_prefill_flops(tokens[:, :1], 8, updated[:, :1])) == 2 * (
        2 * 66 * 642 * 8 + 12 * 66 * 64 + 2 * 576 * 64
    )
    for wrong in (torch.tensor([[643.0] * 32]), updated[0]):
        with pytest.raises(ValueError, match="number of each layer's tokens"):
            exact_prefill_flops(tokens, LLAVA, updated=wrong)


def test_the_flops_that_are_printed() -> None:
    """LLaVA-1.5-7B with 19 of 32 layers frozen: 4.79 TFLOPs by the convention of the field's tables."""
    run = dry_run(ShortV(), 32, text=65.9, vision=576, name="llava-1.5-7b")
    assert f"{float(profiler_prefill_flops(run.tokens, LLAVA, updated=run.updated)) / 1e12:.2f}" == "4.79"
    assert run.tokens.unique().tolist() == [pytest.approx(641.9)]
    [_, found] = counted_costs(LLAVA, [ShortV(n=3)], text=66, vision=576)
    assert found.unexplained == []
    assert found.exact < 8.6e12


def test_the_published_list() -> None:
    assert len(PUBLISHED) == 19 and ShortV().frozen_layers(32) == PUBLISHED
    assert ShortV(n=2).frozen_layers(32) == (31, 29)
    assert ShortV().scaled(0.5, 32).n == 10 and ShortV().scaled(0, 32).frozen_layers(32) == ()
    assert not ShortV().question_independent


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: ShortV(order="1-2-1"), "twice"),
        (lambda: ShortV(order="1-x"), "joined by dashes"),
        (lambda: ShortV(n=20), r"0\.\.19"),
        (lambda: ShortV(order="1-2", n=3), r"0\.\.2"),
        (lambda: ShortV()(make_model("llava")).__enter__(), "give order="),
        (lambda: ShortV(order="4")(make_model("llava")).__enter__(), r"layer 4, but .* 0\.\.3"),
        (lambda: ShortV(order="1")(models("llava", FLASH)[0]).__enter__(), "attn_implementation='sdpa'"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made()


@torch.no_grad()
def test_what_a_frozen_layer_cannot_give_is_refused() -> None:
    model = make_model("llava", attn="eager")
    inputs = make_inputs("llava", model, KINDS["single"])
    with ShortV(order="1")(model), pytest.raises(ValueError, match="output_attentions"):
        model(**inputs, output_attentions=True)
    model.model.language_model.layers[1].compile(backend="eager")
    with pytest.raises(ValueError, match="compiled one by one"), ShortV(order="1")(model):
        pass


# --- which layers


@torch.no_grad()
def test_the_order_is_that_of_a_loop_over_layers() -> None:
    model, _ = models("llava", "sdpa")
    samples = [make_inputs("llava", model, KINDS["single"]), make_inputs("llava", model, [["t2", "i", "i", "t6"]])]
    ticks: list[int] = []
    found = find_order(model, samples, advance=lambda: ticks.append(1))
    for row, inputs in enumerate(samples):
        p = looped(model, inputs, set())[0, -1].softmax(dim=-1)
        for layer in range(4):
            q = looped(model, inputs, {layer})[0, -1].softmax(dim=-1)
            expected = float(sum(a * (a / b).log() for a, b in zip(p, q, strict=True)))
            assert float(found.divergence[row, layer]) == pytest.approx(expected, abs=1e-10)
    assert len(ticks) == 2
    assert found.order[0] == 3, "what the last layer makes of vision tokens is read by nothing"
    assert [found.mean[i] for i in found.order] == sorted(found.mean.tolist())
    assert found.method(2) == ShortV(order=f"3-{found.order[1]}")
    with pytest.raises(ValueError, match="no samples"):
        find_order(model, [])


def test_of_equal_layers_the_later_goes_first() -> None:
    assert LayerOrder(torch.tensor([[0.5, 0.0, 0.5, 0.0]])).order == (3, 1, 2, 0)
