"""A release of transformers that changes under us never becomes a table: cells are right, or they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sweep.conftest import ROOT, Finished, command, environment
from vtw_eval.files import cache_home
from vtw_eval.record.store import Store

CHANGES = (
    "renamed_cache",
    "renamed_mask",
    "integer_mask",
    "inverted_mask",
    "own_keys",
    "tokens_first_rotary",
    "swapped_cache",
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_transformers_gives_the_same_cells_or_none(change: str, finished: Finished, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "vtw-eval"
    shutil.copytree(cache_home() / "shapes", cache / "shapes")  # but no verdict of an unchanged transformers
    path = os.pathsep.join([str(ROOT / "tests" / "support" / "sabotaged_site"), str(ROOT)])
    variables = {**environment(), "PYTHONPATH": path, "SABOTAGE": change, "XDG_CACHE_HOME": str(cache.parent)}
    only = ("--only", "shapes/baseline/shapes_mme", "--only", "shapes/vtw,k=2*/shapes_mme")
    done = subprocess.run(
        command(finished.plan, tmp_path / "out", *only, "--workers", "1"), env=variables, capture_output=True, text=True
    )
    expected = {cell.spec.key: cell for cell in Store(finished.folder).cells()}
    cells = Store(tmp_path / "out").cells()
    for cell in cells:
        right = expected[cell.spec.key]
        assert (cell.metrics, cell.methods) == (right.metrics, right.methods)
        assert cell.costs is not None and right.costs is not None
        assert cell.costs.prefill_flops == right.costs.prefill_flops
    failed = [entry for entry in Store(tmp_path / "out").entries() if entry.state == "failed"]
    assert len(cells) + len(failed) == 2, done.stderr
    assert change == "renamed_cache" or failed
    assert done.returncode == (1 if failed else 0), done.stderr
    for entry in failed:
        assert "transformers" in entry.problem and "is installed" in entry.problem
