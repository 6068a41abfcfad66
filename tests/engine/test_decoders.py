"""Families with layers that keep no keys of their own, or whose towers no test reads: VTW and others by the oracle.

The oracle runs a recurrence or a convolution by itself on the tokens that are left, a row at a time, over prompt and
answer at once and without a cache; the model under test goes on from its cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.families import DECODERS, VIDEO, make_inputs
from tests.support.oracle import FLASH, KINDS, compare, models
from vtw_eval import VTW
from vtw_eval.anatomy import UnsupportedModelError, find_anatomy
from vtw_eval.engine import arguments, keyless
from vtw_eval.engine.layout import Reduction
from vtw_eval.engine.prefix import PrefixError, run_prefix
from vtw_eval.engine.step import Step
from vtw_eval.families import DECODER_TESTED
from vtw_eval.methods import PACT, FasterVLM, FastV
from vtw_eval.methods.vtw.search import search_layer

PREFILL, DECODE = 1e-11, 1e-6
_SLOW = ("gemma4_bidirectional", "qwen3_5_moe")
"""Those that differ from others in what is no matter of attention."""


class _Torch:
    """torch, with float64 under the name of float32."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let families compute in float64 what they do in float32: recurrences, softmax and angles."""
    names = ("qwen3_5", "qwen3_5_moe", "gemma4", "lfm2", "llama")
    for name in names:
        module = f"transformers.models.{name}.modeling_{name}"
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "torch", _Torch())
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def _cases() -> Iterator[tuple[str, str, str]]:
    """Each family with the kinds of attention that it can have, and rows of all kinds among them."""
    for name in DECODERS:
        yield name, "sdpa", "mixed"
        yield name, "sdpa", "video" if name in VIDEO else "single"
        if name not in _SLOW:
            yield name, "eager", "multi-image"
        if not name.startswith("gemma4") and name not in _SLOW:
            yield name, FLASH, "mixed"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("name", "attention", "kind"), list(_cases()))
def test_withdrawal_equals_the_oracle(name: str, attention: str, kind: str) -> None:
    layers = find_anatomy(models(name, attention)[0]).num_layers
    for k in {"mixed": (1, layers - 2), "video": (layers - 1,)}.get(kind, (2,)):
        difference = compare(name, attention, kind, k)
        assert difference.prefill < PREFILL, k
        assert difference.decode < DECODE, k


def test_all_families_that_are_said_to_be_tested_are() -> None:
    assert {name.removesuffix("_bidirectional") for name in DECODERS} <= DECODER_TESTED


def test_masks_of_layers_without_keys_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "recurrent_mask", lambda layer, step, layout, mask: None)
    assert compare("qwen3_5", "sdpa", "mixed", 1).prefill > 1e-2
    assert compare("lfm2_vl", "sdpa", "mixed", 1).prefill > 1e-2
    hiding = keyless.sharing_mask

    def all_are_kept(layer: int, source: int, kind: str, step: Step, *more: Any) -> Any:
        kept = replace(step, reduction=Reduction(step.reduction.prompt, [None] * len(step.reduction.layouts)))
        kept.reduction.layouts[source] = step.reduction.layouts[source]
        return hiding(layer, source, kind, kept, *more)

    monkeypatch.setattr(arguments, "sharing_mask", all_are_kept)
    difference = compare("gemma4", "sdpa", "single", 4)
    assert difference.prefill > 1e-2 and difference.decode > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "gemma4"])
def test_what_needs_keys_of_each_layer_is_refused(name: str) -> None:
    model, _ = models(name, "sdpa")
    inputs = make_inputs(name, model, KINDS["single"])
    with pytest.raises(UnsupportedModelError, match="search for k"):
        search_layer(model, [inputs])
    with pytest.raises(PrefixError, match="more of a prompt than keys"):
        run_prefix(model, inputs)
    with pytest.raises(ValueError, match="nothing is tested"), FasterVLM(r=0.5)(model):
        pass
    with FastV(k=4, r=0.5)(model), pytest.raises(ValueError, match=r"layer 3, which .*only layers"):
        model(**inputs)
    with FastV(k=2, r=0.5)(model) as trace:  # layer 1 attends to keys of its own
        model(**inputs)
    assert trace.tokens_per_layer[0, -1] < trace.tokens_per_layer[0, 0]
    with PACT(k1=1, r=0.3, merged=0.4)(model), pytest.raises(ValueError, match="merged"):
        model(**inputs)


def test_layers_of_unknown_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models("qwen3_5", "sdpa")
    kinds = ["mamba", *model.config.text_config.layer_types[1:]]
    monkeypatch.setattr(model.config.text_config, "layer_types", kinds)
    with pytest.raises(UnsupportedModelError, match="type mamba"), VTW(k=2)(model, allow_untested=True):
        pass
