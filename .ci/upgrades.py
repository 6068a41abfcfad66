"""Try the newest release of every dependency, beyond the caps of setup.cfg, and tell which one breaks the project."""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = "vtw-eval"
CHECKS = (
    "vtw-eval verify --all",
    "python -m pytest --numprocesses 2 tests/engine tests/methods tests/tasks tests/test_packaging.py",
)
TOGETHER = (("torch", "torchvision"),)
"""Packages of which each release works with one release of the others only."""
COMPILED = ("flash",)
"""Extras whose packages come as sources that need nvcc and an installed torch to tell even what they need."""
TAIL = 30
"""How many last lines of a failed check the report shows."""

Versions = dict[str, str]


# --- setup.cfg


def requirements(setup_cfg: str) -> list[Requirement]:
    """Return what setup.cfg names for the package and its extras but :data:`COMPILED`, the project's own left out."""
    parser = configparser.ConfigParser()
    parser.read_string(setup_cfg)
    extras = parser["options.extras_require"]
    sections = [parser["options"]["install_requires"], *(extras[name] for name in extras if name not in COMPILED)]
    found = [Requirement(line) for section in sections for line in section.strip().splitlines()]
    return [requirement for requirement in found if requirement.name != PROJECT]


def uncapped(requirement: Requirement) -> str:
    """Return a requirement without its upper bound."""
    kept = [part for part in requirement.specifier if part.operator in (">=", ">", "!=")]
    return f"{requirement.name}{SpecifierSet(','.join(map(str, kept)))}"


def raise_cap(setup_cfg: str, package: str, version: str) -> str:
    """Return setup.cfg with the upper bounds of a package that exclude a version moved just above it.

    A bound keeps its precision: 5.25.1 turns ``<5.25`` into ``<5.26``, and 6.1 turns ``<6`` into ``<7``.
    """

    def moved(match: re.Match[str]) -> str:
        if canonicalize_name(match["name"]) != package or Version(version) < Version(match["cap"]):
            return match[0]
        parts = [*Version(version).release, 0, 0][: match["cap"].count(".") + 1]
        cap = ".".join(map(str, [*parts[:-1], parts[-1] + 1]))
        return f"{match['start']}<{cap}"

    line = re.compile(r"^(?P<start>[ ]+(?P<name>[\w.-]+?)(?:[>=!]=?[^<\n]*)?)<(?P<cap>[\d.]+)$", re.MULTILINE)
    return line.sub(moved, setup_cfg)


# --- the environment


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    output: str
    errors: str = ""

    @property
    def tail(self) -> str:
        """Its last lines."""
        return "\n".join(f"{self.output}\n{self.errors}".strip().splitlines()[-TAIL:])


Runner = Callable[[Sequence[str]], Outcome]


class SetupError(RuntimeError):
    """Nothing can be said about upgrades: an installation failed, or the check fails on the locked versions."""


@dataclass
class Environment:
    """A virtual environment that can go back to the locked versions."""

    run: Runner
    locked: Versions

    @classmethod
    def make(cls, run: Runner, lock: str) -> Environment:
        """Install the project with the locked versions."""
        self = cls(run, {})
        self._pip("install", "--constraint", lock, "pip")
        self._pip("install", "--constraint", lock, "--build-constraint", lock, "--editable", f"{ROOT}[all,dev]")
        self.locked = self._versions()
        return self

    def newer(self, wanted: Iterable[str]) -> Versions:
        """Return which releases pip would install to have the newest of requirements and of what they need."""
        command = ["install", "--dry-run", "--quiet", "--report", "-", "--upgrade", "--upgrade-strategy", "eager"]
        report = json.loads(self._pip(*command, *wanted))
        found = [item["metadata"] for item in report["install"]]
        versions = {canonicalize_name(data["name"]): data["version"] for data in found}
        return {
            name: version
            for name, version in sorted(versions.items())
            if name not in self.locked
            or (Version(version) > Version(self.locked[name]) and not Version(version).is_prerelease)
        }

    def add(self, versions: Mapping[str, str]) -> None:
        """Install versions, and whatever they need."""
        self._pip("install", *_pins(versions))

    def reset(self) -> None:
        """Go back to the locked versions."""
        current = self._versions()
        changed = {name: version for name, version in self.locked.items() if current.get(name) != version}
        if changed:
            self._pip("install", "--no-deps", *_pins(changed))

    def _versions(self) -> Versions:
        found = json.loads(self._pip("list", "--format", "json", "--exclude", PROJECT))
        return {canonicalize_name(item["name"]): item["version"] for item in found}

    def _pip(self, *arguments: str) -> str:
        outcome = self.run(["python", "-m", "pip", "--disable-pip-version-check", *arguments])
        if outcome.code:
            raise SetupError(f"pip {' '.join(arguments[:4])} ... failed:\n{outcome.tail}")
        return outcome.output


def _pins(versions: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]


# --- trials


@dataclass(frozen=True)
class Trial:
    """Some upgrades on top of the locked versions, and what the check said to them."""

    upgrades: Versions
    failure: Outcome | None


@dataclass(frozen=True)
class Findings:
    """Everything newer than the lock, and what was tried of it."""

    locked: Versions
    newer: Versions
    """Empty if the lock is up to date."""
    alone: tuple[Trial, ...] = ()
    """Of each direct dependency and of the indirect ones; empty if all upgrades pass together."""
    together: Trial | None = None
    """The last one of several: all upgrades, or those that pass alone."""

    @property
    def passed(self) -> Versions:
        """Upgrades that work together."""
        return {} if self.together is None or self.together.failure else self.together.upgrades

    @property
    def complete(self) -> bool:
        """Whether everything that is newer passed."""
        return self.passed == self.newer


def examine(
    environment: Environment,
    wanted: Sequence[Requirement],
    check: Callable[[], Outcome],
    say: Callable[[str], None],
) -> Findings:
    """Try all upgrades together and, if that fails, each alone and then those together that pass alone.

    Parameters
    ----------
    environment
        With the locked versions.
    wanted
        The direct dependencies.
    check
        Runs the checks in the environment.
    say
        Shows progress.

    Raises
    ------
    SetupError
        If pip fails where it should not, or the check fails on the locked versions.
    """

    def attempt(upgrades: Versions) -> Trial:
        say(f"Trying {', '.join(_pins(upgrades))} ...")
        environment.reset()
        try:
            environment.add(upgrades)
        except SetupError as error:  # what needs it does not allow it
            return Trial(upgrades, Outcome(1, str(error)))
        outcome = check()
        say("  passes" if outcome.code == 0 else "  fails")
        return Trial(upgrades, outcome if outcome.code else None)

    newer = environment.newer(uncapped(requirement) for requirement in wanted)
    findings = Findings(environment.locked, newer)
    if not newer:
        return findings
    findings = replace(findings, together=attempt(newer))
    if findings.complete:
        return findings

    say("Trying the locked versions ...")
    environment.reset()
    outcome = check()
    if outcome.code:
        raise SetupError(f"The check fails on the locked versions too:\n{outcome.tail}")
    direct = {canonicalize_name(requirement.name) for requirement in wanted}
    alone = [attempt(group) for group in _groups({name: newer[name] for name in newer if name in direct})]
    pinned = {name: version for name, version in environment.locked.items() if name in direct}
    environment.reset()
    if indirect := environment.newer(_pins(pinned)):
        alone.append(attempt(indirect))
    good = [trial.upgrades for trial in alone if trial.failure is None]
    together = attempt({name: version for group in good for name, version in group.items()}) if good else None
    return replace(findings, alone=tuple(alone), together=together)


def _groups(upgrades: Versions) -> list[Versions]:
    """Divide upgrades into those to be tried apart: single packages, but for those that only go together."""
    groups = [{name: upgrades[name] for name in names if name in upgrades} for names in TOGETHER]
    grouped = {name for group in groups for name in group}
    return [group for group in groups if group] + [{name: upgrades[name]} for name in upgrades if name not in grouped]


# --- what comes of it


def report(findings: Findings) -> str:
    """Return the findings as Markdown."""
    lines = ["# Newest releases of the dependencies", "", _summary(findings), ""]
    if not findings.newer:
        return "\n".join(lines)
    lines += ["| tried | locked | newest | result |", "|:---|:---|:---|:---|"]
    trials = [*findings.alone, *([findings.together] if findings.together else [])]
    for number, trial in enumerate(trials):
        rest = trial is findings.together
        whole = "everything" if trial.upgrades == findings.newer else "all that pass alone"
        names = whole if rest else _short(trial.upgrades)
        old = (
            "" if rest else _short({name: findings.locked.get(name, "none") for name in trial.upgrades}, versions=True)
        )
        new = "" if rest else _short(trial.upgrades, versions=True)
        result = f"**fails** ({number + 1})" if trial.failure else "passes"
        lines.append(f"| {names} | {old} | {new} | {result} |")
    for number, trial in enumerate(trials):
        if trial.failure:
            lines += ["", f"## ({number + 1}) {_short(trial.upgrades)}", "", "```", trial.failure.tail, "```"]
    pins = ", ".join(f"{name} {findings.locked.get(name, 'none')} → {new}" for name, new in findings.newer.items())
    return "\n".join([*lines, "", f"Newer than the lock: {pins}.", ""])


def _summary(findings: Findings) -> str:
    if not findings.newer:
        return "Nothing is newer than the lock."
    if findings.complete:
        return f"All {len(findings.newer)} upgrades pass together."
    guilty = [_short(trial.upgrades) for trial in findings.alone if trial.failure]
    if guilty:
        return f"Broken by {'; '.join(guilty)}."
    return "Each upgrade passes alone, but they fail together."


def _short(values: Versions, *, versions: bool = False) -> str:
    """Return the first few names, or their versions."""
    shown = list(values.values() if versions else values)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def accept(passed: Versions, setup_cfg: Path, lock_in: Path, run: Runner) -> None:
    """Raise the caps of setup.cfg that exclude upgrades that passed, and lock them; what lock.in holds stays."""
    lines = [line.partition("#")[0].strip() for line in lock_in.read_text(encoding="utf-8").splitlines()]
    entries = [Requirement(line) for line in lines if line]
    held = {canonicalize_name(entry.name) for entry in entries if entry.specifier}
    upgrades = {name: version for name, version in passed.items() if name not in held}
    text = setup_cfg.read_text(encoding="utf-8")
    for name, version in upgrades.items():
        text = raise_cap(text, name, version)
    setup_cfg.write_text(text, encoding="utf-8")
    # By name only: an indirect one may need a release of a held one that is not allowed.
    options = [option for name in upgrades for option in ("--upgrade-package", name)]
    outcome = run([str(ROOT / ".ci" / "lock.sh"), *options])
    if outcome.code:
        raise SetupError(f".ci/lock.sh failed:\n{outcome.tail}")


def in_environment(folder: Path) -> Runner:
    """Return what runs commands with the programs of a virtual environment."""
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")},
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }

    def run(command: Sequence[str]) -> Outcome:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def checker(run: Runner, commands: Sequence[str]) -> Callable[[], Outcome]:
    """Return what runs commands one after the other until one fails."""

    def check() -> Outcome:
        outcome = Outcome(0, "")
        for command in commands:
            outcome = run(shlex.split(command))
            if outcome.code:
                return replace(outcome, output=f"$ {command}\n{outcome.output}")
        return outcome

    return check


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
Exit status: 0 all passes or nothing is newer than the lock, 1 something fails, 2 nothing can be said.

examples:
  python .ci/upgrades.py --report upgrades.md
  python .ci/upgrades.py --check "python -m pytest -x tests/engine" --venv /tmp/upgrades
  python .ci/upgrades.py --accept        # then read "git diff", and run ./tests/run.sh
""",
    )
    made.add_argument("--report", type=Path, metavar="FILE", help="write the report here instead of to stdout")
    made.add_argument(
        "--check",
        action="append",
        metavar="COMMAND",
        help=f"what must succeed; repeatable (default: {'; '.join(CHECKS)})",
    )
    made.add_argument(
        "--venv",
        type=Path,
        default=ROOT / ".venv-upgrades",
        metavar="DIR",
        help="the environment to make or to use again (default: .venv-upgrades)",
    )
    made.add_argument(
        "--accept",
        action="store_true",
        help="raise the caps of setup.cfg to what passed, and lock it with .ci/lock.sh",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    setup_cfg, lock = ROOT / "setup.cfg", ROOT / ".ci" / "constraints.txt"
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)

    try:
        say(f"Installing the locked versions into {options.venv} ...")
        folder = options.venv.resolve()
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
        run = in_environment(folder)
        environment = Environment.make(run, str(lock))
        wanted = requirements(setup_cfg.read_text(encoding="utf-8"))
        findings = examine(environment, wanted, checker(run, options.check or CHECKS), say)
        if options.accept and findings.passed:
            accept(findings.passed, setup_cfg, ROOT / ".ci" / "lock.in", run)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    text = report(findings)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    else:
        print(text)
    say(_summary(findings))
    return 0 if findings.complete else 1


if __name__ == "__main__":
    sys.exit(main())
