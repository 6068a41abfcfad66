"""The embedded checkpoint has a name wherever a checkpoint is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vtw_eval import DyVTE
from vtw_eval.anatomy import find_anatomy
from vtw_eval.checkpoints import CHECKPOINT, EMBEDDED, KNOWN, checkpoint, is_llava_1_5, known
from vtw_eval.cli import app
from vtw_eval.cost.bench.found import Bench
from vtw_eval.cost.bench.subject import load_subject
from vtw_eval.cost.presets import PRESETS, get_geometry
from vtw_eval.methods.dyvte import train as train_gates
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.loading import family_of, load
from vtw_eval.models.options import parse_options
from vtw_eval.models.runner import Runner
from vtw_eval.sweep.plan import find_plan, presets, read_plan
from vtw_eval.sweep.provenance import digest_of

CPU = torch.device("cpu")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture
def namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder called ``shapes`` in the working directory, empty yet."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shapes"
    folder.mkdir()
    return folder


def test_a_name_is_opened_as_it_is_but_for_one() -> None:
    assert checkpoint("shapes") == str(CHECKPOINT)
    for name in ("llava-hf/llava-1.5-7b-hf", "./shapes", "a/shapes", "Shapes", ""):
        assert checkpoint(name) == name


def test_a_folder_without_a_config_does_not_hide_the_embedded_one(namesake: Path) -> None:
    (namesake / "scenes.json").write_text("{}")
    assert checkpoint("shapes") == str(CHECKPOINT)


def test_a_checkpoint_of_that_name_in_the_working_directory_wins_and_is_told(namesake: Path) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (namesake / "config.json").write_text(json.dumps(config))
    before = digest_of(str(CHECKPOINT))
    with pytest.warns(UserWarning, match="'shapes' is the checkpoint in the folder .*, not vtw-eval's embedded one"):
        assert Path(checkpoint("shapes")).samefile(namesake)
    with pytest.warns(UserWarning, match=str(namesake)):
        assert get_geometry("shapes").layers == 3
    with pytest.warns(UserWarning, match=str(namesake)):
        assert digest_of("shapes") == digest_of(str(namesake)) != before  # a sweep sees another checkpoint


def test_the_adapters_open_it_by_name_and_say_the_name() -> None:
    said: list[str] = []
    runner = Runner(
        "llava_vtw", {"pretrained": "shapes", "k": 5, "verify": False}, simple=False, device=CPU, log=said.append
    )
    assert runner.options.pretrained == "shapes"
    assert runner.anatomy.num_layers == get_geometry(CHECKPOINT).layers == 10
    assert "method vtw,k=5,position=keep on shapes (llava, 10 decoder layers" in said[0]


def test_the_wrong_adapter_is_told_by_name() -> None:
    options, _ = parse_options("qwen2vl_vtw", ADAPTERS["qwen2vl_vtw"].options, {"pretrained": "shapes"})
    with pytest.raises(ValueError, match=r"^shapes is a checkpoint of type 'llava'.*Use --model llava_vtw for it"):
        family_of("qwen2vl_vtw", options)


def test_its_own_gates_are_found() -> None:
    options, method = parse_options(
        "llava_vtw", ADAPTERS["llava_vtw"].options, {"pretrained": "shapes", "method": "dyvte"}
    )
    family = load("llava_vtw", options, simple=False, device=CPU)
    bound = method.bind(find_anatomy(family.model))
    assert isinstance(bound, DyVTE) and bound.network.num_layers == 10


def test_cost_and_bench_by_name(tmp_path: Path) -> None:
    named, path = (
        json.loads(invoke("cost", "--geometry", name, "--method", "vtw,k=5", "--json").output)
        for name in ("shapes", str(CHECKPOINT))
    )
    assert named["geometry"] == "shapes" and named["vision"] == 64
    assert named["methods"] == path["methods"]
    configured = invoke("cost", "--config", "shapes", "--method", "vtw,k=5")
    assert configured.output.startswith("shapes: 10 layers")
    done = invoke(
        *("bench", "--model", "shapes", "--method", "vtw", "--device", "cpu", "--text", "20", "--repeats", "1"),
        *("--warmup", "0", "--output-tokens", "2", "--no-verify", "-o", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    found = Bench.model_validate_json((tmp_path / "bench.json").read_text())
    assert found.subject == "shapes"
    assert [row.spec for row in found.settings[0].rows] == ["baseline", "vtw,k=5,position=keep"]
    assert load_subject("shapes", torch.float32, CPU).geometry.name == "shapes"


def test_gates_are_trained_on_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_gates, "read_samples", lambda data, images: ([SimpleNamespace()], 0))
    opened: list[Any] = []

    def train(trainer: Any, output: Path, save_every: int) -> None:
        opened.append(trainer.model)

    monkeypatch.setattr(train_gates, "train", train)
    monkeypatch.setattr(train_gates, "GateTrainer", lambda model, *rest: SimpleNamespace(model=model))
    done = invoke("train-dyvte", "--model", "shapes", "--data", "data.json", "-o", str(tmp_path / "g.safetensors"))
    assert done.exit_code == 0, done.output
    assert "gates for shapes, 1 steps" in done.output
    assert opened[0].config._name_or_path == str(CHECKPOINT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-hf/llava-1.5-7b-hf", "LLaVA-1.5-7B"),
        ("liuhaotian/llava-v1.5-13b", "LLaVA-1.5-13B"),
        ("/data/LLaVA-v1.6-Vicuna-7B-hf/", "LLaVA-NeXT-7B"),
        ("LanguageBind/Video-LLaVA-7B", "Video-LLaVA-7B"),
        ("checkpoints/llava-1.5-7b-lora", "LLaVA-1.5-7B"),
        ("Qwen/Qwen2-VL-7B-Instruct", "Qwen2-VL-7B"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", None),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("OpenGVLab/InternVL2_5-4B", None),
        ("shapes", None),
    ],
)
def test_the_papers_checkpoints_are_known_by_their_names(name: str, expected: str | None) -> None:
    entry = known(name)
    assert (entry and entry.name) == expected


def test_the_facts_of_a_checkpoint_fit_what_the_rooms_have() -> None:
    for entry in KNOWN:
        assert [known(hub) for hub in entry.hub] == [entry] * len(entry.hub)
        assert entry.adapter in ADAPTERS and entry.geometry in PRESETS
        assert entry.k is None or 0 < entry.k < PRESETS[entry.geometry].layers
    in_presets = {model.pretrained for name in presets() for model in read_plan(find_plan(name)).models}
    assert in_presets - set(EMBEDDED) <= {entry.hub[0] for entry in KNOWN}


def test_any_llava_1_5_is_one() -> None:
    assert is_llava_1_5("llava-hf/bakLlava-v1.5-34b") and not is_llava_1_5("llava-hf/llava-v1.6-vicuna-7b-hf")
