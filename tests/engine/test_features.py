"""What the engine must get right beside plain logits, each compared with another way to the same end."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tests.support.families import make_inputs, make_model
from tests.support.oracle import KINDS, models, register_attention, widen_windows
from vtw_eval import VTW, Baseline, Method, RandomK, make_method, parse_method
from vtw_eval.anatomy import UnsupportedModelError, find_anatomy
from vtw_eval.engine.calls import cache_of_output, with_cache
from vtw_eval.verify.oracle import masked, vision_positions

ROWS = KINDS["mixed"]
SEVERAL = ("llava", "qwen2_vl", "gemma3", "mistral3_sliding")


def text_tokens(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return inputs["attention_mask"].bool() & ~vision_positions(model, inputs["input_ids"])


def greedy(model: torch.nn.Module, inputs: dict[str, Tensor], **kwargs: object) -> Tensor:
    return model.generate(**inputs, **{"max_new_tokens": 5, "do_sample": False, **kwargs})


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "num_return_sequences": 2},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_beams": 2, "top_k": 5},
    ],
    ids=["greedy", "sampling", "beams", "beam-sampling"],
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_modes_equal_masked_generation(name: str, mode: dict, use_cache: bool) -> None:
    model, oracle = models(name, "sdpa")
    inputs = make_inputs(name, model, ROWS)
    torch.manual_seed(7)
    with VTW(k=2)(model):
        mine = model.generate(**inputs, max_new_tokens=5, use_cache=use_cache, **mode)
    torch.manual_seed(7)
    with masked(oracle, 2):
        expected = oracle.generate(**inputs, max_new_tokens=5, use_cache=False, **mode)
    assert torch.equal(mine, expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "mistral3"])
@pytest.mark.parametrize("k", [0, 2])
def test_rearranged_positions_equal_renumbering_under_a_mask(name: str, k: int) -> None:
    model, oracle = models(name, "sdpa")
    inputs = make_inputs(name, model, ROWS)
    with VTW(k=k, position="rearrange")(model):
        mine = greedy(model, inputs, output_logits=True, return_dict_in_generate=True)
    with masked(oracle, k, rearrange=True):
        expected = greedy(oracle, inputs, output_logits=True, return_dict_in_generate=True, use_cache=False)
    torch.testing.assert_close(torch.stack(mine.logits), torch.stack(expected.logits), atol=2e-5, rtol=0)
    with VTW(k=k)(model):
        kept = greedy(model, inputs, output_logits=True, return_dict_in_generate=True)
    assert (mine.logits[0] - kept.logits[0]).abs().max() > 1e-4, "positions do not matter in this model"


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma", "idefics3", "mistral3"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_loss_is_the_mean_over_targets_that_a_text_token_predicts(name: str, padding: str) -> None:
    model, oracle = models(name, "sdpa")
    inputs = make_inputs(name, model, ROWS, padding=padding)
    text = text_tokens(model, inputs)
    labels = inputs["input_ids"].masked_fill(~text, -100)
    given = labels.clone()
    predicted = labels.clone()
    predicted[:, 1:].masked_fill_(~text[:, :-1], -100)
    with VTW(k=2)(model):
        mine = model(**inputs, labels=labels)
    assert torch.equal(labels, given), "the caller's labels were changed"
    with masked(oracle, 2), torch.no_grad():
        expected = oracle(**inputs, labels=predicted, use_cache=False)
    torch.testing.assert_close(mine.loss, expected.loss, atol=1e-6, rtol=0)
    mine.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "internvl", "idefics3"])
@pytest.mark.parametrize("k", [0, 2])
@torch.no_grad()
def test_hidden_states_and_attentions_stand_at_their_prompt_places(name: str, k: int) -> None:
    register_attention()
    model, oracle = models(name, "eager")
    inputs = make_inputs(name, model, ROWS)
    recorded = {"output_hidden_states": True, "output_attentions": True}
    with VTW(k=k)(model):
        mine = model(**inputs, **recorded)
        generated = greedy(model, inputs, return_dict_in_generate=True, **recorded)
    with masked(oracle, k):
        expected = oracle(**inputs, **recorded, use_cache=False)
    text = text_tokens(model, inputs)
    assert len(mine.hidden_states) == len(expected.hidden_states)
    for a, b in zip(mine.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[text], b[text], atol=1e-5, rtol=1e-5)
    for a, b in zip(mine.attentions, expected.attentions, strict=True):
        a, b = (x.movedim(1, -1)[text] for x in (a, b))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    length = inputs["input_ids"].shape[1]
    for step, (states, attentions) in enumerate(zip(generated.hidden_states, generated.attentions, strict=True)):
        assert {s.shape[1] for s in states} == {length if step == 0 else 1}
        assert {a.shape[-1] for a in attentions[k:]} == {length + step}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_static_cache_generates_the_same(name: str) -> None:
    model, _ = models(name, "sdpa")
    inputs = make_inputs(name, model, ROWS)
    with VTW(k=2)(model):
        dynamic = greedy(model, inputs)
        static = greedy(model, inputs, cache_implementation="static", disable_compile=True)
        again = greedy(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, dynamic)
    assert torch.equal(again, dynamic)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
@torch.no_grad()
def test_cache_holds_what_the_trace_says(name: str) -> None:
    model, _ = models(name, "sdpa")
    inputs = make_inputs(name, model, [["t3", "i", "t4"], ["t9", "i", "t3"]])
    with VTW(k=2)(model) as trace:
        cache = cache_of_output(model(**inputs, use_cache=True))
    held = torch.tensor([layer.keys.shape[-2] for layer in cache.layers])
    windows = torch.tensor([getattr(layer, "sliding_window", 10**6) - 1 for layer in cache.layers])
    assert torch.equal(
        held,
        torch.minimum(trace.tokens_per_layer.max(dim=0).values, windows).where(
            torch.arange(len(held)) >= 2, torch.tensor(inputs["input_ids"].shape[1]).minimum(windows)
        ),
    )
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@torch.no_grad()
def test_trace_counts_tokens_by_hand() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, ROWS)
    with VTW(k=1)(model) as trace:
        with pytest.raises(RuntimeError, match="trace is empty"):
            _ = trace.tokens_per_layer
        greedy(model, inputs)
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    images = (ids == model.config.image_token_id).sum(1)
    everything = valid.sum(1)
    assert trace.tokens_per_layer.tolist() == [
        [int(n), *[int(n - v)] * 3] for n, v in zip(everything, images, strict=True)
    ]
    assert trace.vision_per_layer.tolist() == [[int(v), 0, 0, 0] for v in images]
    assert torch.equal(trace.kept(1), text_tokens(model, inputs))


@torch.no_grad()
def test_several_tokens_at_once_after_the_prefill() -> None:
    model, oracle = models("llava", "sdpa")
    inputs = make_inputs("llava", model, ROWS)
    more = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    with VTW(k=2)(model):
        cache = cache_of_output(model(**inputs, use_cache=True))
        positions = torch.arange(3)[None] + cache.get_seq_length()
        step = {"input_ids": more, "attention_mask": mask, "position_ids": positions}
        mine = model(**with_cache(model, step, cache)).logits
    with masked(oracle, 2):
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1), "attention_mask": mask}
        expected = oracle(**longer, use_cache=False).logits[:, -3:]
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_copied_and_a_cropped_cache_go_on_alike() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, ROWS)
    token = torch.tensor([[5], [6], [7]])

    def step(cache: DynamicCache) -> Tensor:
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
        return model(**with_cache(model, {"input_ids": token, "attention_mask": mask}, cache)).logits

    with VTW(k=2)(model):
        cache = cache_of_output(model(**inputs, use_cache=True))
        twin = copy.deepcopy(cache)
        first = step(cache)
        assert torch.equal(step(twin), first)
        cache.crop(-1)
        assert torch.equal(step(cache), first)
        with pytest.raises(ValueError, match="not tokens of the prompt"):
            cache.crop(-2)


@pytest.mark.parametrize("method", [RandomK(low=0, high=4, seed=3), VTW(k=2), Baseline()])
@torch.no_grad()
def test_rows_do_not_depend_on_batch_or_order(method: Method) -> None:
    model, _ = models("llava", "sdpa")
    rows = [["t3", "i", "t4"], ["t5", "i", "t2"], ["t7"], ["t1", "i", "i", "t3"], ["t2", "i", "t2"], ["t4", "i", "t9"]]
    with method(model) as trace:
        together = greedy(model, make_inputs("llava", model, rows))[:, -5:]
        counts = trace.tokens_per_layer
        backwards = greedy(model, make_inputs("llava", model, rows[::-1]))[:, -5:].flip(0)
        assert torch.equal(trace.tokens_per_layer.flip(0), counts)
        for i, row in enumerate(rows):
            alone = greedy(model, make_inputs("llava", model, [row]))[:, -5:]
            assert torch.equal(trace.tokens_per_layer[0], counts[i])
            assert torch.equal(alone[0], together[i])
    assert torch.equal(backwards, together)


@torch.no_grad()
def test_random_k_draws_every_layer_and_keeps_its_draw_without_cache() -> None:
    model, _ = models("llava", "sdpa")
    rows = [[f"t{2 + n}", "i", "t4"] for n in range(30)]
    inputs = make_inputs("llava", model, rows)
    with RandomK(low=1, high=3)(model) as trace:
        cached = greedy(model, inputs)
        ks = (trace.vision_per_layer > 0).sum(1)
        uncached = greedy(model, inputs, use_cache=False)
        assert torch.equal((trace.vision_per_layer > 0).sum(1), ks)
    assert set(ks.tolist()) == {1, 2, 3}
    assert torch.equal(cached, uncached)
    with RandomK(low=1, high=3, seed=1)(model) as trace:
        model(**inputs)
        assert not torch.equal((trace.vision_per_layer > 0).sum(1), ks)


@torch.no_grad()
def test_a_removed_method_leaves_nothing_behind() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, ROWS)
    before = model(**inputs).logits
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with VTW(k=1)(model):
        assert not torch.equal(model(**inputs).logits, before)
        with pytest.raises(RuntimeError, match="installed on this model already"), VTW(k=2)(model):
            pass
    with pytest.raises(KeyError), VTW(k=1)(model):
        raise KeyError
    with pytest.raises(TypeError), VTW(k=1)(model):
        model(input_ids="not a tensor")
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_embeds_with_a_vision_mask_equal_ids() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t5"]])
    vision = vision_positions(model, inputs["input_ids"])
    with VTW(k=2)(model):
        expected = greedy(model, inputs)[:, inputs["input_ids"].shape[1] :]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    embeds = embeds.masked_scatter(vision[..., None], torch.cat(list(features)))
    prompt = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    with VTW(k=2)(model, vision_mask=vision):
        assert torch.equal(greedy(model, prompt), expected)
        assert greedy(model, prompt, num_beams=2).shape[0] == 2
    with VTW(k=2)(model), pytest.raises(ValueError, match="vision_mask"):
        greedy(model, prompt)
    with VTW(k=2)(model, vision_mask=vision[:, 1:]), pytest.raises(ValueError, match="vision_mask has shape"):
        greedy(model, prompt)
    with RandomK(low=1, high=3)(model) as trace:
        drawn = greedy(model, inputs)[:, inputs["input_ids"].shape[1] :]
        counts = trace.tokens_per_layer
    with RandomK(low=1, high=3)(model, vision_mask=vision, prompt_ids=inputs["input_ids"]) as trace:
        assert torch.equal(greedy(model, prompt), drawn)
        assert torch.equal(trace.tokens_per_layer, counts)
    with RandomK(low=1, high=3)(model, vision_mask=vision), pytest.raises(ValueError, match="input_ids"):
        greedy(model, prompt)


@torch.no_grad()
def test_what_cannot_be_right_is_refused() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    ends_in_image = make_inputs("llava", model, [["t3", "i"]])
    with VTW(k=2)(model):
        with pytest.raises(ValueError, match="ends in a vision token"):
            model(**ends_in_image)
        cache = DynamicCache()
        model(**with_cache(model, inputs, cache))
        later = {"input_ids": ends_in_image["input_ids"], "pixel_values": inputs["pixel_values"]}
        with pytest.raises(ValueError, match="after the prefill"):
            model(**with_cache(model, later, cache))
        with pytest.raises(ValueError, match="return_dict"):
            model(**inputs, output_hidden_states=True, return_dict=False)
    foreign = cache_of_output(model(**inputs, use_cache=True))
    with VTW(k=2)(model), pytest.raises(ValueError, match="without this method"):
        model(**with_cache(model, {"input_ids": torch.tensor([[5]])}, foreign))


def test_gradient_checkpointing_is_refused() -> None:
    model = make_model("llava", attn="sdpa").train()
    model.gradient_checkpointing_enable()
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    with VTW(k=2)(model), pytest.raises(ValueError, match="gradient checkpointing"):
        model(**inputs)


def test_flex_attention_is_refused() -> None:
    model = make_model("llava", attn="sdpa")
    model.config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention"), VTW(k=2)(model):
        pass


def test_flash_attention_beyond_a_sliding_window_is_refused() -> None:
    model, _ = models("mistral3_sliding", "reference_fa")
    long = make_inputs("mistral3_sliding", model, [["t9", "i", "t9"]])
    with VTW(k=2)(model), pytest.raises(ValueError, match="sliding window"):
        model(**long)


@torch.no_grad()
def test_several_tokens_on_a_reduced_cache_beyond_a_sliding_window_are_refused() -> None:
    """A later turn under FlashAttention: its 2-D mask can cut the window for the last query only."""
    model, _ = models("mistral3_sliding", "reference_fa")
    inputs = make_inputs("mistral3_sliding", model, [["t1", "i", "t2"]])
    widen_windows(model, inputs["input_ids"].shape[1] + 3)
    with VTW(k=2)(model):
        cache = cache_of_output(model(**inputs, use_cache=True))
        turn = {"input_ids": torch.tensor([[20, 30]])}
        model(**with_cache(model, turn, cache))  # within the window
        with pytest.raises(ValueError, match="sliding window"):
            model(**with_cache(model, turn, cache))


@pytest.mark.parametrize("spec", ["vtw,k=5", "vtw,k=99", "random_k,low=0,high=9", "random_k,low=3,high=2"])
def test_impossible_layers_name_the_range(spec: str) -> None:
    model, _ = models("llava", "sdpa")
    with pytest.raises(ValueError, match=r"0\.\.4|above high"), parse_method(spec)(model):
        pass


def test_families_that_cannot_be_right_or_are_untested() -> None:
    model = make_model("llava", attn="sdpa")
    text_only = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(UnsupportedModelError, match="text-only"):
        find_anatomy(text_only)
    model.config.model_type = "llama4"
    with pytest.raises(UnsupportedModelError, match="positions"), VTW(k=2)(model, allow_untested=True):
        pass
    model.config.model_type = "brand_new"
    with pytest.raises(UnsupportedModelError, match="allow_untested"), VTW(k=2)(model):
        pass
    with VTW(k=2)(model, allow_untested=True):
        pass


def test_default_k_is_the_papers_or_half() -> None:
    model = make_model("llava", attn="sdpa")
    anatomy = find_anatomy(model)
    assert VTW().bind(anatomy).k == 2
    deep = copy.copy(anatomy)
    object.__setattr__(deep, "layers", (None,) * 40)
    for name, k in [
        ("llava-hf/llava-1.5-7b-hf", 16),
        ("liuhaotian/llava-v1.5-13b", 20),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", 16),
        ("LanguageBind/Video-LLaVA-7B-hf", 16),
        ("Qwen/Qwen2-VL-2B-Instruct", 18),
        ("OpenGVLab/InternVL2-4B", 16),
        ("somebody/else", 20),
    ]:
        object.__setattr__(deep, "name", name)
        assert VTW().bind(deep).k == k, name
    assert make_method("random_k").bind(deep) == RandomK(low=10, high=30)
