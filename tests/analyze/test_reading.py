"""Shares, means, variances and entropies against loops over eager attention, and answers against a generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.families import make_inputs
from tests.support.oracle import models
from vtw_eval import VTW, Baseline
from vtw_eval.analyze import read_answer
from vtw_eval.analyze.reading import extended
from vtw_eval.analyze.roles import ROLES, roles
from vtw_eval.analyze.sums import LayerNumbers
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Entering, install
from vtw_eval.verify.oracle import masked, vision_positions

ANSWER = torch.tensor([[21, 34, 55, 13]])
"""Ordinary text tokens."""


def tokens_of(model: Any, inputs: dict[str, Tensor], answer: int) -> list[str]:
    """Name the role of each token of a prompt and the answer behind it."""
    vision = vision_positions(model, inputs["input_ids"])[0].tolist()
    first, last = vision.index(True), len(vision) - 1 - vision[::-1].index(True)
    named = [
        "vision" if seen else "system" if i < first else "instruction" if i > last else "between"
        for i, seen in enumerate(vision)
    ]
    return named + ["output"] * answer


def expected(weights: Tensor, seen: Tensor, names: list[str]) -> dict[str, Any]:
    """Compute the numbers of one layer, ``[heads, tokens, tokens]``, pair by pair."""
    heads, length = len(weights), len(names)
    prompt = [i for i in range(length) if names[i] != "output"]
    answering = [prompt[-1], *range(len(prompt), length)]
    shares = [
        [
            sum(float(weights[h, q, t]) for h in range(heads) for t in range(length) if names[t] == role) / heads
            for role in ROLES
        ]
        + [sum(float(weights[h, q, 0]) for h in range(heads)) / heads]
        for q in answering
    ]
    found: dict[str, Any] = {"shares": shares, "mean": [], "variance": [], "mass": [], "entropy": [], "partial": []}
    for asking, asked in (("vision", "vision"), ("text", "vision"), ("text", "text")):
        pairs, masses, entropies, partials = [], [], [], []
        for h in range(heads):
            for q in prompt:
                if (names[q] == "vision") != (asking == "vision"):
                    continue
                row = [
                    float(weights[h, q, t])
                    for t in prompt
                    if (names[t] == "vision") == (asked == "vision") and seen[q, t]
                ]
                if row:
                    pairs += row
                    masses.append(sum(row))
                    partials.append(-sum(w * math.log(w) for w in row if w))
                    entropies.append(-sum(w / sum(row) * math.log(w / sum(row)) for w in row if w))
        for name, values in {"mean": pairs, "mass": masses, "entropy": entropies, "partial": partials}.items():
            found[name].append(sum(values) / len(values) if values else math.nan)
        average = found["mean"][-1]
        found["variance"].append(sum((w - average) ** 2 for w in pairs) / len(pairs) if pairs else math.nan)
    return found


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mistral3"])
@torch.no_grad()
def test_the_numbers_are_those_of_loops_over_eager_attention(name: str) -> None:
    model, _ = models(name, "sdpa")
    eager, _ = models(name, "eager")
    layers = find_anatomy(model).num_layers
    inputs = make_inputs(name, model, [["t3", "i", "t2", "I", "t4"]])
    whole = extended(inputs, ANSWER[:, :-1])
    names = tokens_of(model, inputs, ANSWER.shape[1] - 1)
    for k in (layers, 2):
        reading = read_answer(model, Baseline() if k == layers else VTW(k=k), inputs, ANSWER)
        with masked(eager, k):
            output = eager(**whole, output_attentions=True, use_cache=False)
        best = output.logits[0, -ANSWER.shape[1] :].argmax(dim=-1)
        assert reading.predicted == int((best == ANSWER[0]).sum()) and reading.tokens == ANSWER.shape[1]
        assert reading.counts == tuple(names.count(role) for role in ROLES)
        for layer, (numbers, weights) in enumerate(zip(reading.layers, output.attentions, strict=True)):
            gone = layer >= k
            seen = (weights[0] > 0).any(dim=0)
            shown = [i for i, role in enumerate(names) if role != "vision"] if gone else list(range(len(names)))
            kept = torch.tensor(shown)
            own = expected(weights[0][:, kept][:, :, kept], seen[kept][:, kept], [names[i] for i in shown])
            assert_equal(numbers, own)
            assert bool(numbers.mean[:2].isnan().all()) == gone


def assert_equal(numbers: LayerNumbers, own: dict[str, Any]) -> None:
    """Compare with what loops have found."""
    for value, name in (
        (numbers.shares, "shares"),
        (numbers.mean, "mean"),
        (numbers.variance, "variance"),
        (numbers.mass, "mass"),
        (numbers.entropy, "entropy"),
        (numbers.partial_entropy, "partial"),
    ):
        torch.testing.assert_close(value, torch.tensor(own[name]).to(value), atol=1e-5, rtol=1e-5, equal_nan=True)
    torch.testing.assert_close(numbers.shares[:, : len(ROLES)].sum(dim=1), torch.ones(len(numbers.shares)).double())


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl"])
@torch.no_grad()
def test_a_generated_token_attends_as_it_did_when_it_was_generated(name: str) -> None:
    model, _ = models(name, "sdpa")
    eager, _ = models(name, "eager")
    inputs = make_inputs(name, model, [["t3", "i", "t4"]])
    asked = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_attentions": True}
    made = eager.generate(**inputs, **asked)
    answer = made.sequences[:, inputs["input_ids"].shape[1] :]
    reading = read_answer(model, Baseline(), inputs, answer)
    assert reading.predicted == reading.tokens == 4
    names = tokens_of(model, inputs, 3)
    for token, step in enumerate(made.attentions):
        for layer, weights in enumerate(step):
            row = weights[0, :, -1].mean(dim=0)
            own = [float(sum(w for w, role in zip(row, names, strict=False) if role == of)) for of in ROLES]
            torch.testing.assert_close(
                reading.layers[layer].shares[token, : len(ROLES)], torch.tensor(own).double(), atol=1e-6, rtol=1e-5
            )


@torch.no_grad()
def test_roles_are_told_by_the_first_and_the_last_vision_token() -> None:
    model, _ = models("llava", "sdpa")
    found: list[list[str]] = []

    def look(entering: Entering) -> None:
        if not entering.layer:
            found.append([ROLES[role] for role in roles(entering.prompt).tolist()])

    for rows in ([["t2", "i", "t3"]], [["i", "t1", "i", "t2"]]):
        inputs = make_inputs("llava", model, rows)
        with install(Baseline(), model, observer=look):
            model(**inputs)
        assert found[-1] == tokens_of(model, inputs, 0)
    assert "between" not in found[0] and "system" not in found[1] and found[1].count("between") == 1


def test_a_prompt_that_shows_nothing_and_a_batch_are_refused() -> None:
    model, _ = models("llava", "sdpa")
    with pytest.raises(ValueError, match="shows no picture"):
        read_answer(model, Baseline(), make_inputs("llava", model, [["t5"]]), ANSWER)
    with pytest.raises(ValueError, match="one prompt at a time"):
        read_answer(model, Baseline(), make_inputs("llava", model, [["t2", "i", "t3"]] * 2), ANSWER.repeat(2, 1))
