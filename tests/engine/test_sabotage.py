"""Invented releases of transformers: whatever changes, a generation is right or refused, or the verification fails."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.families import make_inputs, make_model
from tests.support.sabotage import SABOTAGES, decoder_of
from vtw_eval import VTW, Baseline, FastV, Method, PyramidDrop, Rand, ToMe
from vtw_eval.verify import check
from vtw_eval.verify.check import check_method, make_subject
from vtw_eval.verify.tiny import family_config, shrink
from vtw_eval.verify.tiny import make_model as make_tiny

KINDS = {"single": [["t3", "i", "t4"]], "batch": [["t3", "i", "t4"], ["t5", "i", "i", "t9"]]}
METHODS: tuple[Method, ...] = (Baseline(), VTW(k=2), VTW(k=0), Rand(k=2), FastV(k=2), ToMe(), PyramidDrop())

MEETS: dict[str, set[str]] = {
    "renamed_cache": {"right"},
    "positional": {"right"},
    "additive_mask": {"right"},
    # Nothing in the type of a mask tells that True hides: only comparing with an oracle does.
    "inverted_mask": {"right", "refused", "verification fails"},
    # A mask that ToMe builds where the model needs none is misread; batches are refused.
    "integer_mask": {"right", "refused", "verification fails"},
}
"""What may become of a change; of the others, {"right", "refused"}."""


@functools.cache
def model(attention: str) -> PreTrainedModel:
    return make_model("llava", attn=attention, dtype=torch.float32)


@torch.no_grad()
def run(subject: Any, method: Method, kind: str) -> tuple[Tensor, Tensor]:
    """Logits of a generation, and tokens per layer."""
    inputs = make_inputs("llava", subject, KINDS[kind])
    with method(subject) as trace:
        output = subject.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(output.logits), trace.tokens_per_layer


@functools.cache
def right(attention: str, method: Method, kind: str) -> tuple[Tensor, Tensor]:
    return run(model(attention), method, kind)


def outcome(changed: PreTrainedModel, attention: str, method: Method, kind: str) -> str:
    logits, tokens = right(attention, method, kind)
    try:
        found, counted = run(changed, method, kind)
    except Exception:
        return "refused"
    return "right" if torch.equal(counted, tokens) and bool((found - logits).abs().max() < 1e-3) else "wrong"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_changed_decoder_is_right_or_refused(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = make_model("llava", attn=attention, dtype=torch.float32)
    changed.model.language_model = decoder_of(name, changed.model.language_model)
    for kind in KINDS:  # the change is one that transformers itself could make: its own answers stay
        assert (run_plain(changed, kind) - run_plain(model(attention), kind)).abs().max() < 1e-3

    def with_change(*args: Any) -> PreTrainedModel:
        tiny = make_tiny(*args)
        tiny.model.language_model = decoder_of(name, tiny.model.language_model)
        return tiny

    monkeypatch.setattr(check, "make_model", with_change)
    for method in METHODS:
        found = {outcome(changed, attention, method, kind) for kind in KINDS}
        if "wrong" in found:
            with pytest.raises(Exception, match=r"differ|transformers .* is installed"):
                verify(attention, method)
            found = found - {"wrong"} | {"verification fails"}
        assert found <= MEETS.get(name, {"right", "refused"}), (method, found)


def verify(attention: str, method: Method) -> None:
    small = shrink(family_config("llava"))
    check_method(make_subject(small, attention, torch.float32, torch.device("cpu")), method)


@torch.no_grad()
def run_plain(subject: Any, kind: str) -> Tensor:
    inputs = make_inputs("llava", subject, KINDS[kind])
    output = subject.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(output.logits)


def test_a_refusal_names_the_versions_and_says_what_it_means() -> None:
    changed = make_model("llava", attn="sdpa", dtype=torch.float32)
    changed.model.language_model = decoder_of("own_keys", changed.model.language_model)
    with pytest.raises(RuntimeError) as caught:
        run(changed, VTW(k=2), "single")
    message = str(caught.value)
    assert "KV cache holds 0 tokens of decoder layer 1" in message
    assert "No number of this run can be trusted" in message
    assert "transformers" in message and "is installed" in message and "is tested with transformers" in message
