"""Models inside other modules, and compiled ones: a method acts whoever calls the model, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from tests.support.families import make_inputs, make_model
from vtw_eval import VTW, Baseline, FastV, Method
from vtw_eval.anatomy import UnsupportedModelError, find_anatomy
from vtw_eval.methods.vtw.search import search_layer

ROWS = [["t3", "i", "t4"], ["t2", "i", "t2"]]
METHODS = [Baseline(), VTW(k=1), VTW(k=2, position="rearrange"), FastV(k=1, r=0.5)]
Wrap = Callable[[Any], tuple[nn.Module, Callable[..., Any]]]


def tiny(name: str = "llava") -> tuple[Any, dict[str, Tensor]]:
    model = make_model(name, attn="sdpa", dtype=torch.float32)
    return model, make_inputs(name, model, ROWS)


def wrapper(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    compiled = torch.compile(model, backend="eager")
    return compiled, compiled


def called_from_outside(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    return model, torch.compile(model, backend="eager")


def function_around(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    return model, torch.compile(lambda **inputs: model(**inputs), backend="eager")


def in_place(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    model.compile(backend="eager")
    return model, model


def forward(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    model.forward = torch.compile(model.forward, backend="eager")
    return model, model


def language_model(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model, model


def language_model_in_place(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    model.model.language_model.compile(backend="eager")
    return model, model


def each_layer(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    layers = model.model.language_model.layers
    for i in range(len(layers)):
        layers[i] = torch.compile(layers[i], backend="eager")
    return model, model


def each_layer_in_place(model: Any) -> tuple[nn.Module, Callable[..., Any]]:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model, model


COMPILED = [wrapper, called_from_outside, function_around, in_place, forward, language_model, language_model_in_place]
COMPILED += [each_layer, each_layer_in_place]


@pytest.mark.parametrize("wrap", COMPILED, ids=lambda wrap: wrap.__name__)
@torch.no_grad()
def test_compiled_models_that_were_called_already_run_with_the_method(wrap: Wrap) -> None:
    """What was traced before there were hooks would run without them: the unchanged model under a method's name."""
    torch._dynamo.reset()
    plain, inputs = tiny()
    unchanged = plain(**inputs).logits[:, -1]
    installed, call = wrap(tiny()[0])
    call(**inputs)
    for method in METHODS:
        with method(plain) as wanted:
            expected = plain(**inputs).logits[:, -1]
        with method(installed) as trace:
            found = call(**inputs).logits[:, -1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(trace.tokens_per_layer, wanted.tokens_per_layer)
        assert (method == Baseline()) == torch.allclose(expected, unchanged, atol=1e-3)
    torch.testing.assert_close(call(**inputs).logits[:, -1], unchanged, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_compiled_code_around_compiled_layers_is_noticed() -> None:
    """The one case in which compiled code stays on: nothing may come out under the method's name."""
    torch._dynamo.reset()
    model, inputs = tiny()
    each_layer_in_place(model)
    around = torch.compile(model, backend="eager")
    around(**inputs)
    with pytest.raises(RuntimeError, match="hooks"), VTW(k=1)(model):
        around(**inputs)


@torch.no_grad()
def test_the_search_of_k_sees_compiled_models() -> None:
    torch._dynamo.reset()
    plain, inputs = tiny()
    compiled, call = language_model(tiny()[0])
    call(**inputs)
    expected, found = (search_layer(m, [inputs], start=1).divergence for m in (plain, compiled))
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_unmerged_lora_equals_merged_lora(name: str, method: Method) -> None:
    """PEFT calls the forward of the model that it holds, and not the model: its hooks would not run."""
    model, inputs = tiny(name)
    torch.manual_seed(1)
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)).eval()

    def ask(model: Any, at: Any) -> tuple[list, Tensor, Tensor]:
        with torch.no_grad(), method(at) as trace:
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            return tokens.tolist(), model(**inputs).logits, trace.tokens_per_layer

    found = [ask(lora, at) for at in (lora, lora.base_model, lora.base_model.model)]
    merged = lora.merge_and_unload()
    tokens, logits, counts = ask(merged, merged)
    for mine in found:
        assert mine[0] == tokens
        torch.testing.assert_close(mine[1], logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(mine[2], counts)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["prompt", "prefix"],
)
def test_adapters_that_add_tokens_are_refused(config: Any) -> None:
    model, _ = tiny()
    wrapped = get_peft_model(model, config)
    with pytest.raises(UnsupportedModelError, match="adds tokens to the prompt"), VTW(k=1)(wrapped):
        pass


def test_copies_of_a_model_are_refused() -> None:
    model, _ = tiny()
    with pytest.raises(UnsupportedModelError, match="DataParallel"), VTW(k=1)(nn.DataParallel(model)):
        pass


@torch.no_grad()
def test_a_model_of_a_data_parallel_run(tmp_path: Path) -> None:
    model, inputs = tiny()
    with VTW(k=1)(model):
        expected = model(**inputs).logits
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        with VTW(k=1)(parallel) as trace:
            assert torch.equal(parallel(**inputs).logits, expected)
        assert trace.prefills == 1
    finally:
        torch.distributed.destroy_process_group()


class _Own(nn.Module):
    """A wrapper that somebody wrote, which calls forward itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = model

    def forward(self, **inputs: Any) -> Any:
        return self.inside.forward(**inputs)


@torch.no_grad()
def test_a_wrapper_of_somebody_else() -> None:
    model, inputs = tiny()
    with VTW(k=1)(model):
        expected = model(**inputs).logits
    own = _Own(model)
    assert find_anatomy(own).model is model
    with VTW(k=1)(own):
        assert torch.equal(own(**inputs).logits, expected)


@torch.no_grad()
def test_a_model_that_passes_its_decoder_by_is_noticed() -> None:
    """A release that runs the decoder's forward itself would run it without hooks."""
    model, inputs = tiny()
    decoder = model.model.language_model
    decoder.__class__ = type("Passing", (type(decoder),), {"__call__": lambda self, *a, **k: self.forward(*a, **k)})
    with pytest.raises(RuntimeError, match="without its decoder's hooks"), VTW(k=1)(model):
        model(**inputs)


def test_everything_is_put_back() -> None:
    model, _ = tiny()
    mine = model.forward = model.forward  # an instance attribute, as accelerate sets it
    with VTW(k=1)(model):
        assert model.forward is not mine
    assert model.__dict__["forward"] is mine
    assert "generate" not in model.__dict__
    assert torch._dynamo.eval_frame._stance.stance == "default"
