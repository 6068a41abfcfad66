"""Quantized weights and adapters beside them: methods compute what masks compute, and what plain weights compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.engine.test_tower import look
from tests.methods.examples import EXAMPLES
from tests.models.test_runner import ADAPTERS, requests_of
from tests.models.test_sharing import image, requests_about
from tests.support.harness_data import question
from tests.support.shapes import encode
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cost.bench.subject import load_subject
from vtw_eval.methods import parse_method
from vtw_eval.models import weights
from vtw_eval.models.llava import LlavaOptions
from vtw_eval.models.loading import load
from vtw_eval.models.runner import Request, Runner
from vtw_eval.record.cell import CellSpec
from vtw_eval.shapes.data import held_out
from vtw_eval.sweep.provenance import checkpoint_read, fingerprint
from vtw_eval.verify.oracle import extend, masked, traced

CPU = torch.device("cpu")
BITS = {8: "load_in_8bit", 4: "load_in_4bit"}
ROUNDING = 0.05
"""Rounding of the products of quantized weights, as a share of what a method changes: that of 8 bits, which rounds
what enters a layer too, is 0.02 at most on this model."""


@cache
def shapes(bits: int | None) -> Any:
    given: dict[str, Any] = {} if bits is None else {BITS[bits]: True}
    return load("llava_vtw", LlavaOptions(pretrained="shapes", dtype="float32", **given), simple=False, device=CPU)


@cache
def plain_of(bits: int) -> nn.Module:
    """Return an ordinary model that has the values which the quantized weights stand for."""
    fresh = load(
        "llava_vtw",
        LlavaOptions(pretrained="shapes", dtype="float32", **{BITS[bits]: True}),  # type: ignore[arg-type]
        simple=False,
        device=CPU,
    )
    plain = load("llava_vtw", LlavaOptions(pretrained="shapes", dtype="float32"), simple=False, device=CPU).model
    return dequantized(fresh.model, plain)


def dequantized(quantized: nn.Module, plain: nn.Module) -> nn.Module:
    """Write what quantized weights, of a model that has not run, stand for into an ordinary model."""
    count = 0
    for name, module in quantized.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(weight, bitsandbytes.nn.Int8Params):
            values = weight.data.float() * weight.SCB[:, None] / 127
        elif isinstance(weight, bitsandbytes.nn.Params4bit):
            values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        else:
            continue
        plain.get_parameter(f"{name.replace('.base_layer', '')}.weight").data.copy_(values)
        count += 1
    assert count > 50
    return plain


@cache
def prompts() -> dict[str, Tensor]:
    return dict(encode(shapes(None).processor, held_out("open_count", 3)))


def answered(model: Any, spec: str) -> tuple[Tensor, Tensor, Any]:
    """Return logits of the tokens that a method's model generates, those tokens, and the trace."""
    with torch.no_grad(), parse_method(spec)(model) as trace:
        made = model.generate(
            **prompts(), max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    length = prompts()["input_ids"].shape[1]
    return torch.stack(made.logits, dim=1), made.sequences[:, length:], trace


def logits_behind(model: Any, tokens: Tensor) -> Tensor:
    """Return the logits from which each of some tokens would be taken, in one pass without a cache."""
    longer = extend("llava", prompts(), tokens)
    return model(**longer, use_cache=False).logits[:, prompts()["input_ids"].shape[1] - 1 : -1]


@pytest.mark.parametrize("spec", ["vtw,k=3", "fastv,k=2"])
@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_a_quantized_model_computes_what_masks_compute(bits: int, spec: str) -> None:
    model = shapes(bits).model
    found, tokens, trace = answered(model, spec)
    with masked(model, traced(trace)):
        expected = logits_behind(model, tokens)
    changed = (logits_behind(model, tokens) - expected).abs().max()
    assert changed > 1
    assert (found - expected).abs().max() < ROUNDING * changed
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("spec", ["vtw,k=3", "shortv,order=9-8-7-6-5-4-3-2-1-0,n=4"])
@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_a_quantized_model_computes_what_the_same_values_compute_unquantized(bits: int, spec: str) -> None:
    """Methods whose choice no rounding changes; the second projects keys and values of some tokens, and no queries."""
    found, tokens, trace = answered(shapes(bits).model, spec)
    expected, others, other = answered(plain_of(bits), spec)
    unchanged, _, _ = answered(plain_of(bits), "baseline")
    assert torch.equal(trace.tokens_per_layer, other.tokens_per_layer)
    assert (found[:, 0] - expected[:, 0]).abs().max() < ROUNDING * (unchanged - expected)[:, 0].abs().max().clamp(min=1)
    assert torch.equal(tokens, others)


@pytest.mark.parametrize("label", EXAMPLES)
@torch.no_grad()
def test_every_method_chooses_on_four_bits_about_as_on_the_same_values(label: str) -> None:
    """One that read weights would read packed integers. Near ties fall either way, greedy ones go on so."""
    kept = []
    for model in (shapes(4).model, plain_of(4)):
        with EXAMPLES[label](model) as trace:
            model(**prompts())
        kept.append(torch.stack([trace.kept(layer) for layer in range(1, 10)]))
    common, either = (kept[0] & kept[1]).sum(-1), (kept[0] | kept[1]).sum(-1)
    assert (common >= 0.6 * either).all()


@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_projector_runs_again_on_features(bits: int) -> None:
    """What it makes of the tower's last layer is what the model gets; its weights are integers."""
    model = shapes(bits).model
    seen: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        found = look(model, prompts(), lambda tower: tower.project(features(tower)), layers=(-1,))
    finally:
        handle.remove()
    torch.testing.assert_close(found, seen[0].flatten(0, -2), atol=1e-3, rtol=1e-3)


def features(tower: Any) -> Tensor:
    return tower.features(-1)[tower.places[..., 0] >= 0][:, None]


def opened(pretrained: str, said: list[str], *, adapter: str = "llava_vtw", **given: Any) -> Runner:
    arguments = {"pretrained": pretrained, "dtype": "float32", "verify": False, **given}
    return Runner(adapter, arguments, simple=False, device=CPU, log=said.append)


def asked(count: int, new: int = 3) -> list[Request]:
    """Return questions about one picture."""
    return requests_about([("one", [image(1)], question(i)) for i in range(count)], {"max_new_tokens": new})


@torch.no_grad()
def test_eight_bits_round_by_what_stands_beside() -> None:
    """Why such models count as inexact: one token with a large channel changes how all others are multiplied."""
    torch.manual_seed(0)
    linear = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    linear.weight = bitsandbytes.nn.Int8Params(torch.randn(64, 64), requires_grad=False, has_fp16_weights=False)
    linear = linear.to("cpu").eval()
    tokens = torch.randn(1, 4, 64).clamp(-3, 3)
    beside = tokens.clone()
    beside[0, 3, 5] = 20.0
    assert not torch.equal(linear(tokens)[0, 0], linear(beside)[0, 0])
    assert torch.equal(linear(tokens)[0, :1], linear(tokens[:, :1])[0])


@pytest.mark.parametrize("bits", BITS)
def test_costs_are_those_of_unquantized_weights(bits: int) -> None:
    """Tokens, Eq. 1 and the KV cache, which is in the type of the other weights, do not depend on bits."""
    said: list[str] = []
    requests = asked(3, 1)
    quantized = opened("shapes", said, k=1, batch_size=2, **{BITS[bits]: True})
    assert f"linear layers in {bits} bits (bitsandbytes " in said[0]
    plain = opened("shapes", said, k=1, batch_size=2)
    assert quantized.family.model.dtype == torch.float32
    assert not quantized.family.exact and plain.family.exact
    pairs = zip(quantized.answer(requests, progress=False), plain.answer(requests, progress=False), strict=True)
    for mine, other in pairs:
        assert mine.costs.untimed() == other.costs.untimed()
    told = weights.told_of(quantized.family.model)
    assert set(told) == {"weights", "bitsandbytes"} and not weights.told_of(plain.family.model)


@pytest.mark.parametrize("bits", BITS)
def test_quantized_answers_together_are_those_alone(bits: int) -> None:
    """On a model that is sure of its answers; one after the other, each is computed for itself."""
    said: list[str] = []
    made = opened("shapes", said, k=5, batch_size=2, **{BITS[bits]: True})
    requests = asked(4)
    object.__setattr__(made.options, "sharing", "off")
    alone = made.answer(requests, progress=False)
    object.__setattr__(made.options, "sharing", "auto")
    together = made.answer(requests, progress=False)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all(answer.costs.latency_s is None for answer in together)
    object.__setattr__(made.options, "batch_size", 1)
    made.answer(requests[:2], progress=False)
    assert "with quantized weights it would round otherwise" in said[-1]


def test_a_checkpoint_that_was_saved_quantized(tmp_path: Path) -> None:
    said: list[str] = []
    made = opened("shapes", said, k=5, load_in_4bit=True)
    folder = tmp_path / "saved"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    made.family.model.save_pretrained(folder)
    again = opened(str(folder), said, k=5, verify=True)
    assert weights.bits(again.family.model) == 4
    requests = asked(3)
    found, expected = ([a.text for a in one.answer(requests, progress=False)] for one in (again, made))
    assert found == expected
    with pytest.raises(ValueError, match="quantized already: leave load_in_8bit and load_in_4bit out"):
        opened(str(folder), said, load_in_8bit=True)
    with pytest.raises(ValueError, match="is quantized, and what is timed here is unquantized"):
        load_subject(str(folder), torch.float32, CPU)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantized by gptq: of quantized checkpoints those of bitsandbytes"):
        opened(str(folder), said)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[[str], str]) -> None:
    monkeypatch.setattr(weights, "installed", lambda name: weights.UNINSTALLED)
    for given, message in (
        ({"load_in_8bit": True}, r"needs bitsandbytes, which is not installed: pip install 'vtw-eval\[quantized\]'"),
        ({"peft": "folder"}, r"peft=folder needs peft, which is not installed: pip install 'vtw-eval\[lora\]'"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(checkpoint("llava"), [], **given)


def make_lora(model: Any, folder: Path, **settings: Any) -> Any:
    """Save a LoRA with random weights for a model, and return the model with it merged."""
    torch.manual_seed(1)
    given = {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 4, "init_lora_weights": False, **settings}
    wrapped = get_peft_model(model, LoraConfig(**given)).eval()
    wrapped.save_pretrained(str(folder))
    return wrapped.merge_and_unload()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_lora_beside_the_weights_answers_as_merged(
    tmp_path: Path, checkpoint: Callable[[str], str], family: str
) -> None:
    said: list[str] = []
    folder = tmp_path / "lora"
    merged = opened(checkpoint(family), said, adapter=ADAPTERS[family][0], method="baseline")
    requests = requests_of(None)
    before = [answer.text for answer in merged.answer(requests, progress=False)]
    merged.family.model = make_lora(merged.family.model, folder)
    for spec in ({"method": "baseline"}, {"method": "vtw", "k": 1}, {"method": "fastv", "k": 1, "r": 0.5}):
        mine = opened(checkpoint(family), said, adapter=ADAPTERS[family][0], peft=str(folder), batch_size=3, **spec)
        assert "LoRA beside the weights (peft " in said[-1]
        merged.exchange(mine.method)
        merged.batch_size = 3
        found, expected = (one.answer(requests, progress=False) for one in (mine, merged))
        assert [answer.text for answer in found] == [answer.text for answer in expected]
        assert [answer.costs.untimed() for answer in found] == [answer.costs.untimed() for answer in expected]
    assert len([1 for answer, other in zip(expected, before, strict=True) if answer.text != other]) > 1
    assert mine.family.exact
    assert set(weights.told_of(mine.family.model)) == {"weights", "peft"}


def test_lora_beside_quantized_weights(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    start = load("llava_vtw", LlavaOptions(pretrained="shapes", dtype="float32"), simple=False, device=CPU).model
    make_lora(start, folder, lora_alpha=8)
    options = LlavaOptions(pretrained="shapes", dtype="float32", load_in_4bit=True, peft=str(folder))
    with pytest.warns(UserWarning, match="was trained on .*checkpoint, and is put on shapes"):
        model = load("llava_vtw", options, simple=False, device=CPU).model
    plain = load("llava_vtw", LlavaOptions(pretrained="shapes", dtype="float32"), simple=False, device=CPU).model
    dequantized(model, plain)
    with_adapter = replace(options, load_in_4bit=False)
    with pytest.warns(UserWarning, match="was trained on"):
        weights.add_adapter(plain, with_adapter)
    before, _, _ = answered(shapes(4).model, "vtw,k=3")
    found, _, _ = answered(model, "vtw,k=3")
    expected, _, _ = answered(plain, "vtw,k=3")
    changed = (before - expected)[:, 0].abs().max()
    assert changed > 1
    assert (found - expected)[:, 0].abs().max() < ROUNDING * changed


def test_how_much_an_adapter_adds(tmp_path: Path, checkpoint: Callable[[str], str]) -> None:
    """A layer of the tiny model: q, k, v, o of 64 x 64 with four heads of two keys, and a gated FFN."""
    folder = tmp_path / "lora"
    plain = opened(checkpoint("llava"), [], k=1).family.model
    layer = plain.model.language_model.layers[0]
    own = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    rows, columns = layer.self_attn.q_proj.weight.shape
    make_lora(plain, folder, target_modules=["q_proj"], r=3)
    adapted = opened(checkpoint("llava"), [], k=1, peft=str(folder)).family.model
    assert weights.added_share(adapted) == pytest.approx(3 * (rows + columns) / own)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, checkpoint: Callable[[str], str]) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            opened(checkpoint("llava"), [], peft=str(folder))

    plain = opened(checkpoint("llava"), []).family.model
    good = tmp_path / "good"
    make_lora(plain, good)
    stored = load_file(good / "adapter_model.safetensors")
    first = sorted(stored)[0]

    def changed(name: str, tensors: dict[str, Tensor], **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((good / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    refused(tmp_path / "none", "no adapter at peft=.*neither a folder with an adapter_config.json nor reachable")
    fewer = {name: value for name, value in stored.items() if name != first}
    refused(changed("fewer", fewer), "it has no weights for .*lora_A.* and 0 others")
    refused(changed("more", {**stored, f"x.{first}": stored[first].clone()}), "it has weights without a place")
    refused(changed("wide", {**stored, first: torch.zeros(9, 9)}), "does not fit")
    refused(changed("nowhere", stored, target_modules=["no_such_module"]), "does not fit")
    refused(changed("alora", stored, alora_invocation_tokens=[5]), "acts from certain tokens on only")
    ia3 = get_peft_model(plain, IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    ia3.save_pretrained(str(tmp_path / "ia3"))
    refused(tmp_path / "ia3", "is of type IA3: of PEFT's adapters LoRA is tested")
    with pytest.raises(ValueError, match=f"holds an adapter of PEFT: .*pretrained=.*llava,peft={good}"):
        opened(str(good), [])


def test_an_adapter_is_part_of_what_a_cell_was_made_from(tmp_path: Path, checkpoint: Callable[[str], str]) -> None:
    folder = tmp_path / "lora"
    make_lora(opened(checkpoint("llava"), []).family.model, folder)
    spec = CellSpec(
        model="M",
        adapter="llava_vtw",
        pretrained=checkpoint("llava"),
        model_args={"peft": str(folder)},
        method="baseline",
        task="mme",
    )
    read = checkpoint_read(spec)
    assert set(read) == {checkpoint("llava"), str(folder)}
    before = fingerprint(spec, read)
    stored = load_file(folder / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in stored.items()}, folder / "adapter_model.safetensors")
    assert checkpoint_read(spec)[str(folder)] != read[str(folder)]
    assert fingerprint(spec, checkpoint_read(spec)) != before


def test_packages_that_decide_answers() -> None:
    assert weights.packages({"dtype": "float32", "load_in_4bit": "False", "peft": "None"}) == ()
    assert weights.packages({"load_in_8bit": "True"}) == weights.packages({"load_in_4bit": True}) == ("bitsandbytes",)
    assert weights.packages({"peft": "folder"}) == ("peft",)
