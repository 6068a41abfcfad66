"""Every group of tasks, run by name on datasets and checkpoints that the stock loaders fetch by id from a Hub."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("lmms_eval")

from tests.support.checkpoints import make_checkpoint
from tests.support.harness_data import MAKERS
from tests.support.hub_server import SCORE, serve
from vtw_eval.papers.benchmarks import columns, lmms_tasks, table_of

ROOT = Path(__file__).parents[2]
MODELS = {
    "vtw-table2": ("llava_vtw", "llava"),
    "vtw-table3": ("video_llava_vtw", "video_llava"),
    "vtw_table3": ("video_llava_vtw", "video_llava"),  # its name at first
    "vtw-table8": ("qwen2vl_vtw", "qwen2_vl"),
    "dyvte-table1": ("llava_vtw", "llava"),
    "dyvte-table2": ("llava_vtw", "llava"),
}
"""Adapter and family of the tiny checkpoint for each group."""
REST = "--device cpu --limit 2 --batch_size 2 --gen_kwargs max_new_tokens=4 --verbosity WARNING --log_samples"


def make_hub(root):
    """Write the datasets and checkpoints of the Hub."""
    for make in MAKERS.values():
        make(root / "datasets", 4)
    for _, family in set(MODELS.values()):
        make_checkpoint(family, root / "models" / "acme" / f"tiny-{family}")


def run_all(base):
    """Prepare TGIF-QA by its id and run every group, and one task whose file is missing."""
    make_hub(base / "hub")
    (base / "work").mkdir()
    jobs = {}
    for name, (adapter, family) in {"missing file": MODELS["vtw-table2"], **MODELS}.items():
        task = "pope" if name == "missing file" else name
        source = f"--model {adapter} --model_args pretrained=acme/tiny-{family},k=2 --tasks {task}"
        jobs[name] = {"command": [*source.split(), *REST.split(), "--output_path", str(base / "out" / name)]}
    jobs["missing file"]["hide"] = str(base / "hub/datasets/lmms-lab-encoder/POPE/data/test.parquet")
    (base / "jobs.json").write_text(json.dumps(jobs))
    with serve(base / "hub") as hub:
        environment = {
            **{key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_made_up",
            "HF_HOME": str(base / "hf_home"),
            "XDG_CACHE_HOME": str(base / "cache"),
            "OPENAI_API_URL": f"{hub.url}/v1",
            "OPENAI_API_KEY": "made up",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        script = str(Path(sys.executable).with_name("vtw-eval"))
        for command in (
            (script, "prepare-tgif", "acme/TGIF-QA"),
            (sys.executable, "-m", "tests.model_adapters.lmms.drive", str(base / "jobs.json"), str(base / "out.json")),
        ):
            done = subprocess.run(
                command, cwd=base / "work", env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stderr[-3000:]
    (base / "requests.json").write_text(json.dumps(hub.requests))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the runs, made once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "groups"
    with FileLock(str(shared / "groups.lock")):
        if not (folder / "requests.json").exists():
            folder.mkdir()
            run_all(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(base):
    return json.loads((base / "out.json").read_text())


@pytest.mark.parametrize("group", MODELS)
def test_a_group_runs_under_its_name(base, outcomes, group):
    assert outcomes[group]["code"] == 0, outcomes[group]["stderr"][-1500:]
    (file,) = (base / "out" / group).glob("acme__*/*_results.json")
    found = json.loads(file.read_text())
    tasks = set(lmms_tasks(columns(group)))
    assert set(found["group_subtasks"][table_of(group)]) == tasks
    assert {name: counts["effective"] for name, counts in found["n-samples"].items()} == dict.fromkeys(tasks, 2)
    for entry in columns(group):
        for metric in entry.lmms.metrics:
            if metric == "mme_cognition_score":
                continue  # the first two documents are on perception
            (value,) = (
                value
                for key, value in found["results"][entry.lmms.name].items()
                if key.split(",")[0] == metric and "stderr" not in key
            )
            assert 0 <= value <= entry.lmms.top
    for task in tasks:
        (samples,) = (base / "out" / group).rglob(f"*_samples_{task}.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        assert len(rows) == 2
        assert all(row["token_counts"][0]["vision_tokens"] > 0 for row in rows)


def test_the_judge_was_asked_and_its_score_counts(base, outcomes):
    (file,) = (base / "out" / "dyvte-table1").glob("acme__*/*_results.json")
    found = json.loads(file.read_text())["results"]["mmvet_judged"]
    assert found["gpt_eval_score,none"] == pytest.approx(100 * float(SCORE))
    assert json.loads((base / "requests.json").read_text()).count("POST /v1/chat/completions") == 2


def test_datasets_and_checkpoints_were_fetched_by_id(base, outcomes):
    requests = [re.sub("[0-9a-f]{40}", "SHA", line) for line in json.loads((base / "requests.json").read_text())]
    fetched = {line for line in requests if line.startswith("GET ")}
    images = ("MME", "POPE", "ai2d", "ScienceQA", "MMMU", "MMBench", "SEED-Bench", "MMVet", "GQA", "VQAv2", "textvqa")
    for name in images:
        prefix = f"GET /datasets/lmms-lab-encoder/{name}/resolve/SHA/data/"
        assert any(line.startswith(prefix) and line.endswith(".parquet") for line in fetched), name
    for _, family in MODELS.values():
        assert f"GET /acme/tiny-{family}/resolve/SHA/model.safetensors" in fetched
    assert "GET /datasets/lmms-eval/Video-MME/resolve/SHA/videos_chunked_01.zip" in fetched
    assert "GET /datasets/acme/TGIF-QA/resolve/SHA/gif/tumblr_1.gif" in fetched


def test_a_missing_dataset_file_is_named_and_the_exit_status_tells(outcomes):
    assert outcomes["missing file"]["code"] == 1
    (line,) = re.findall("lmms_eval: error: .*", outcomes["missing file"]["stderr"])
    assert "task pope: the dataset lmms-lab-encoder/POPE cannot be loaded. Its files belong in " in line
    assert re.search("datasets--lmms-lab-encoder--POPE, .* Unable to find '.*data/test.parquet'", line)


def test_an_unscored_answer_stops_mmvet_judged(monkeypatch):
    """lmms-eval's own function gives 0 to an answer that no judge scored."""
    monkeypatch.setenv("OPENAI_API_KEY", "made up")
    from lmms_eval.tasks.mmvet import utils

    from vtw_eval.tasks.groups import judged

    doc = {"question_id": "v1_0", "question": "?", "answer": "yes", "capability": "rec"}
    monkeypatch.setattr(utils, "get_chat_response", lambda *_, **__: ("", ""))
    assert utils.mmvet_process_results(doc, ["no"])["gpt_eval_score"]["score"] == 0
    with pytest.raises(RuntimeError, match="no judge scored MM-Vet question v1_0: set OPENAI_API_KEY"):
        judged.process_results(doc, ["no"])
    monkeypatch.setattr(utils, "get_chat_response", lambda *_, **__: ("0.7", "judge"))
    assert judged.process_results(doc, ["no"])["gpt_eval_score"]["score"] == 0.7
