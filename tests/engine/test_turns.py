"""Later turns on a reduced cache answer as the whole conversation does when the removed tokens are hidden in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_prefix import SHARING
from tests.support.families import make_inputs, make_model
from vtw_eval import Method, parse_method
from vtw_eval.engine import Trace
from vtw_eval.engine.turns import Held, TurnError, common, first_turn, next_turn
from vtw_eval.verify.oracle import extend, oracle_logits, traced

GREEDY = {"max_new_tokens": 4, "do_sample": False}
QUESTIONS = [[20, 30, 40, 50], [22, 33], [60]]
OTHER = ["t2", "I", "i", "t5"]


@torch.no_grad()
def talk(name: str, model: Any, method: Method) -> tuple[dict[str, Tensor], Trace, list[tuple[int, Tensor]]]:
    """Hold a conversation, each turn in a ``with`` block of its own and other prompts between them.

    Returns the inputs of the first prompt, its trace, and of each answer where it begins and the tokens up to its end.
    """
    inputs = make_inputs(name, model, [["t3", "i", "t2"]])
    with method(model) as trace:
        tokens, held = first_turn(model, inputs, GREEDY)
    answers = [(inputs["input_ids"].shape[1], torch.cat([inputs["input_ids"], tokens[None]], dim=1))]
    for question in QUESTIONS:
        with parse_method("baseline")(model):  # another conversation, about pictures of other sizes
            first_turn(model, make_inputs(name, model, [OTHER]), GREEDY)
        ids = torch.cat([answers[-1][1], torch.tensor([question])], dim=1)
        with method(model):
            tokens, held = next_turn(model, held, ids, GREEDY)
        answers.append((ids.shape[1], torch.cat([ids, tokens[None]], dim=1)))
    return inputs, trace, answers


def whole(name: str, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a conversation in one prompt."""
    return extend(name, inputs, ids[:, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", SHARING)
def test_answers_are_those_of_the_masked_conversation(name: str) -> None:
    model, oracle = make_model(name, attn="sdpa"), make_model(name, attn="sdpa")
    for spec in ("vtw,k=2", "fastv,k=1,r=0.5", "baseline", "vtw,k=0,position=rearrange"):
        inputs, trace, answers = talk(name, model, parse_method(spec))
        logits = oracle_logits(
            oracle, whole(name, inputs, answers[-1][1]), traced(trace), rearrange="rearrange" in spec
        )
        for begin, ids in answers:
            expected = logits[0, begin - 1 : ids.shape[1] - 1].argmax(-1)
            assert torch.equal(ids[0, begin:], expected), spec


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("spec", ["tome", "downsample", "vtw,k=2"])
@torch.no_grad()
def test_answers_are_those_of_one_prompt_where_the_choice_asks_no_question(name: str, spec: str) -> None:
    """Merges cannot be hidden by masks: the method runs on the whole conversation at once."""
    model, method = make_model(name, attn="sdpa"), parse_method(spec)
    inputs, _, answers = talk(name, model, method)
    for begin, ids in answers:
        with method(model):
            again = model.generate(**whole(name, inputs, ids[:, :begin]), **GREEDY)
        assert torch.equal(again, ids)


def held_after(name: str, spec: str) -> tuple[Any, Held, Tensor]:
    model = make_model(name, attn="sdpa")
    with torch.no_grad(), parse_method(spec)(model):
        tokens, held = first_turn(model, make_inputs(name, model, [["t3", "i", "t2"]]), GREEDY)
    return model, held, torch.cat([held.ids, tokens[None, -1:], torch.tensor([[20, 30]])], dim=1)


@pytest.mark.parametrize("spec", ["vtw,k=2", "baseline"])
@torch.no_grad()
def test_what_the_template_changes_of_an_answer_runs_again(spec: str) -> None:
    method = parse_method(spec)
    model, held, ids = held_after("llava", spec)
    changed = ids.clone()
    changed[0, held.first + 1] = 99 if ids[0, held.first + 1] != 99 else 98
    assert common(held, changed) == held.first + 1
    with method(model) as trace:
        wanted = model.generate(**whole("llava", make_inputs("llava", model, [["t3", "i", "t2"]]), changed), **GREEDY)
    assert trace.prefills == 1
    with method(model):
        tokens, after = next_turn(model, held, changed, GREEDY)
    assert torch.equal(tokens, wanted[0, changed.shape[1] :])
    assert torch.equal(after.ids[:, : changed.shape[1]], changed)
    changed[0, 1] += 1
    with method(model), pytest.raises(TurnError, match="begins otherwise than before"):
        next_turn(model, after, changed, GREEDY)


@torch.no_grad()
def test_a_cache_goes_on_under_its_own_method_only() -> None:
    model, held, ids = held_after("llava", "vtw,k=1")
    for other in ("vtw,k=3", "baseline"):
        with parse_method(other)(model), pytest.raises(ValueError, match="filled under another method"):
            next_turn(model, held, ids, GREEDY)
    model, held, ids = held_after("llava", "baseline")
    with parse_method("vtw,k=1")(model), pytest.raises(ValueError, match="filled without this method"):
        next_turn(model, held, ids, GREEDY)


@torch.no_grad()
def test_what_cannot_go_on_is_refused() -> None:
    model, held, ids = held_after("gemma3", "vtw,k=2")
    with parse_method("vtw,k=2")(model), pytest.raises(TurnError, match="see some that follow"):
        next_turn(model, held, ids, GREEDY)
    model = make_model("qwen2_5_vl", attn="sdpa")
    inputs = make_inputs("qwen2_5_vl", model, [["t1", "V", "t2"]])
    _, held = first_turn(model, inputs, GREEDY)
    assert not held.steady
    with pytest.raises(TurnError, match="positions in a video"):
        next_turn(model, held, torch.cat([held.ids, torch.tensor([[20, 30]])], dim=1), GREEDY)
