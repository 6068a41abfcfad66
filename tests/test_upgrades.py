"""The nightly trial of the newest dependencies finds which one breaks the project, and accepts the others."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

SOURCE = Path(__file__).parents[1] / ".ci" / "upgrades.py"
_spec = importlib.util.spec_from_file_location("upgrades", SOURCE)
assert _spec is not None and _spec.loader is not None
upgrades: Any = importlib.util.module_from_spec(_spec)
sys.modules["upgrades"] = upgrades
_spec.loader.exec_module(upgrades)

SETUP_CFG = """\
[options]
install_requires =
    torch>=2.6,<3
    torchvision>=0.21,<1
    # Comment
    transformers>=5.20,<5.25

[options.extras_require]
lmms =
    filelock>=3.16,<4.3
    Some_Name<1.9
flash =
    flash-attn>=2.8
all =
    vtw-eval[lmms]
"""
LOCKED = {"torch": "2.14.1", "torchvision": "0.29.1", "transformers": "5.24.0", "filelock": "4.2.12", "leaf": "1.0"}


class FakeMachine:
    """Pip, the checks and lock.sh, on a dictionary of installed versions."""

    def __init__(self, newest: dict[str, str], broken: Sequence[set[str]] = (), impossible: Sequence[str] = ()) -> None:
        self.installed: dict[str, str] = {}
        self.newest = {**LOCKED, **newest}
        self.broken = broken
        self.impossible = impossible
        self.commands: list[list[str]] = []
        self.checked: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str]) -> Any:
        self.commands.append([*command])
        if command[:3] != ["python", "-m", "pip"]:
            return self._check() if command[0] == "check" else upgrades.Outcome(0, "")
        arguments = command[4:]
        if arguments[0] == "list":
            return self._json([{"name": name, "version": version} for name, version in self.installed.items()])
        if "--dry-run" in arguments:
            return self._dry_run([argument for argument in arguments if argument[0].isalpha()])
        if "--editable" in arguments:
            self.installed = dict(LOCKED)
        for name, version in (argument.split("==") for argument in arguments if "==" in argument):
            if name in self.impossible and version != LOCKED[name]:
                return upgrades.Outcome(1, "", f"ResolutionImpossible {name}")
            self.installed[name] = version
        return upgrades.Outcome(0, "")

    def _dry_run(self, wanted: Sequence[str]) -> Any:
        pinned = {name for name, _, version in (entry.partition("==") for entry in wanted) if version}
        found = {name: version for name, version in self.newest.items() if name not in pinned}
        return self._json({"install": [{"metadata": {"name": n, "version": v}} for n, v in found.items()]})

    def _check(self) -> Any:
        self.checked.append({n: v for n, v in self.installed.items() if v != LOCKED.get(n)})
        changed = set(self.checked[-1])
        bad = [names for names in self.broken if names <= changed]
        return upgrades.Outcome(1, f"out\nE  {bad[0]} broke") if bad else upgrades.Outcome(0, "fine")

    @staticmethod
    def _json(value: object) -> Any:
        return upgrades.Outcome(0, json.dumps(value), "WARNING: on the other stream")


def examine(machine: FakeMachine) -> Any:
    environment = upgrades.Environment.make(machine, "lock")
    wanted = upgrades.requirements(SETUP_CFG)
    return upgrades.examine(environment, wanted, upgrades.checker(machine, ["check"]), lambda text: None)


def test_requirements_are_those_of_all_extras_without_the_project() -> None:
    found = upgrades.requirements(SETUP_CFG)
    assert [entry.name for entry in found] == ["torch", "torchvision", "transformers", "filelock", "Some_Name"]
    assert [upgrades.uncapped(entry) for entry in found][2:] == ["transformers>=5.20", "filelock>=3.16", "Some_Name"]
    assert upgrades.uncapped(Requirement("x>=1,!=1.2,<2")) in ("x>=1,!=1.2", "x!=1.2,>=1")


@pytest.mark.parametrize(
    ("package", "version", "old", "new"),
    [
        ("transformers", "5.25.1", "transformers>=5.20,<5.25", "transformers>=5.20,<5.26"),
        ("transformers", "6.0", "transformers>=5.20,<5.25", "transformers>=5.20,<6.1"),
        ("torch", "3.1.4", "torch>=2.6,<3", "torch>=2.6,<4"),
        ("some-name", "1.10", "Some_Name<1.9", "Some_Name<1.11"),
        ("transformers", "5.24.9", "", ""),
    ],
)
def test_a_cap_moves_just_above_a_version(package: str, version: str, old: str, new: str) -> None:
    assert upgrades.raise_cap(SETUP_CFG, package, version) == SETUP_CFG.replace(old, new)


@pytest.mark.parametrize("newest", [{}, {"leaf": "2.0rc1"}])
def test_nothing_newer_checks_nothing(newest: dict[str, str]) -> None:
    machine = FakeMachine(newest)
    findings = examine(machine)
    assert findings.complete and not findings.passed and not machine.checked
    assert "Nothing is newer" in upgrades.report(findings)


def test_all_upgrades_that_pass_together_are_tried_once() -> None:
    newest = {"transformers": "5.25.0", "leaf": "2.0", "extra": "1.0"}
    machine = FakeMachine(newest)
    findings = examine(machine)
    assert machine.checked == [newest]
    assert findings.complete and findings.passed == newest
    assert "All 3 upgrades pass together" in upgrades.report(findings)


def test_the_guilty_one_is_found_and_the_others_pass() -> None:
    newest = {"torch": "2.15.0", "torchvision": "0.30.0", "transformers": "5.25.0", "filelock": "4.3.1", "leaf": "2.0"}
    machine = FakeMachine(newest, broken=[{"transformers"}])
    findings = examine(machine)
    good = {name: version for name, version in newest.items() if name != "transformers"}
    together = {"torch": "2.15.0", "torchvision": "0.30.0"}  # each needs the other
    alone = [together, {"filelock": "4.3.1"}, {"transformers": "5.25.0"}, {"leaf": "2.0"}]
    assert machine.checked == [newest, {}, *alone, good]
    assert findings.passed == good and not findings.complete
    text = upgrades.report(findings)
    assert "Broken by transformers." in text
    assert "| transformers | 5.24.0 | 5.25.0 | **fails** (3) |" in text
    assert "| filelock | 4.2.12 | 4.3.1 | passes |" in text
    assert "| all that pass alone |  |  | passes |" in text
    assert "## (3) transformers\n\n```\n$ check\nout\nE  {'transformers'} broke\n```" in text


def test_upgrades_that_fail_only_together_are_told_and_not_passed() -> None:
    findings = examine(FakeMachine({"transformers": "5.25.0", "filelock": "4.3.1"}, [{"transformers", "filelock"}]))
    assert not findings.passed and not findings.complete
    assert "Each upgrade passes alone, but they fail together" in upgrades.report(findings)
    assert "| everything |  |  | **fails** (3) |" in upgrades.report(findings)


def test_an_upgrade_that_cannot_be_installed_fails() -> None:
    findings = examine(FakeMachine({"transformers": "5.25.0", "filelock": "4.3.1"}, impossible=["filelock"]))
    assert findings.passed == {"transformers": "5.25.0"}
    assert "ResolutionImpossible filelock" in upgrades.report(findings)


def test_a_check_that_fails_on_the_locked_versions_says_nothing_of_upgrades() -> None:
    with pytest.raises(upgrades.SetupError, match="locked versions too"):
        examine(FakeMachine({"leaf": "2.0"}, broken=[set()]))


def test_accepting_raises_caps_and_locks_but_for_what_is_held(tmp_path: Path) -> None:
    setup_cfg, lock_in = tmp_path / "setup.cfg", tmp_path / "lock.in"
    setup_cfg.write_text(SETUP_CFG)
    lock_in.write_text("# Held\ntorch<=2.14.1\npip\n")
    machine = FakeMachine({})
    upgrades.accept({"torch": "3.0", "transformers": "5.25.0", "leaf": "2.0"}, setup_cfg, lock_in, machine)
    assert setup_cfg.read_text() == SETUP_CFG.replace("<5.25", "<5.26")
    [command] = machine.commands
    assert command[0].endswith("lock.sh")
    assert command[1:] == ["--upgrade-package", "transformers", "--upgrade-package", "leaf"]


@pytest.mark.parametrize(
    ("newest", "broken", "code"),
    [
        ({}, [], 0),
        ({"leaf": "2.0"}, [], 0),
        ({"leaf": "2.0"}, [{"leaf"}], 1),
        ({"leaf": "2.0"}, [set()], 2),
    ],
)
def test_exit_status(
    newest: dict[str, str], broken: list[set[str]], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()  # nothing to make
    monkeypatch.setattr(upgrades, "in_environment", lambda folder: FakeMachine(newest, broken))
    file = tmp_path / "report.md"
    assert upgrades.main(["--venv", str(tmp_path), "--report", str(file), "--check", "check"]) == code
    assert file.exists() == (code != 2)


def test_a_real_command_runs_in_the_environment(tmp_path: Path) -> None:
    outcome = upgrades.in_environment(tmp_path)(["sh", "-c", "echo $PATH; echo oops >&2; exit 3"])
    assert outcome.code == 3
    assert outcome.output.startswith(str(tmp_path / "bin"))
    assert outcome.tail.endswith("oops")
