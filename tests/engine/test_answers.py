"""What a method removes depends on the prompt alone, whatever answer or draft stands behind it in the same pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.examples import EXAMPLES
from tests.support.families import make_inputs, make_model
from tests.support.gates import fitted
from vtw_eval import FastV, Method, parse_method
from vtw_eval.engine.calls import cache_of_output, with_cache
from vtw_eval.verify.oracle import extend

CHOOSING = ["fastv,k=1,r=0.5", "pyramiddrop", "random_vision,k=1", "rand,k=1", "random_k", "tome,k=0,r=0.5", "vtw,k=2"]
ANSWER = torch.tensor([[21, 35, 12, 7]])


def tiny(name: str, kind: str = "sdpa", seed: int = 0) -> Any:
    return make_model(name, attn=kind, dtype=torch.float64, seed=seed)


@torch.no_grad()
def stepwise(method: Method, model: Any, inputs: dict[str, Tensor], answer: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of an answer, its tokens fed one by one into the cache of the prompt; and what was kept."""
    found, mask = [], inputs["attention_mask"]
    with method(model) as trace:
        output = model(**inputs, use_cache=True)
        kept = [trace.kept(i) for i in range(len(trace.reduction.layouts))]
        for token in answer.T:
            found.append(output.logits[:, -1].log_softmax(-1).gather(1, token[:, None]))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            step = {"input_ids": token[:, None], "attention_mask": mask, "use_cache": True}
            output = model(**with_cache(model, step, cache_of_output(output)))
    return torch.cat(found, dim=1), kept


@pytest.mark.parametrize("name", ["llava", "internvl"])
@pytest.mark.parametrize("method", EXAMPLES.values(), ids=str)
@torch.no_grad()
def test_scoring_an_answer_in_one_pass_equals_feeding_it_token_by_token(name: str, method: Method) -> None:
    model = tiny(name)
    method = fitted(method, model)
    inputs = make_inputs(name, model, [["t3", "i", "t4"], ["t2", "i", "t1"]])
    answer = ANSWER.expand(2, -1)
    expected, kept = stepwise(method, model, inputs, answer)
    longer, length = extend(name, inputs, answer), inputs["input_ids"].shape[1]
    mask = torch.zeros_like(longer["input_ids"], dtype=torch.bool)
    mask[:, length:] = True
    labels = longer["input_ids"].masked_fill(~mask, -100)
    for told, more in (({"answer_mask": mask}, {}), ({}, {"labels": labels})):
        with method(model, **told) as trace:
            logits = model(**longer, **more).logits[:, length - 1 : -1]
        found = logits.log_softmax(-1).gather(2, answer[..., None])[..., 0]
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
        for i, alone in enumerate(kept):
            assert torch.equal(trace.kept(i)[:, :length], alone)
            assert trace.kept(i)[:, length:].all()


@torch.no_grad()
def test_answers_of_different_lengths_in_a_batch() -> None:
    model = tiny("llava")
    method = FastV(k=1, r=0.5)
    rows = [["t3", "i", "t4"], ["t2", "i", "t6"]]
    prompts = [make_inputs("llava", model, [row]) for row in rows]
    answers = [ANSWER, ANSWER[:, :2]]
    alone = [stepwise(method, model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = [torch.cat([p["input_ids"], a], dim=1)[0] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, ids))
    batch = {
        "input_ids": torch.stack([torch.nn.functional.pad(x, (width - len(x), 0)) for x in ids]),
        "attention_mask": torch.stack([torch.arange(width) >= width - len(x) for x in ids]).long(),
        "pixel_values": torch.cat([p["pixel_values"] for p in prompts]),
    }
    mask = torch.stack([torch.arange(width) >= width - a.shape[1] for a in answers])
    with method(model, answer_mask=mask):
        scores = model(**batch).logits.log_softmax(-1)
    for row, (answer, (expected, _)) in enumerate(zip(answers, alone, strict=True)):
        n = answer.shape[1]
        found = scores[row, width - n - 1 : width - 1].gather(1, answer.T)[:, 0]
        torch.testing.assert_close(found, expected[0], atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_labels_of_a_whole_conversation_are_no_answer() -> None:
    """A loss over the question too: there is no prompt in front of it to choose by."""
    model = tiny("llava")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    with FastV(k=1)(model) as plain:
        model(**inputs)
    with FastV(k=1)(model) as labelled:
        model(**inputs, labels=inputs["input_ids"])
    assert torch.equal(plain.kept(2), labelled.kept(2))


@pytest.mark.parametrize("place", [slice(0, 2), slice(3, 5)], ids=["start", "middle"])
def test_an_answer_mask_that_is_none_is_refused(place: slice) -> None:
    model = tiny("llava")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[:, place] = True
    with pytest.raises(ValueError, match="answer_mask must be the last tokens"), FastV(k=1)(model, answer_mask=mask):
        model(**inputs)


HOW = {
    "look-up": lambda name: {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "assistant": lambda name: {"assistant_model": tiny(name)},
    "other assistant": lambda name: {"assistant_model": tiny(name, seed=50)},
}


@pytest.mark.parametrize("name", ["llava", "internvl"])
@pytest.mark.parametrize("how", HOW)
def test_assisted_decoding_equals_greedy_decoding(name: str, how: str) -> None:
    """The first pass has a draft of the answer behind the prompt, and the cache forgets what was drafted wrong."""
    model = tiny(name)
    inputs = make_inputs(name, model, [["t8", "i", "t9"]])
    for spec in ("baseline", *CHOOSING):
        method = parse_method(spec)
        with method(model) as wanted:
            expected = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        with method(model) as trace:
            found = model.generate(**inputs, max_new_tokens=10, do_sample=False, **HOW[how](name))
        assert torch.equal(found, expected), spec
        assert trace.prefills == 1
        assert torch.equal(trace.tokens_per_layer, wanted.tokens_per_layer), spec


@pytest.mark.parametrize("more", [{"prefill_chunk_size": 4}, {"guidance_scale": 2.0}], ids=str)
def test_a_generation_that_runs_a_part_of_its_prompt_is_refused(more: dict[str, Any]) -> None:
    """The method would choose by the part."""
    model = tiny("llava")
    inputs = make_inputs("llava", model, [["t8", "i", "t9"]])
    with pytest.raises(ValueError, match="prompt as a whole"), FastV(k=1)(model):
        model.generate(**inputs, max_new_tokens=3, do_sample=False, **more)
