"""The one-pass search gives the numbers of one run per k."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.families import VIDEO, make_inputs
from tests.support.oracle import CASES, FLASH, GLM_VIDEO, KINDS, models, widen_windows
from vtw_eval import VTW, search_layer
from vtw_eval.methods.vtw.search import SearchResult


@torch.no_grad()
def one_run_per_k(model: torch.nn.Module, inputs: dict[str, Tensor], start: int, direction: str) -> Tensor:
    """The published algorithm: KL at the last prompt token, ``[prompts, candidates]``."""
    valid = inputs["attention_mask"].bool()
    rows, last = torch.arange(len(valid)), valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
    full = model(**inputs).logits[rows, last].double().softmax(dim=-1)
    found = []
    for k in range(start, model.config.get_text_config(decoder=True).num_hidden_layers):
        with VTW(k=k)(model):
            withdrawn = model(**inputs).logits[rows, last].double().softmax(dim=-1)
        p, q = (withdrawn, full) if direction == "vtw_full" else (full, withdrawn)
        found.append((p * (p / q).log()).sum(dim=-1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_one_pass_equals_one_run_per_k(name: str, attention: str) -> None:
    model, _ = models(name, attention)
    for kind, rows in KINDS.items():
        if kind == "video" and name not in VIDEO:
            continue
        inputs = make_inputs(name, model, GLM_VIDEO if (name, kind) == ("glm4v", "video") else rows)
        if attention == FLASH:
            widen_windows(model, inputs["input_ids"].shape[1])
        for start, direction in ((0, "vtw_full"), (2, "full_vtw")):
            result = search_layer(model, [inputs], start=start, direction=direction)
            expected = one_run_per_k(model, inputs, start, direction)
            torch.testing.assert_close(result.per_sample[:, start:], expected, atol=1e-9, rtol=1e-6)
            assert result.per_sample[:, :start].isnan().all()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_on_either_side(padding: str) -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, KINDS["mixed"], padding=padding)
    expected = one_run_per_k(model, inputs, 0, "vtw_full")
    torch.testing.assert_close(search_layer(model, [inputs], start=0).per_sample, expected, atol=1e-9, rtol=1e-6)


def test_k_is_the_first_mean_below_eta() -> None:
    model, _ = models("llava", "sdpa")
    samples = [make_inputs("llava", model, [["t3", "i", f"t{n}"]]) for n in range(3, 9)]
    result = search_layer(model, samples, start=1, eta=1e-9)
    assert (result.k, result.found) == (4, False)
    assert result.per_sample.shape == (6, 4)
    torch.testing.assert_close(result.divergence[1:], result.per_sample[:, 1:].mean(dim=0))
    for k in (1, 2, 3):
        eta = float(result.divergence[k]) * (1 + 1e-9)
        first = min(j for j in (1, 2, 3) if result.divergence[j] < eta)
        again = search_layer(model, samples, start=1, eta=eta)
        assert (again.k, again.found) == (first, True)
    assert search_layer(model, samples, start=4).k == 4


def test_prompts_without_images_diverge_nowhere() -> None:
    model, _ = models("llava", "sdpa")
    result = search_layer(model, [make_inputs("llava", model, [["t5"]])], start=0)
    assert result.per_sample.abs().max() < 1e-12
    assert result.k == 0


def test_the_model_is_left_as_it_was() -> None:
    model, _ = models("qwen3_vl", "sdpa")
    inputs = make_inputs("qwen3_vl", model, KINDS["mixed"])
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with torch.no_grad():
        before = model(**inputs).logits
        search_layer(model, [inputs], start=0)
        with pytest.raises(ValueError, match="exactly one"):
            search_layer(model, [{**inputs, "input_ids": None}], start=0)
        assert torch.equal(model(**inputs).logits, before)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def test_a_prompt_that_ends_in_an_image_is_refused() -> None:
    model, _ = models("llava", "sdpa")
    with pytest.raises(ValueError, match="ends in a vision token"):
        search_layer(model, [make_inputs("llava", model, [["t3", "i"]])], start=0)


def result_of(values: Tensor, eta: float = 0.5, start: int = 1) -> SearchResult:
    values = torch.cat([torch.full((len(values), start), math.nan, dtype=torch.float64), values.double()], dim=1)
    return SearchResult(start, values.mean(dim=0), values, eta, start, "vtw_full", True)


def test_bootstrap_shares_equal_their_probability() -> None:
    # Two samples: the mean of candidate 1 is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4; only 0 is below 0.5.
    shares = result_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).bootstrap(resamples=20000)
    assert shares == {1: pytest.approx(0.25, abs=0.015), 2: pytest.approx(0.75, abs=0.015)}
    assert "do not settle k" in result_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).advice()
    assert "k=2" in result_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).advice()
    assert "stable" in result_of(torch.zeros(5, 3)).advice()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"start": 5}, "start=5"), ({"eta": 0.0}, "eta=0"), ({"eta": math.nan}, "eta=nan"), ({"direction": "up"}, "up")],
)
def test_bad_arguments(arguments: dict, words: str) -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    with pytest.raises(ValueError, match=words):
        search_layer(model, [inputs], **{"start": 0, **arguments})
    with pytest.raises(ValueError, match="at least one sample"):
        search_layer(model, [], start=0)
