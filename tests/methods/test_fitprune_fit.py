"""FitPrune's table, fitted: against naive loops over attention of the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.families import make_inputs
from tests.support.oracle import KINDS, models
from vtw_eval.methods import parse_method
from vtw_eval.methods.fitprune import DELETED, FitPrune
from vtw_eval.methods.fitprune_fit import _deleted, fit_table


def naive(weights: Any, vision: list[int], text: list[int], alpha: float) -> list[int]:
    """Return how many tokens of one prompt leave after each layer but the last, by the rule of the paper."""
    left, counts = set(vision), []
    for layer in weights[:-1]:
        most = layer[0].amax(dim=0).double()  # over heads
        both = []
        for queries in (text, vision):
            mean = {j: sum(float(most[q, j]) for q in queries) / len(queries) for j in vision}
            total, goes = sum(mean.values()), set()
            for j in sorted(left, key=lambda j: mean[j]):
                if sum(mean[i] for i in left - goes - {j}) < (1 - alpha) * total:
                    break
                goes.add(j)
            both.append(goes)
        counts.append(len(both[0] & both[1]))
        left -= both[0] & both[1]
    return counts


@torch.no_grad()
def test_the_table_is_that_of_a_naive_loop() -> None:
    model, _ = models("llava_gqa", "sdpa")
    eager, _ = models("llava_gqa", "eager")
    prompts = [KINDS["multi-image"][1:], [["i", "t2", "i", "t5"]], [["t2", "i", "i", "t3"]]]
    samples = [make_inputs("llava_gqa", model, rows) for rows in prompts]
    ticks: list[int] = []
    found = fit_table(model, samples, 0.35, advance=lambda: ticks.append(1))
    assert len(ticks) == 3 and found.vision == 8 and found.deleted[-1] == 0
    counts = []
    for inputs in samples:
        ids = inputs["input_ids"][0].tolist()
        vision = [i for i, one in enumerate(ids) if one == model.config.image_token_id]
        text = list(range(max(vision) + 1, len(ids)))
        weights = eager(**inputs, output_attentions=True).attentions
        counts.append(naive(weights, vision, text, found.alpha))
    expected = [sum(column) // 3 for column in zip(*counts, strict=True)]
    assert list(found.deleted[:-1]) == expected and sum(expected) > 0
    # Nothing smaller is enough, by the formula of what vision tokens cost.
    h, m = 32, model.config.text_config.intermediate_size

    def share(deleted: list[int]) -> float:
        entering = [8 - sum(deleted[:i]) for i in range(4)]
        cost = [4 * n * h * h + 2 * n * n * h + 3 * n * h * m for n in (*entering, 8)]
        return sum(cost[:4]) / (4 * cost[4])

    assert 1 - share(list(found.deleted)) == pytest.approx(found.reduction) and found.reduction >= 0.35
    with found.method()(model) as trace:
        model(**samples[0])
    assert trace.vision_per_layer.tolist() == [[8 - sum(found.deleted[:i]) for i in range(4)]]


def test_more_leaves_where_less_attention_is_lost() -> None:
    received = [torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3]]])]
    assert _deleted(received, 0.0) == [0, 0]
    assert _deleted(received, 0.3) == [1, 0]  # the first list may lose two, the second two others: one is in both
    assert _deleted(received, 1.0) == [4, 0]


@torch.no_grad()
def test_what_cannot_be_fitted_is_refused() -> None:
    model, _ = models("llava_gqa", "sdpa")
    one, two = (make_inputs("llava_gqa", model, [["t2", *["i"] * n, "t3"]]) for n in (1, 2))
    with pytest.raises(ValueError, match="these have 4, 8"):
        fit_table(model, [one, two])
    with pytest.raises(ValueError, match="these have no prompt"):
        fit_table(model, [])
    with pytest.raises(ValueError, match="too much"):
        fit_table(model, [one], 0.9)
    with pytest.raises(ValueError, match="out of range"):
        fit_table(model, [one], 1.0)


def test_a_table_of_ones_own() -> None:
    assert FitPrune(table="-".join(map(str, (576, *DELETED)))).shares(32) == FitPrune().shares(32)
    method = parse_method("fitprune,table=8-2-0-1-0")
    assert method.shares(4) == [1.0, 0.75, 0.75, 0.625]
    assert parse_method("fitprune,table=8-8-0-0-0").empty_from(4) == 1
    for spec, words in [
        ("fitprune,table=8", "no table"),
        ("fitprune,table=8-x", "no table"),
        ("fitprune,table=8-5-4", "removes 9 of 8"),
        ("fitprune,table=8-0-0,r=0.5", "all tokens or none"),
    ]:
        with pytest.raises(ValueError, match=words):
            parse_method(spec)
