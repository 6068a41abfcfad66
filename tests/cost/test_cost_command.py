"""The command ``vtw-eval cost``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from vtw_eval.cli import app
from vtw_eval.cost import PRESETS, exact_decode_flops, exact_prefill_flops, kv_cache_bytes
from vtw_eval.cost.compare import compare_costs
from vtw_eval.methods import parse_method


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_baseline_comes_first_and_costs_are_those_of_the_functions() -> None:
    out = run("--geometry", "llava-0.5b", "--text", "40", "--vision", "60", "--method", "vtw,k=12", "--method",
              "baseline", "--output-tokens", "3", "--dtype", "float32", "--json")  # fmt: skip
    answer = json.loads(out)
    assert [m["method"] for m in answer["methods"]] == ["baseline", "vtw,k=12,position=keep"]
    geometry, tokens = PRESETS["llava-0.5b"], [100] * 12 + [40] * 12
    vtw = answer["methods"][1]
    assert vtw["tokens_per_layer"] == tokens and vtw["vision_per_layer"] == [60] * 12 + [0] * 12
    prefill = float(exact_prefill_flops(tokens, geometry))
    steps = [float(exact_decode_flops([t + i for t in tokens], geometry)) for i in (1, 2)]
    assert vtw["flops"]["exact"] == prefill and vtw["flops"]["decode_step"] == steps[0]
    assert vtw["flops"]["answer"] == pytest.approx(prefill + sum(steps))
    assert vtw["kv_bytes"] == float(kv_cache_bytes(tokens, geometry, 4).sum()) == 2 * 4 * 1024 * sum(tokens)
    assert vtw["share_of_baseline"]["kv_bytes"] == pytest.approx(0.7)
    assert answer["methods"][0]["share_of_baseline"]["eq1"] == 1


def test_tables_for_people() -> None:
    text = run("--geometry", "llava-0.5b", "--text", "40", "--vision", "60", "--tower")
    assert "vtw,k=12,position=keep" in text and "with vision tower" in text and "(100.0%)" in text
    markdown = run("--geometry", "qwen2-vl-2b", "--text", "40", "--vision", "60", "--markdown")
    assert "| vtw,k=18,position=keep |" in markdown


def test_a_random_layer_costs_the_mean_over_its_draws() -> None:
    geometry = PRESETS["llava-0.5b"]
    methods = [parse_method(spec) for spec in ("random_k,low=3,high=4", "vtw,k=3", "vtw,k=4")]
    _, drawn, three, four = compare_costs(geometry, methods, text=20, vision=30)
    for name in ("eq1", "profiler", "exact", "decode_step", "kv_bytes"):
        assert getattr(drawn, name) == pytest.approx((getattr(three, name) + getattr(four, name)) / 2)


def test_images_scale_the_tower() -> None:
    def tower(*arguments: str) -> float:
        out = run("--geometry", "llava-0.5b", "--text", "9", "--method", "baseline", "--json", *arguments)
        return float(json.loads(out)["methods"][0]["flops"]["exact"])

    without = tower()
    assert tower("--tower", "--images", "3") - without == pytest.approx(3 * (tower("--tower") - without))


def test_papers_are_printed_and_written() -> None:
    text = run("--paper", "vtw-table3")
    assert "53.125" in text and "53.13" in text and "yes" in text
    tables = json.loads(run("--paper", "vtw-table8", "--json"))
    assert [row["match"] for row in tables[0]["rows"]] == ["yes"] * 4
    assert run("--paper", "vtw-table4", "--markdown").startswith("## VTW, Table 4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--geometry NAME or --config PATH"),
        (["--geometry", "lava-0.5b"], "did you mean 'llava-0.5b'"),
        (["--geometry", "llava-0.5b", "--text", "-1"], "1 or more text"),
        (["--geometry", "llava-0.5b", "--vision", "-1"], "0 or more vision"),
        (["--geometry", "llava-0.5b", "--method", "vtw,k=25"], "0..24"),
        (["--geometry", "llava-0.5b", "--method", "vtv"], "did you mean 'vtw'"),
        (["--geometry", "llava-0.5b", "--dtype", "bf16"], "bfloat16"),
        (["--geometry", "llava-0.5b", "--output-tokens", "0"], "1 or more"),
        (["--geometry", "qwen2-vl-2b"], "give --vision"),
        (["--geometry", "qwen2-vl-2b", "--vision", "9", "--tower"], "native resolution"),
        (["--geometry", "qwen2-vl-2b", "--vision", "9", "--images", "2"], "native resolution"),
        (["--geometry", "llava-0.5b", "--images", "-2"], "0 or more"),
        (["--paper", "tabel2"], "did you mean 'vtw-table2'"),
        (["--paper", "vtw-table2", "--geometry", "llava-0.5b"], "--paper brings its own"),
        (["--paper", "vtw-table2", "--json", "--markdown"], "not both"),
    ],
)
def test_bad_values_are_told_in_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert result.exit_code == 2
    assert result.stdout == "" and words in result.stderr and result.stderr.count("\n") == 1
