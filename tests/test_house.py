"""The rooms stand in their order, and tools see every one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {"vtw_eval": "vtw_eval", "vtw_eval.model_adapters": "model_adapters", "vtw_eval.tasks": "tasks"}


def modules() -> list[str]:
    """Return the names of all modules of this project, from its files."""
    found = set()
    for package, folder in PLACES.items():
        for file in (ROOT / folder).rglob("*.py"):
            inside = file.relative_to(ROOT / folder).with_suffix("").parts
            if "model_adapters" not in inside[:1] and "tasks" not in inside[:1]:
                found.add(".".join([package, *(part for part in inside if part != "__init__")]))
    return sorted(found)


def run_mypy(source: str, folder: Path) -> list[str]:
    """Return what mypy says of a source that uses this project, as this project checks itself."""
    file = folder / "use.py"
    file.write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", "setup.cfg", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.stderr, done.stderr
    return [line.partition("use.py:")[2] for line in done.stdout.splitlines()]


def test_imports_obey_the_contracts() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[done.stdout.find("Broken contracts") :]
    assert "2 kept, 0 broken" in done.stdout


def test_type_checkers_see_every_module_and_catch_mistakes_in_any(tmp_path: Path) -> None:
    names = modules()
    assert {"vtw_eval.model_adapters.lmms.cli", "vtw_eval.tasks.tgif.data", "vtw_eval.engine.hooks"} <= set(names)
    lines = [f"import {name}" for name in names] + [f"reveal_type({name})" for name in names]
    lines += [
        "from vtw_eval.model_adapters.patches import Patch",
        "from vtw_eval.record.costs import SampleCosts",
        "from vtw_eval.tasks.tgif.scoring import scores",
        "SampleCosts(nonsense=1)",
        "Patch(nonsense=1)",
        "scores(nonsense=1)",
    ]
    said = run_mypy("\n".join(lines) + "\n", tmp_path)
    revealed = [line for line in said if "Revealed type" in line]
    assert not [line for line in revealed if '"Any"' in line]
    assert len(revealed) == len(names)
    caught = {
        int(line.partition(":")[0]) for line in said if "error: Unexpected keyword" in line and "nonsense" in line
    }
    assert caught == {len(lines) - 2, len(lines) - 1, len(lines)}, said[-8:]


@pytest.mark.parametrize("name", ["model_adapters", "tasks"])
def test_the_folders_at_the_top_are_those_inside(name: str) -> None:
    link = ROOT / "vtw_eval" / name
    assert link.is_symlink() and link.resolve() == ROOT / name
