"""Our adapters inside lmms-eval: same answers as its own, found by its command line, honest about failures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model_adapters.lmms.jobs import ERRORS, MISSING, PAIRS, Pair

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_baseline_answers_as_the_stock_adapter(harness: dict[str, Any], pair: Pair) -> None:
    stock, ours = harness[f"{pair.name}: stock"], harness[f"{pair.name}: ours"]
    assert "error" not in stock, stock
    assert "error" not in ours, ours
    assert set(ours["answers"]) == set(pair.tasks)
    assert ours["answers"] == stock["answers"]
    answers = [str(answer) for task in pair.tasks for answer in ours["answers"][task]]
    assert len(set(answers)) > len(answers) / 2, "a model that always answers the same proves nothing"


@pytest.mark.parametrize("name", [*ERRORS, *MISSING])
def test_failures_are_one_line_and_a_status(harness: dict[str, Any], name: str) -> None:
    outcome = harness[name]
    lines = [line for line in outcome["stderr"].splitlines() if line.startswith("lmms_eval: error: ")]
    assert outcome["code"] == 1
    assert len(lines) == 1
    assert (ERRORS[name][-1] if name in ERRORS else MISSING[name]) in lines[0]
    assert "Traceback" not in outcome["stderr"]


def test_console_script_scores_and_writes_costs(
    run: Run, script: str, checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    done = run(
        f"{script}/lmms_eval",
        *("--model", "llava_vtw", "--model_args", f"pretrained={checkpoint('llava')},k=1,sharing=off"),
        *("--tasks", "mme,pope,ai2d"),
        *("--device", "cpu", "--batch_size", "4", "--gen_kwargs", "max_new_tokens=6"),
        *("--output_path", str(tmp_path), "--log_samples"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "llava_vtw: method vtw,k=1,position=keep on" in done.stdout
    assert "mme_perception_score" in done.stdout
    (results_file,) = tmp_path.rglob("*_results.json")
    means = json.loads(results_file.read_text())["throughput"]
    costs = [
        row["token_counts"][0]
        for file in tmp_path.rglob("*_samples_*.jsonl")
        for row in map(json.loads, file.read_text().splitlines())
    ]
    assert len(costs) == 8 + 4 + 4
    hidden, layers = 64, 4
    for cost in costs:
        prompt, vision = cost["input_tokens"], cost["vision_tokens"]
        assert vision == 16  # 56 pixels, patches of 14
        assert cost["tokens_per_layer"] == [prompt, *[prompt - vision] * (layers - 1)]
        assert cost["vision_per_layer"] == [vision, 0, 0, 0]
        flops = sum(2 * (2 * s * s * hidden + 12 * s * hidden * hidden) for s in cost["tokens_per_layer"])
        assert cost["prefill_flops"] == flops
        assert 1 <= cost["output_tokens"] <= 6
        assert cost["latency_s"] > 0
    for name in ("prefill_flops", "input_tokens", "vision_tokens", "latency_s"):
        assert means[f"avg_{name}"] == pytest.approx(sum(cost[name] for cost in costs) / len(costs))


def test_documents_about_one_image_share_it_and_have_no_latency(
    run: Run, script: str, checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    rows: dict[str, list[Any]] = {}
    for sharing in ("auto", "off"):
        done = run(
            f"{script}/lmms_eval",
            *("--model", "llava_vtw", "--model_args", f"pretrained={checkpoint('llava')},k=1,sharing={sharing}"),
            *("--tasks", "mme", "--device", "cpu", "--batch_size", "2", "--gen_kwargs", "max_new_tokens=6"),
            *("--output_path", str(tmp_path / sharing), "--log_samples"),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (samples,) = (tmp_path / sharing).rglob("*_samples_*.jsonl")
        rows[sharing] = [json.loads(line) for line in samples.read_text().splitlines()]
        (results_file,) = (tmp_path / sharing).rglob("*_results.json")
        assert ("avg_latency_s" in json.loads(results_file.read_text())["throughput"]) == (sharing == "off")
    assert len(rows["auto"]) == 8
    for together, alone in zip(rows["auto"], rows["off"], strict=True):
        assert together["filtered_resps"] == alone["filtered_resps"]
        costs, other = together["token_counts"][0], alone["token_counts"][0]
        assert (costs.pop("latency_s"), costs.pop("batch_rows")) == (None, 2)
        assert other.pop("latency_s") > 0
        assert other.pop("batch_rows") == 2
        assert costs == other


def test_stock_command_line_finds_us(run: Run, script: str, checkpoint: Callable[[str], str]) -> None:
    done = run(
        f"{script}/lmms-eval",
        *("--model", "video_llava_vtw", "--model_args", f"pretrained={checkpoint('video_llava')},k=2"),
        *("--tasks", "videomme", "--device", "cpu", "--batch_size", "4", "--gen_kwargs", "max_new_tokens=4"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|videomme_perception_score|" in done.stdout


def test_two_processes_share_the_documents(
    run: Run, script: str, checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    done = run(
        *(f"{script}/python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29577"),
        *("-m", "vtw_eval.model_adapters.lmms.cli"),
        *("--model", "llava_vtw", "--model_args", f"pretrained={checkpoint('llava')},k=2", "--tasks", "mme"),
        *("--device", "cpu", "--batch_size", "3", "--gen_kwargs", "max_new_tokens=4"),
        *("--output_path", str(tmp_path), "--log_samples"),
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Running on rank 1" in done.stdout
    (samples,) = tmp_path.rglob("*_samples_mme.jsonl")
    assert sorted(json.loads(line)["doc_id"] for line in samples.read_text().splitlines()) == list(range(8))
