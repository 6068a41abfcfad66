"""A finished cell counts as long as what made it and what it read are what they were."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.support.checkpoints import make_checkpoint
from tests.support.fixtures import ROOT
from vtw_eval.cli import app
from vtw_eval.methods.dyvte.gates import Gates, save_gates
from vtw_eval.model_adapters import source
from vtw_eval.model_adapters.lmms.harness import LmmsEval
from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.record.store import Store
from vtw_eval.sweep import provenance
from vtw_eval.sweep.bundles import Job
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.harness import Evaluation
from vtw_eval.sweep.plan import Plan, parse_plan
from vtw_eval.sweep.sweep import run_sweep


def spec_of(**changes: object) -> CellSpec:
    values = {"model": "m", "adapter": "llava_vtw", "pretrained": "shapes", "method": "baseline", "task": "t"}
    return CellSpec.model_validate({**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder, without anything that could be loaded."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "optimizer.pt", "notes.md"):
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_is_known_by_the_content_of_its_files(folder: Path, name: str) -> None:
    before = provenance.digest_of(str(folder))
    (folder / "notes.md").write_text("other")
    (folder / "optimizer.pt").write_text("other")
    (folder / "checkpoint-5").mkdir()
    for file in folder.glob("*.*"):
        os.utime(file, (1, 1))
    assert provenance.digest_of(str(folder)) == before
    (folder / name).write_text(f"Content of {name}")  # as long as before
    assert provenance.digest_of(str(folder)) != before
    (folder / name).unlink()
    assert provenance.digest_of(str(folder)) != before


def test_a_big_file_is_known_by_size_time_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "BIG", 1000)
    monkeypatch.setattr(provenance, "_BLOCK", 10)
    file = tmp_path / "weights.safetensors"

    def digest(content: bytes, time: int) -> str:
        file.write_bytes(content)
        os.utime(file, (time, time))
        provenance._content.cache_clear()
        return provenance.digest_of(str(file))

    content = bytes(2000)
    before = digest(content, 5)
    assert digest(content, 5) == before
    assert digest(content, 6) != before
    assert digest(bytes(2001), 5) != before
    for place in (0, 1990 * 7 // 15, 1999):  # begin, middle, end
        assert digest(content[:place] + b"x" + content[place + 1 :], 5) != before


def test_a_checkpoint_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--acme--tiny"
    for number in (1, 2):
        (repository / "snapshots" / (str(number) * 40)).mkdir(parents=True)
        (repository / "snapshots" / (str(number) * 40) / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    (repository / "refs" / "next").write_text("2" * 40)
    assert provenance.checkpoint_read(spec_of(pretrained="acme/tiny")) == {"acme/tiny": "1" * 40}
    of_branch = spec_of(pretrained="acme/tiny", model_args={"revision": "next"})
    assert provenance.checkpoint_read(of_branch) == {"acme/tiny@next": "2" * 40}
    assert provenance.checkpoint_read(spec_of(pretrained="acme/none")) == {}
    assert provenance.checkpoint_read(spec_of(pretrained="/no/such folder")) == {}


def test_files_that_a_method_names_are_read(tmp_path: Path) -> None:
    gates = tmp_path / "gates.safetensors"
    gates.write_text("one")
    specs = [spec_of(method=f"dyvte,gates={gates}"), spec_of(method=f"fastv+dyvte,dyvte.gates={gates}")]
    before = [provenance.method_read(spec) for spec in specs]
    assert [list(read) for read in before] == [[str(gates)]] * 2
    gates.write_text("two")
    assert all(provenance.method_read(spec) != read for spec, read in zip(specs, before, strict=True))
    assert provenance.method_read(spec_of(method="vtw,k=2")) == {}


def test_local_data_are_read_and_what_a_loader_leaves_there_is_not(tmp_path: Path) -> None:
    data = tmp_path / "acme" / "POPE"
    data.mkdir(parents=True)
    (data / "test.parquet").write_text("rows")
    named = {"data_files": {"test": [str(tmp_path / "acme" / "POPE"), "far/away"]}, "token": True}
    before = provenance.data_read(["pope", named])
    assert list(before) == [str(data)]
    (data / "cache-0.arrow").write_text("")
    (data / ".cache").mkdir()
    assert provenance.data_read(named) == before
    (data / "test.parquet").write_text("Rows")
    assert provenance.data_read(named) != before


def test_the_code_of_a_cell_is_that_of_its_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    code = provenance.code_of(spec_of())
    assert set(code) == {"vtw-eval", "engine", "method", "model", "adapter", "task", "scoring", "commit"}
    kit = provenance.code_of(spec_of(harness="vlmevalkit"))
    assert {part for part in code if code[part] != kit[part]} == {"adapter"}
    assert provenance.code_of(spec_of(method="vtw,k=3"))["method"] != code["method"]
    root = Path(provenance.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
        assert len(code["commit"].rstrip("+")) == 12
        assert head.returncode == 0


def test_what_evaluates_a_cell_is_part_of_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of any of these files is noticed; one of the other harness is not."""
    for function in (provenance._shared_code, provenance._method_code, source.code_of):
        function.cache_clear()

    def told(files: Iterable[Path]) -> str:
        return " ".join(str(file.resolve()) for file in files)

    monkeypatch.setattr(provenance, "source_hash", told)
    monkeypatch.setattr(source, "source_hash", told)
    try:
        code = provenance.code_of(spec_of(method="fastv+vtw,vtw.k=3"))
    finally:
        for function in (provenance._shared_code, provenance._method_code, source.code_of):
            function.cache_clear()
    expected = {
        "model": ["vtw_eval/models/runner.py", "vtw_eval/models/qwen2_vl.py", "vtw_eval/media.py"],
        "scoring": ["vtw_eval/record/metrics.py", "vtw_eval/sweep/costs.py", "vtw_eval/cost/exact.py"],
        "adapter": ["model_adapters/lmms/samples.py", "model_adapters/lmms/cells.py", "model_adapters/patches.py"],
        "task": ["tasks/shapes/scoring.py", "tasks/shapes/shapes_pope.yaml", "vtw_eval/shapes/questions.py"],
        "method": ["vtw_eval/methods/fastv.py", "vtw_eval/methods/vtw/method.py"],
    }
    for part, files in expected.items():
        for file in files:
            assert str(ROOT / file) in code[part].split(), part
    assert "model_adapters/vlmeval" not in code["adapter"]


def test_answers_are_known_by_the_model_the_method_and_the_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an answer book was made with; the task, the limit and the seed are in the prompts."""
    method = tmp_path / "own.py"
    text = (
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from vtw_eval.methods import Baseline\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Baseline):\n"
        "    key: ClassVar[str] = 'own'\n"
    )
    method.write_text(text)
    spec = spec_of(pretrained=str(folder), method=f"{method}:Own")
    read = provenance.checkpoint_read(spec)
    known = [provenance.fingerprint(spec, read)]
    same = {"model": "called otherwise", "task": "u", "limit": 3, "seed": 4}
    assert provenance.fingerprint(spec.model_copy(update=same), read) == known[0]
    for other in ({"method": "baseline"}, {"model_args": {"dtype": "float16"}}, {"adapter": "qwen2vl_vtw"}):
        known.append(provenance.fingerprint(spec.model_copy(update=other), read))
    (folder / "model.safetensors").write_text("trained again")
    known.append(provenance.fingerprint(spec, provenance.checkpoint_read(spec)))
    method.write_text(text + "# changed\n")
    provenance._method_code.cache_clear()
    known.append(provenance.fingerprint(spec, read))
    monkeypatch.setattr(provenance, "engine_hash", lambda: "other engine")
    provenance._shared_code.cache_clear()
    known.append(provenance.fingerprint(spec, read))
    monkeypatch.setattr(provenance, "environment", lambda: {"torch": "0.1"})
    known.append(provenance.fingerprint(spec, read))
    provenance._shared_code.cache_clear()
    provenance._method_code.cache_clear()
    assert len(set(known)) == len(known) == 8


class Noted(Display):
    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that are evaluated, here and by nothing: workers are this process."""
    from vtw_eval.sweep.runner import CellRunner

    ran: list[str] = []

    class Instant:
        def evaluate(self, spec: CellSpec, progress: object) -> Evaluation:
            ran.append(spec.method.split(",")[0])
            return Evaluation({}, [], None)

    def run(jobs: list[Job], store: Store, settings: object, *_: object) -> None:
        runner = CellRunner(store, settings)  # type: ignore[arg-type]
        for first in jobs:
            job: Job | None = first
            while job is not None:
                runner.run(job)
                job = job.following

    monkeypatch.setattr(LmmsEval, "open", lambda self, spec, settings: Instant())
    monkeypatch.setattr("vtw_eval.sweep.sweep.run_local", run)
    return ran


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    model = make_checkpoint("llava", tmp_path / "tiny")
    sizes = json.loads((model / "config.json").read_text())["text_config"]
    gates = Gates(sizes["hidden_size"], sizes["num_hidden_layers"], inner=16).initialise(0)
    save_gates(gates, tmp_path / "gates.safetensors")
    return parse_plan(
        {
            "models": [{"name": "tiny", "adapter": "llava_vtw", "pretrained": str(model)}],
            "methods": ["baseline", f"dyvte,gates={tmp_path / 'gates.safetensors'},check_name=false"],
            "tasks": ["shapes_pope"],
            "device": "cpu",
        }
    )


def again(plan: Plan, folder: Path, **how: bool) -> list[str]:
    watcher = Noted()
    run_sweep(plan, folder, watcher, **how)
    return watcher.notes


def rewritten(store: Store, change: Callable[[Cell], Cell]) -> None:
    for cell in store.cells():
        store.save(change(cell), store.samples(cell))


def test_cells_run_again_when_what_made_them_has_changed(plan: Plan, evaluated: list[str], tmp_path: Path) -> None:
    out, gates = tmp_path / "out", tmp_path / "gates.safetensors"
    assert again(plan, out) == []
    assert evaluated == ["baseline", "dyvte"]
    assert again(plan, out) == []
    assert len(evaluated) == 2

    evaluated.clear()
    gates.write_bytes(gates.read_bytes()[:-1] + b"\1")  # trained again, to the same path
    [note] = again(plan, out, keep=True)  # inputs count whatever is said about code
    assert evaluated == ["dyvte"]
    assert note.endswith(f"what they read has changed ({gates}); run again")
    assert again(plan, out) == []

    evaluated.clear()
    config = tmp_path / "tiny" / "config.json"
    config.write_text(config.read_text() + " ")
    [note] = again(plan, out)
    assert evaluated == ["baseline", "dyvte"]
    assert f"and 1 more: what they read has changed ({tmp_path / 'tiny'})" in note

    evaluated.clear()
    store = Store(out)
    rewritten(store, lambda cell: cell.model_copy(update={"code": {**cell.code, "engine": "older"}}))
    [note] = again(plan, out, keep=True)
    assert evaluated == []
    assert "made by other code: engine older (now " in note
    assert note.endswith("kept as finished")
    [note] = again(plan, out)
    assert evaluated == ["baseline", "dyvte"]
    assert note.endswith("run again")

    evaluated.clear()
    rewritten(store, lambda cell: cell.model_copy(update={"code": {}, "read": {}}))  # as older versions wrote them
    assert len(store.cells()) == 2
    told = CliRunner().invoke(app, ["sweep", "--status", str(out)])
    assert told.exit_code == 0
    assert "next start: tiny / baseline / shapes_pope and 1 more: made by other code" in told.output
    [note] = again(plan, out)
    assert "code that was not recorded yet; run again" in note
    assert evaluated == ["baseline", "dyvte"]

    evaluated.clear()
    rewritten(store, lambda cell: cell.model_copy(update={"environment": {**cell.environment, "torch": "2.0"}}))
    [note] = again(plan, out)
    assert "made with torch 2.0 (now " in note
    assert note.endswith("kept as finished")
    assert evaluated == []


def test_what_is_gone_has_not_changed(plan: Plan, evaluated: list[str], tmp_path: Path) -> None:
    again(plan, tmp_path / "out")
    evaluated.clear()
    shutil.rmtree(tmp_path / "tiny")
    assert again(plan, tmp_path / "out") == []
    assert evaluated == []
