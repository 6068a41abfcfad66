"""What the engine adds to a pass, in operations: times would depend on the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from tests.support.families import make_inputs, make_model
from vtw_eval import VTW, Baseline, FastV, Method, Rand, RandomK, RandomVision
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine.calls import with_cache

WAITS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
"""Operations whose result the host must know before it can go on."""


class Recorder(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], Any]) -> list[str]:
    with torch.no_grad(), Recorder() as recorder:
        call()
    return recorder.names


def decode_step(model: Any, inputs: dict[str, Any], steps: int = 2) -> list[str]:
    """Operations of the last of some decode steps after a prefill."""
    cache, mask = DynamicCache(), inputs["attention_mask"]
    with torch.no_grad():
        token = model(**with_cache(model, inputs, cache), logits_to_keep=1).logits[:, -1:].argmax(dim=-1)
    for _ in range(steps):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        step = with_cache(model, {"input_ids": token, "attention_mask": mask, "logits_to_keep": 1}, cache)
        found = operations(lambda step=step: model(**step))  # type: ignore[misc]
    return found


@pytest.mark.parametrize("method", [VTW(k=2), Rand(k=2), RandomVision(k=1), FastV(k=2)], ids=str)
def test_a_decode_step_runs_nothing_that_the_plain_model_does_not_run(method: Method) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t4", "i", "t3"]])
    plain = decode_step(model, inputs)
    with method(model):
        assert decode_step(model, inputs) == plain


@pytest.mark.parametrize("method", [VTW(k=2), Rand(k=2), RandomVision(k=1), RandomK(low=1, high=3)], ids=str)
def test_no_layer_waits_for_a_choice_that_follows_from_the_ids(method: Method) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t4", "i", "t3"], ["t6", "i", "i", "t2"]])
    first = find_anatomy(model).layers[0]
    with method(model) as trace, Recorder() as recorder:
        begun: list[int] = []
        handle = first.register_forward_pre_hook(lambda *_: begun.append(len(recorder.names)))
        with torch.no_grad():
            model(**inputs)
        handle.remove()
    assert (trace.tokens_per_layer[:, -1] < trace.tokens_per_layer[:, 0]).all()
    assert any(name in WAITS for name in recorder.names[: begun[0]])
    assert not [name for name in recorder.names[begun[0] :] if name in WAITS]


def hooked(model: Any) -> list[int]:
    return [i for i, layer in enumerate(find_anatomy(model).layers) if _hooks(layer)]


def _hooks(layer: nn.Module) -> int:
    return len(layer._forward_pre_hooks) + len(layer._forward_hooks)


def test_layers_have_hooks_only_in_passes_that_need_them() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t4", "i", "t3"]])
    padded = make_inputs("llava", model, [["t4", "i", "t3"], ["t9", "i", "t3"]])
    with VTW(k=2)(model):
        assert not hooked(model)
        decode_step(model, inputs)
        assert hooked(model) == [2]  # one layer looks whether the others are needed
        decode_step(model, padded)
        assert hooked(model) == [2, 3]
        decode_step(model, inputs)
        assert hooked(model) == [2]
    assert not hooked(model)
    with Baseline()(model):
        decode_step(model, inputs)
        assert not hooked(model)
