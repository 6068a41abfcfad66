"""Replaced functions of the harnesses: those that exist, and those that upstream no longer calls."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL
from vtw_eval.model_adapters.patches import Patch, Patches
from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT
from vtw_eval.versions import UpstreamChangedError

HARNESS = Patch("fvcore", "made_harness", "Tasks.find", ("name", "limit"), "questions are forgotten")


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module with a function to replace."""

    class Tasks:
        def find(self, name: str, limit: int = 3) -> tuple[str, int]:
            return name, limit

    module: Any = types.ModuleType("made_harness")
    module.Tasks = Tasks
    monkeypatch.setitem(sys.modules, "made_harness", module)
    return module


def double(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, name, limit=3: original(self, name, 2 * limit)


def test_calls_are_replaced_counted_and_put_back(harness: Any) -> None:
    patches = Patches({"find": HARNESS})
    before = harness.Tasks.find
    with patches.replaced("find", double):
        assert harness.Tasks().find("a", limit=2) == ("a", 4)
        patches.require(["find"])
        then = patches.calls.copy()
        with pytest.raises(
            UpstreamChangedError, match=r"did not call made_harness.Tasks.find, without which questions"
        ):
            patches.require(["find"], then)
        harness.Tasks().find("b")
        patches.require(["find"], then)
    assert harness.Tasks.find is before
    assert patches.calls == {"find": 2}


def test_one_of_several_is_enough(harness: Any) -> None:
    patches = Patches({"find": HARNESS, "other": HARNESS})
    with patches.replaced("find", double):
        harness.Tasks().find("a")
    patches.require(["other|find"])
    with pytest.raises(UpstreamChangedError, match=r"fvcore \S+ is installed; vtw-eval \S+ is tested with fvcore"):
        patches.require(["other|find", "other"])


@pytest.mark.parametrize(
    ("attribute", "message"), [("Tasks", "has no made_harness.Tasks.find"), ("find", "has no made_harness.Tasks.find")]
)
def test_a_name_that_is_gone_is_told(
    harness: Any, attribute: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(harness if attribute == "Tasks" else harness.Tasks, attribute)
    with pytest.raises(UpstreamChangedError, match=message), Patches({"find": HARNESS}).replaced("find", double):
        pass


def test_another_parameter_is_told(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.Tasks, "find", lambda self, name, count=3: None)
    changed = pytest.raises(UpstreamChangedError, match="takes self, name, count, and not limit")
    with changed, Patches({"find": HARNESS}).replaced("find", double):
        pass


@pytest.mark.parametrize(("table", "package"), [(LMMS_EVAL, "lmms_eval"), (VLMEVALKIT, "vlmeval")])
def test_every_patch_has_its_place_here(table: dict[str, Patch], package: str) -> None:
    pytest.importorskip(package)
    for patch in table.values():
        owner, name = patch.place()
        assert callable(getattr(owner, name)) or name in ("rd", "random")
        assert patch.module.startswith(package) or patch.package == "torch"


def test_what_is_no_function_is_exchanged_and_put_back(harness: Any) -> None:
    harness.draws = before = object()
    patches = Patches({"draws": Patch("fvcore", "made_harness", "draws", (), "options are drawn")})
    with patches.exchanged("draws", other := object()):
        assert harness.draws is other
    assert harness.draws is before


# --- lmms-eval's command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model a --tasks mme", True),
        ("eval --model a --tasks=mme", True),
        ("--config run.yaml", True),
        ("--tasks list", True),  # which ends by itself, through the function that is replaced
        ("--model a --tasks mme --help", False),
        ("--tasks mme --power_analysis", False),
        ("tasks list", False),
        ("power --tasks mme", False),
        ("eval", False),
        ("--tui", False),
    ],
)
def test_what_evaluates(words: str, expected: bool) -> None:
    from vtw_eval.model_adapters.lmms.cli import evaluates

    assert evaluates(words.split()) is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--tasks mme --verbosity DEBUG", "DEBUG"),
        ("--verbosity=DEBUG", "DEBUG"),
        ("--tasks mme --output_path DEBUG --model_args pretrained=DEBUG/run", None),
        ("--verbosity INFO --output_path DEBUG", "INFO"),
    ],
)
def test_tracebacks_are_asked_for_by_verbosity_alone(words: str, expected: str | None) -> None:
    from vtw_eval.model_adapters.lmms.cli import _verbosity

    assert _verbosity(words.split()) == expected


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run our command line of lmms-eval with other code in the place of lmms-eval's; return exit status and errors."""
    pytest.importorskip("lmms_eval")
    import lmms_eval.__main__ as upstream
    from lmms_eval.cli import dispatch

    from vtw_eval.model_adapters.lmms import cli as lmms_cli

    def run(main: Callable[[Any], Any], evaluate: Callable[[Any], Any]) -> tuple[int, str]:
        def single(args: argparse.Namespace) -> Any:
            return evaluate(args)

        monkeypatch.setattr(upstream, "cli_evaluate_single", single)
        monkeypatch.setattr(dispatch, "main", lambda: main(upstream))
        monkeypatch.setattr(sys, "argv", ["lmms_eval", "--model", "llava_vtw", "--tasks", "mme"])
        try:
            lmms_cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


ARGS = argparse.Namespace(tasks="mme", verbosity="INFO", output_path=None)


def with_tasks(args: argparse.Namespace) -> Any:
    from lmms_eval.tasks import TaskManager

    TaskManager("ERROR", include_defaults=False)
    return {"results": {}}, {}


def test_an_evaluation_as_upstream_does_it(lmms: Any) -> None:
    assert lmms(lambda upstream: upstream.cli_evaluate_single(ARGS), with_tasks) == (0, "")


@pytest.mark.parametrize("end", [lambda: None, lambda: sys.exit(0)])
def test_an_evaluation_by_another_function_is_refused(lmms: Any, end: Callable[[], None]) -> None:
    code, errors = lmms(lambda upstream: end(), with_tasks)
    assert code == 1
    assert errors.startswith("lmms_eval: error: lmms-eval did not call lmms_eval.__main__.cli_evaluate_single, without")
    assert "lmms-eval 0." in errors and "is tested with lmms-eval>=" in errors


def test_tasks_found_by_another_class_are_refused(lmms: Any) -> None:
    code, errors = lmms(lambda upstream: upstream.cli_evaluate_single(ARGS), lambda args: ({"results": {}}, {}))
    assert code == 1
    assert "did not call lmms_eval.tasks.TaskManager.__init__, without which vtw-eval's own tasks" in errors


def test_an_exit_status_of_upstream_stays(lmms: Any) -> None:
    assert lmms(lambda upstream: sys.exit(2), with_tasks) == (2, "")


def test_our_tasks_are_found_however_the_folders_are_passed() -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager

    from vtw_eval.model_adapters.lmms.cli import include_our_tasks, tasks_folder

    with include_our_tasks(patches := Patches(LMMS_EVAL)):
        made = [
            TaskManager("ERROR", include_defaults=False),
            TaskManager("ERROR", None, False),
            TaskManager(verbosity="ERROR", include_path=[], include_defaults=False),
        ]
    assert all(manager.include_path == [str(tasks_folder())] for manager in made)
    assert patches.calls == {"tasks": 3}


# --- VLMEvalKit's session


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a session of the kit in which one dataset was built; nothing was called yet."""
    pytest.importorskip("vlmeval")
    from vtw_eval.model_adapters.vlmeval.session import Session

    return Session()


def dataset(modality: str = "IMAGE", kind: str = "Y/N", rows: int = 3) -> Any:
    return types.SimpleNamespace(MODALITY=modality, TYPE=kind, data=[0] * rows, dataset_name="POPE")


def arguments(mode: str = "all", reuse: bool = False, limit: int | None = 3) -> argparse.Namespace:
    return argparse.Namespace(mode=mode, reuse=reuse, limit=limit)


ALL = ("fresh", "build", "judge", "images", "image table", "videos", "video table", "video job")


@pytest.mark.parametrize(
    ("given", "args", "needed"),
    [
        (dataset(), arguments(), {"fresh", "build", "judge", "images", "image table"}),
        (dataset(), arguments("eval"), {"fresh", "build", "judge"}),
        (dataset(kind="MT"), arguments(), {"fresh", "build", "judge"}),
        (dataset("VIDEO"), arguments(), {"fresh", "build", "judge", "videos", "video table", "video job"}),
        (dataset("VIDEO"), arguments(reuse=True), {"fresh", "build", "judge", "video job"}),
    ],
    ids=["images", "only scores", "several turns", "videos", "videos again"],
)
def test_each_needed_call_is_missed(kit: Any, given: Any, args: argparse.Namespace, needed: set[str]) -> None:
    kit.built["POPE"] = given
    kit.patches.calls.update(ALL)
    kit.check("POPE", args, {})
    for name in ALL:
        kit.patches.calls.clear()
        kit.patches.calls.update(other for other in ALL if other != name)
        if name not in needed:
            kit.check("POPE", args, {})
            continue
        with pytest.raises(UpstreamChangedError, match=r"ms-vlmeval did not call vlmeval\.\S+.*, without which"):
            kit.check("POPE", args, {})


def test_calls_for_an_earlier_dataset_do_not_count(kit: Any) -> None:
    kit.built["POPE"] = dataset()
    kit.patches.calls.update(ALL)
    with pytest.raises(UpstreamChangedError, match="did not call"):
        kit.check("POPE", arguments(), kit.patches.calls.copy())


def test_more_questions_than_the_limit_are_refused(kit: Any) -> None:
    kit.built["POPE"] = dataset(rows=4)
    kit.patches.calls.update(ALL)
    with pytest.raises(UpstreamChangedError, match="POPE was asked 4 questions with a limit of 3"):
        kit.check("POPE", arguments(), {})


def test_another_name_of_unfinished_answers_is_refused() -> None:
    pytest.importorskip("vlmeval")
    from vtw_eval.model_adapters.vlmeval.files import check_part

    for name in ("01_POPE.pkl", "12_model_POPE.pkl"):
        check_part(Path(name), "POPE", "model_POPE")
    for name in ("POPE_01.pkl", "01_POPE.json", "rank0_POPE.pkl", "01_MME.pkl"):
        with pytest.raises(UpstreamChangedError, match="ms-vlmeval"):
            check_part(Path(name), "POPE", "model_POPE")


def test_a_model_that_the_kit_did_not_ask_for_is_told() -> None:
    pytest.importorskip("vlmeval")
    from vtw_eval.model_adapters.vlmeval.cli import _Made, _unused

    made = _Made("model")
    (line,) = _unused("llava_vtw", made)
    assert line.startswith("model llava_vtw: VLMEvalKit has answered without the model that its table supported_VLM")
    assert made(use_vllm=False) == "model"
    assert _unused("llava_vtw", made) == []
    with pytest.raises(ValueError, match="--use-vllm is not possible"):
        made(use_vllm=True)


@pytest.mark.parametrize("forgotten", [None, "prepare_reuse_files", "get_judge_kwargs", "build_dataset", "load"])
def test_a_kit_that_forgets_a_function_fails_its_dataset(
    forgotten: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vlmeval")
    from vlmeval import run

    from vtw_eval.model_adapters.vlmeval.cli import run_model
    from vtw_eval.model_adapters.vlmeval.session import session

    def prepare_reuse_files(result_file: Any, reuse: Any, dataset: Any, model_name: Any) -> None:
        """Stand for the kit's own."""

    def get_judge_kwargs(dataset_name: str, dataset_type: str, args: Any) -> dict[str, Any]:
        return {}

    def build_dataset_from_config(config: Any, dataset_name: str) -> Any:
        return dataset(kind="VQA")

    def upsert_dataset_status(
        dataset_name: str,
        status: Any = None,
        skip_reason: Any = None,
        error_message: Any = None,
        metrics_source: Any = 0,
    ) -> None:
        """Stand for the kit's own."""

    given = {"dataset": dataset(), "result_file": str(tmp_path / "m_POPE.xlsx"), "model_name": "m", "reuse": False}
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: run.load("config.json"),
        "build_dataset": lambda: run.build_dataset_from_config({"POPE": {"class": "X"}}, "POPE"),
        "get_judge_kwargs": lambda: run.get_judge_kwargs("POPE", "VQA", args),
        "prepare_reuse_files": lambda: run.prepare_reuse_files(**given),
        "status": lambda: run.upsert_dataset_status(dataset_name="POPE", status="done", metrics_source={"acc": 1.0}),
    }
    monkeypatch.setattr(run, "prepare_reuse_files", prepare_reuse_files)
    monkeypatch.setattr(run, "get_judge_kwargs", get_judge_kwargs)
    monkeypatch.setattr(run, "build_dataset_from_config", build_dataset_from_config)
    monkeypatch.setattr(run, "upsert_dataset_status", upsert_dataset_status)
    monkeypatch.setattr(run, "run_task", lambda args: [call() for name, call in calls.items() if name != forgotten])
    args = argparse.Namespace(mode="eval", reuse=False, limit=None, data=None, model=None, judge="x", judge_args=None)
    with session({}) as kit:
        if forgotten == "build_dataset":
            kit.built["POPE"] = dataset()
        failures = run_model(run, args, "m", {"model": {"m": {}}, "data": {"POPE": {}}}, kit)
    if forgotten is None:
        assert failures == []
        return
    (failure,) = failures
    assert f"ms-vlmeval did not call vlmeval.run.{forgotten}" in failure
    assert "ms-vlmeval 0." in failure
