"""Prompts that enter the decoder behind an unchanged prefix are answered as alone, by methods that see the question."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_prefix import ROWS, SHARING, alone
from tests.methods.examples import EXAMPLES
from tests.support.families import make_inputs, make_model
from tests.support.gates import fitted
from tests.support.oracle import FLASH, register_attention
from vtw_eval import Method
from vtw_eval.anatomy import Anatomy, find_anatomy
from vtw_eval.engine import Reads, install
from vtw_eval.engine.calls import entering
from vtw_eval.engine.entry import Entry, UnchangedPrefix, run_unchanged
from vtw_eval.engine.prefix import run_prefix
from vtw_eval.models.late import Need, need_of

ASKED = [(0, [20, 30, 40, 50]), (2, [22, 33, 44, 55, 66, 77, 88, 99, 11]), (0, [21])]
"""Prefix and own tokens of prompts of different length; one prefix is asked nothing, two begin alike."""

GREEDY = {"max_new_tokens": 3, "do_sample": False}

LATE = {
    label: method
    for label, method in EXAMPLES.items()
    if not method.question_independent and Reads.TOWER not in method.reads and not method.frozen_layers(4)
}

Found = tuple[Tensor, list[list[int]], list[list[int]]]
"""New tokens, tokens per layer and vision tokens per layer of each prompt."""


@torch.no_grad()
def each_alone(name: str, model: nn.Module, method: Method, greedy: Any = GREEDY) -> Found:
    tokens, layers, vision = [], [], []
    with method(model) as trace:
        for row, question in ASKED:
            tokens.append(alone(name, model, ROWS[row], question, greedy))
            layers += trace.tokens_per_layer.tolist()
            vision += trace.vision_per_layer.tolist()
    return torch.stack(tokens), layers, vision


def unchanged(name: str, model: nn.Module, need: Need) -> UnchangedPrefix:
    found = run_unchanged(find_anatomy(model), make_inputs(name, model, ROWS), need.layers, need.depth)
    run_prefix(model, make_inputs(name, model, [["t9", "I", "i", "t4"]]))  # another one in between
    return found


@torch.no_grad()
def together(prefix: UnchangedPrefix, model: Any, method: Method, greedy: Any = GREEDY) -> Found:
    entry = Entry(prefix, [row for row, _ in ASKED], [question for _, question in ASKED])
    with install(method, model, prompt_ids=entry.inputs["input_ids"], entry=entry) as trace:
        output = model.generate(**entry.inputs, **greedy)
    return output[:, entry.length :], trace.tokens_per_layer.tolist(), trace.vision_per_layer.tolist()


def check(name: str, model: nn.Module, methods: Sequence[Method]) -> set[str]:
    """Check that all methods, on one unchanged prefix, do what they do to prompts alone; return the answers."""
    bound = [fitted(method, model).bind(find_anatomy(model)) for method in methods]
    needs = [need_of(method, find_anatomy(model)) for method in bound]
    prefix = unchanged(name, model, functools.reduce(lambda one, other: one | other, needs))
    answers = set()
    for method in bound:
        wanted = each_alone(name, model, method)
        found = together(prefix, model, method)
        assert torch.equal(found[0], wanted[0]), method
        assert found[1:] == wanted[1:], method
        answers |= set(map(str, wanted[0].tolist()))
    return answers


@pytest.mark.parametrize("name", SHARING)
def test_every_family(name: str) -> None:
    """One method whose rows leave as a whole, and one that drops and merges in stages and numbers anew."""
    methods = [EXAMPLES["dyvte"], EXAMPLES["sparsevlm"]]
    assert len(check(name, make_model(name, attn="sdpa"), methods)) >= len(ASKED)


@pytest.mark.parametrize("label", LATE)
def test_every_method_that_looks_at_the_question(label: str) -> None:
    check("llava", make_model("llava", attn="sdpa"), [EXAMPLES[label]])


@pytest.mark.parametrize(("name", "attention"), [("llava", "eager"), ("qwen2_vl", FLASH)])
def test_other_attention(name: str, attention: str) -> None:
    if attention == FLASH:
        register_attention()
    model = make_model(name, attn=attention, dtype=torch.float32)
    check(name, model, [EXAMPLES[label] for label in ("random_k", "fastv, tokens")])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_repetition_penalty_sees_no_other_tokens(name: str) -> None:
    model = make_model(name, attn="sdpa")
    method = EXAMPLES["fastv"].bind(find_anatomy(model))
    greedy = {**GREEDY, "repetition_penalty": 3.0}
    prefix = unchanged(name, model, need_of(method, find_anatomy(model)))
    wanted = each_alone(name, model, method, greedy)
    assert torch.equal(together(prefix, model, method, greedy)[0], wanted[0])
    assert not torch.equal(each_alone(name, model, method)[0], wanted[0])


def ran(anatomy: Anatomy, work: Any) -> list[list[int]]:
    """Return how many tokens each layer got in each of its passes while ``work()`` was done."""
    seen: list[list[int]] = [[] for _ in anatomy.layers]

    def note(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[i].append(entering(layer, args, kwargs)[0].shape[1])

    handles = [
        layer.self_attn.register_forward_pre_hook(functools.partial(note, i), with_kwargs=True)  # type: ignore[operator, union-attr]
        for i, layer in enumerate(anatomy.layers)
    ]
    work()
    for handle in handles:
        handle.remove()
    return seen


def test_layers_below_the_choice_run_once_on_the_image() -> None:
    model = make_model("llava", attn="sdpa")
    anatomy = find_anatomy(model)
    method = EXAMPLES["fastv"].bind(anatomy)
    made: list[UnchangedPrefix] = []
    length = make_inputs("llava", model, ROWS)["input_ids"].shape[1]

    def begin() -> None:
        need = need_of(method, anatomy)
        made.append(run_unchanged(anatomy, make_inputs("llava", model, ROWS), need.layers, need.depth))

    assert ran(anatomy, begin) == [[length], [length], [], []]
    kept = max(row[2] for row in each_alone("llava", model, method)[1])
    longest = max(len(question) for _, question in ASKED)
    passes = ran(anatomy, lambda: together(made[0], model, method, {**GREEDY, "max_new_tokens": 1}))
    assert [each[0] for each in passes] == [longest, longest, kept, kept]
    assert longest < kept < length + longest


def test_all_stay_together_until_the_first_row_leaves() -> None:
    model = make_model("llava", attn="sdpa")
    anatomy = find_anatomy(model)
    late = EXAMPLES["random_k"].bind(anatomy)
    ks = [[layer for layer in range(4) if not row[layer]] for row in each_alone("llava", model, late)[2]]
    first = min(k[0] for k in ks if k)
    prefix = unchanged("llava", model, need_of(late, anatomy))
    entry = Entry(prefix, [row for row, _ in ASKED], [question for _, question in ASKED])
    with install(late, model, entry=entry), torch.no_grad():
        model.generate(**entry.inputs, **GREEDY)  # type: ignore[operator]
    assert entry.at == first


def test_a_prefix_that_has_not_run_far_enough_is_refused() -> None:
    model = make_model("llava", attn="sdpa")
    anatomy = find_anatomy(model)
    with pytest.raises(ValueError, match="cannot be entered behind 1 of 4 layers"):
        run_unchanged(anatomy, make_inputs("llava", model, ROWS), [2], 1)
    prefix = unchanged("llava", model, Need(frozenset(), 1))
    with pytest.raises(ValueError, match="layer 1 has to see whole prompts, but what they begin with was not kept"):
        together(prefix, model, EXAMPLES["fastv"].bind(anatomy))


def test_other_prompts_than_those_that_enter_are_refused() -> None:
    model = make_model("llava", attn="sdpa")
    method = EXAMPLES["fastv"].bind(find_anatomy(model))
    entry = Entry(unchanged("llava", model, need_of(method, find_anatomy(model))), [0], [[20]])
    with pytest.raises(ValueError, match="were to enter late"), install(method, model, entry=entry):
        alone("llava", model, ROWS[0], [20, 30])


def test_the_vision_tower_is_not_that_of_other_rows() -> None:
    model = make_model("llava", attn="sdpa")
    method = EXAMPLES["mmtok"].bind(find_anatomy(model))
    prefix = unchanged("llava", model, Need(frozenset({0}), 0))
    with pytest.raises(ValueError, match="the vision tower, which has not run for this prompt"):
        together(prefix, model, method)
