"""``vtw-eval cost --measure``: closed forms beside what fvcore and torch's counter find."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlavaConfig
from typer.testing import CliRunner

from tests.support.checkpoints import make_checkpoint
from tests.support.families import DENSE, make_model
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cli import app
from vtw_eval.cost import Geometry
from vtw_eval.cost.measure import counted
from vtw_eval.cost.measure.counted import CountedCosts, counted_costs
from vtw_eval.methods import parse_method

SMALL = Geometry(name="small", layers=4, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, gated=True, vocab=64)
SPECS = ("vtw,k=2", "fastv,k=2,r=0.5", "tome,r=0.5", "fastv+vtw,fastv.k=1,vtw.k=3", "random_k")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cost", "--measure", *arguments])


@pytest.fixture(scope="module")
def costs() -> list[CountedCosts]:
    return counted_costs(SMALL, [parse_method(spec) for spec in SPECS], text=9, vision=16, dtype=torch.float32)


def test_all_agree_and_every_difference_is_explained(costs: list[CountedCosts]) -> None:
    assert [found.method.partition(",")[0] for found in costs] == ["baseline", *(s.partition(",")[0] for s in SPECS)]
    for found in costs:
        assert found.unexplained == []
        assert found.fvcore.total == found.torch.total == found.closed


def test_numbers_by_hand(costs: list[CountedCosts]) -> None:
    vtw = costs[1]
    assert vtw.tokens_per_layer == (25, 25, 9, 9)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q, o, k, v and a gated FFN
    products = sum(2 * 2 * n * n * 32 for n in vtw.tokens_per_layer)
    assert vtw.closed == 2 * sum(vtw.tokens_per_layer) * layer + products + 2 * 32 * 64
    assert vtw.eq1 == sum(2 * (2 * n * n * 32 + 12 * n * 32 * 32) for n in vtw.tokens_per_layer)
    assert vtw.profiler == 2 * (68 * layer + 17 * 32 * 64)
    assert vtw.kv_bytes == 2 * 16 * 4 * 68
    assert vtw.eq1_differs.attention == 0 and vtw.profiler_differs.attention == -products


def test_what_a_method_reads_is_counted_and_what_it_computes_from_values_is_told(costs: list[CountedCosts]) -> None:
    fastv, tome = costs[2], costs[3]
    assert set(fastv.read) == {"scores"} and not fastv.own and fastv.fvcore.method == sum(fastv.read.values()) > 0
    assert set(tome.read) == {"keys"} and set(tome.own) == {"similarities"}


def test_a_flop_more_or_a_byte_less_is_told(costs: list[CountedCosts]) -> None:
    found = costs[2]
    assert "decoder: torch" in replace(found, torch=replace(found.torch, head=found.torch.head + 2)).unexplained[0]
    assert len(replace(found, fvcore=replace(found.fvcore, other=2)).unexplained) == 1
    assert "KV cache" in replace(found, kv_bytes=found.kv_bytes - 1).unexplained[0]
    [line] = replace(found, eq1=found.eq1 * 1.001).unexplained
    assert "eq1" in line and "explained" in line


def test_a_config_stays_the_model_that_it_is(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2_vl", tmp_path / "qwen2_vl")
    out = invoke("--config", str(folder), "--text", "9", "--vision", "16", "--method", "vtw,k=2", "--json")
    assert out.exit_code == 0, out.output
    answer = json.loads(out.stdout)
    config = AutoConfig.from_pretrained(folder)
    expected = counted_costs(config, [parse_method("vtw,k=2")], text=9, vision=16)[1]
    [_, vtw] = answer["methods"]
    assert vtw["flops"]["fvcore"] == vtw["flops"]["torch"] == vtw["flops"]["closed_form"] == expected.closed
    assert vtw["unexplained"] == [] and vtw["tokens_per_layer"][-1] == 9


@pytest.mark.parametrize("name", [name for name in DENSE if name != "paligemma"])
def test_every_family_is_counted(name: str) -> None:
    found = counted_costs(make_model(name).config, [parse_method("fastv,k=2,r=0.5")], text=9, vision=16)
    assert [line for costs in found for line in costs.unexplained] == []


def test_a_model_that_looks_at_values_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="paligemma looks at values"):
        counted_costs(make_model("paligemma").config, [], text=9, vision=16)


def test_tables_for_people() -> None:
    out = invoke("--geometry", "shapes", "--text", "20", "--method", "vtw,k=5", "--method", "tome")
    assert out.exit_code == 0, out.output
    text = out.stdout
    assert out.stderr == "" and text.startswith("shapes: 10 layers, 20 text and 64 vision tokens, bfloat16")
    for words in (
        "fvcore",
        "torch's counter",
        "All agree to the FLOP",
        "llava of that config",
        "Not run without values",
    ):
        assert words in text
    assert (
        "| vtw,k=5,position=keep | eq1 | " in invoke("--geometry", "shapes", "--method", "vtw,k=5", "--markdown").stdout
    )


def test_what_is_not_explained_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = counted.exact_prefill_flops
    monkeypatch.setattr(counted, "exact_prefill_flops", lambda *given, **named: real(*given, **named) + 2)
    out = invoke("--config", str(CHECKPOINT), "--method", "baseline")
    assert out.exit_code == 1
    assert "not explained" in out.stderr and "decoder: fvcore" in out.stderr and "see the error" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--geometry", "shapes", "--text", "65.9"], "--text 65.9: a prompt that is counted has a whole number"),
        (["--geometry", "shapes", "--vision", "0.5"], "--vision 0.5"),
        (["--geometry", "shapes", "--text", "1"], "a prompt needs 2 or more"),
        (["--geometry", "shapes", "--tower"], "leave --output-tokens, --tower"),
        (["--geometry", "shapes", "--dtype", "int4"], "unknown dtype 'int4'"),
        (["--geometry", "shapes", "--method", "dyvte"], "gates"),
        (["--geometry", "qwen2-vl-2b"], "give --vision"),
        (["--paper", "all"], "--paper brings its own"),
        ([], "--geometry NAME or --config PATH"),
    ],
)
def test_bad_values_are_told_in_one_line(arguments: list[str], words: str) -> None:
    out = invoke(*arguments)
    assert out.exit_code == 2
    assert out.stdout == "" and words in out.stderr and out.stderr.count("\n") == 1


def test_a_language_model_has_nothing_to_withdraw() -> None:
    assert isinstance(LlavaConfig().text_config, LlamaConfig)
    with pytest.raises(ValueError, match="llama is no vision-language model"):
        counted_costs(LlavaConfig().text_config, [], text=9, vision=9)


def test_without_fvcore_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['fvcore'] = None\n"
        "import vtw_eval.importing as importing; importing.installed = lambda package: importing.UNINSTALLED\n"
        "from vtw_eval.cli import app; app(['cost', '--measure', '--geometry', 'shapes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "vtw-eval cost: error: fvcore is not installed: pip install 'vtw-eval[measure]'.\n"
