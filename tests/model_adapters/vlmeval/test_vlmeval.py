"""Our models inside VLMEvalKit: same prompts and answers as its own, and honest about failures and costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model_adapters.vlmeval.jobs import ADAPTERS, FAILURES, PAIRS, SIX, Pair, kit_jobs
from tests.support.fixtures import ROOT
from tests.support.kit_data import make_kit_data
from vtw_eval.model_adapters.vlmeval.files import read_costs, read_predictions

COUNT = 4


@pytest.fixture(scope="session")
def kit_data(shared: Callable[..., Path]) -> Path:
    """Return the folder of locally made documents for the kit."""
    return shared("kit_data", lambda folder: make_kit_data(folder, COUNT))


@pytest.fixture(scope="session")
def drive(kit_data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run :mod:`tests.model_adapters.vlmeval.drive` on that data, without a network."""

    def call(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        variables = {
            **os.environ,
            "LMUData": str(kit_data / "LMUData"),
            "HF_HOME": str(kit_data / "hf_home"),
            "HF_HUB_OFFLINE": "1",
            "https_proxy": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = (sys.executable, *launcher, "-m", "tests.model_adapters.vlmeval.drive", *words)
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)

    return call


@pytest.fixture(scope="session")
def kit_folder(
    shared: Callable[..., Path],
    checkpoint: Callable[[str], str],
    kit_data: Path,
    drive: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """Return the folder with the outcomes of the jobs of :mod:`tests.model_adapters.vlmeval.jobs`."""

    def make(folder: Path) -> None:
        (folder / "jobs.json").write_text(json.dumps(kit_jobs(checkpoint, kit_data, folder)))
        done = drive(str(folder / "jobs.json"), str(folder / "out.json"))
        assert done.returncode == 0, done.stderr[-2000:]

    return shared("kit", make)


@pytest.fixture(scope="session")
def kit(kit_folder: Path) -> dict[str, Any]:
    """Return the outcome of every job."""
    return json.loads((kit_folder / "out.json").read_text())


def errors(outcome: dict[str, Any]) -> list[str]:
    return [line for line in outcome["stderr"].splitlines() if line.startswith("vtw-vlmeval: error: ")]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_baseline_asks_and_answers_as_the_kits_class(kit: dict[str, Any], pair: Pair) -> None:
    stock, ours = kit[f"{pair.name}: stock"], kit[f"{pair.name}: ours"]
    assert "error" not in stock, stock
    assert "error" not in ours, ours
    assert len(stock) == len(pair.datasets)
    for dataset, expected in stock.items():
        for kind in ("prompts", "longest", "answers", "metrics"):
            assert ours[dataset][kind] == expected[kind], (dataset, kind)
        assert len(set(expected["answers"])) > len(expected["answers"]) / 2, "always the same answer proves nothing"
        assert len({tuple(prompt) for prompt in expected["prompts"]}) == len(expected["prompts"])
        assert [cost["input_tokens"] for cost in ours[dataset]["costs"]] == list(map(len, expected["prompts"]))


def test_both_harnesses_give_the_same_answers_to_the_same_prompts(kit: dict[str, Any], harness: dict[str, Any]) -> None:
    ours = kit["as in lmms-eval"]["AI2D_TEST"]["answers"]
    assert len(set(ours)) == COUNT
    theirs = [answer for (answer,) in harness["llava_hf on llava: ours"]["answers"]["ai2d"]]
    assert ours == [answer.strip() for answer in theirs], "the kit strips answers"


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_six_datasets_are_scored_with_costs(kit: dict[str, Any], kit_folder: Path, adapter: str) -> None:
    assert kit[adapter]["code"] == 0, errors(kit[adapter])
    folder = kit_folder / "out" / adapter
    status = json.loads((folder / "status.json").read_text())["datasets"]
    assert set(status) == set(SIX)
    for dataset in SIX:
        assert status[dataset]["metrics"], dataset
        table = read_predictions(folder / f"{adapter}_{dataset}.xlsx")
        assert len(table) == {"MME": 2 * COUNT, "MMBench_DEV_EN": 4 * COUNT}.get(dataset, COUNT)
        for costs in table["extra_records"]:
            prompt, vision = costs["input_tokens"], costs["vision_tokens"]
            assert vision > 0
            assert costs["tokens_per_layer"] == [prompt, prompt, prompt - vision, prompt - vision]
            assert costs["vision_per_layer"] == [vision, vision, 0, 0]
            flops = sum(2 * (2 * s * s * 64 + 12 * s * 64 * 64) for s in costs["tokens_per_layer"])
            assert costs["prefill_flops"] == flops
            assert costs["method"] == "vtw,k=2,position=keep"
            assert 1 <= costs["output_tokens"] <= 4


def test_videos_by_config(kit: dict[str, Any], kit_folder: Path) -> None:
    assert kit["videos"]["code"] == 0, errors(kit["videos"])
    vision = {}
    for model in ("qwen", "video", "internvl", "onevision"):
        table = read_predictions(kit_folder / "out" / model / f"{model}_Video-MME_8frame.xlsx")
        assert len(table) == 3, "--limit holds for videos"
        assert (kit_folder / "out" / model / f"{model}_Video-MME_8frame_rating.json").exists()
        assert not any("vision_tokens" in answer for answer in table["prediction"])
        vision[model] = {costs["vision_tokens"] for costs in table["extra_records"]}
    # Eight frames: of 56 pixels with patches of 14, and a class token each; of 4 tokens each.
    assert vision["video"] == {8 * 17}
    assert vision["internvl"] == {8 * 4}
    # Three frames, one per second of 24 frames at 8 per second: 16 tokens pooled to 4, and one for the end.
    assert vision["onevision"] == {3 * 4 + 1}
    assert min(vision["qwen"]) > 0


def test_failed_questions_fail_their_dataset_only(kit: dict[str, Any], kit_folder: Path) -> None:
    outcome = kit["crash"]
    assert outcome["code"] == 1
    four, needs_class, misspelt = errors(outcome)
    assert "model video, dataset four: Video-MME: video0.mp4 'These are the frames" in four
    assert "Video-LLaVA takes 8 frames: choose a dataset with nframe=8." in four
    assert "model video, dataset MME: MME needs a 'class' in the config" in needs_class
    assert "model misspelt: unknown class 'LlavaVTV'; did you mean 'LlavaVTW'?" in misspelt
    assert not (kit_folder / "crash" / "video" / "video_four.xlsx").exists()
    assert len(read_predictions(kit_folder / "crash" / "video" / "video_eight.xlsx")) == COUNT


def test_bad_data_fails_its_dataset_only(kit: dict[str, Any], kit_folder: Path) -> None:
    outcome = kit["bad data"]
    assert outcome["code"] == 1
    corrupt, missing, unknown = errors(outcome)
    assert "model llava_vtw, dataset AI2D_TEST: Error tokenizing data." in corrupt
    assert "(its table: " in corrupt
    assert "model llava_vtw, dataset MME: Exception: Failed to download" in missing
    assert "dataset POPEE: unknown dataset 'POPEE'; did you mean 'POPE'?" in unknown
    assert (kit_folder / "bad" / "llava_vtw" / "llava_vtw_POPE_score.csv").exists()


def test_unknown_model_fails_alone(kit: dict[str, Any], kit_folder: Path) -> None:
    outcome = kit["unknown model"]
    assert outcome["code"] == 1
    (line,) = errors(outcome)
    assert "model LLaVA-1.5-7B-VTV: unknown model; did you mean 'LLaVA-1.5-7B-VTW'?" in line
    assert (kit_folder / "unknown" / "llava_vtw" / "llava_vtw_POPE_score.csv").exists()


def test_an_earlier_runs_answers_are_not_taken_for_this_ones(kit: dict[str, Any]) -> None:
    first, afresh, other, same = (kit[name] for name in ("first", "afresh", "again, other", "again, same"))
    assert [first["code"], afresh["code"], other["code"], same["code"]] == [0, 0, 1, 0]
    assert {costs["method"] for costs in first["costs"]} == {"vtw,k=0,position=keep"}
    assert {costs["method"] for costs in afresh["costs"]} == {"vtw,k=4,position=keep"}
    assert first["answers"] != afresh["answers"]
    (line,) = errors(other)
    assert "llava_vtw_POPE.xlsx holds answers of" in line
    assert "leave out --reuse, or choose another --work-dir." in line
    assert (same["answers"], same["costs"]) == (afresh["answers"], afresh["costs"]), "down to the latencies"


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_one_line_and_a_status(kit: dict[str, Any], name: str) -> None:
    assert kit[name]["code"] == 1
    (line,) = errors(kit[name])
    assert FAILURES[name][1] in line


def test_settings_that_hide_failures_are_refused(kit: dict[str, Any]) -> None:
    for name, message in {
        "errors as answers": "SKIP_ERR=1 turns failures into answers",
        "no data folder": "nowhere is not a folder",
    }.items():
        assert kit[name]["code"] == 1
        assert message in errors(kit[name])[0]


def test_help_shows_the_kits_arguments_and_ours(kit: dict[str, Any]) -> None:
    assert kit["help"]["code"] == 0
    assert "--work-dir" in kit["help"]["stdout"]
    assert "--model llava_vtw --model-args pretrained=llava-hf/llava-1.5-7b-hf,method=vtw,k=8" in kit["help"]["stdout"]


def test_two_processes_share_the_documents(
    kit_folder: Path, kit: dict[str, Any], drive: Callable[..., Any], checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    config = json.loads((kit_folder / "videos.json").read_text())
    config["model"] = {"qwen": config["model"]["qwen"]}
    config["data"]["POPE"] = {"class": "ImageYORNDataset", "dataset": "POPE"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29578")
    words = ("--config", str(tmp_path / "config.json"), "--limit", "3", "--work-dir", str(tmp_path))
    done = drive(*words, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Rank 1/2" in done.stderr
    alone = read_predictions(kit_folder / "out" / "qwen" / "qwen_Video-MME_8frame.xlsx")
    shared = read_predictions(tmp_path / "qwen" / "qwen_Video-MME_8frame.xlsx")
    assert list(shared["prediction"]) == list(alone["prediction"])
    assert set(read_costs(tmp_path / "qwen" / "qwen_Video-MME_8frame_costs.jsonl")) == {"0", "1", "2"}
    assert len(read_predictions(tmp_path / "qwen" / "qwen_POPE.xlsx")["extra_records"]) == 3
