"""One more scorer in this project: its own file, a line in the registry and one in the tests' list, nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

METHOD = '''"""NearestText: keep the vision tokens whose keys are most like the last text token's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class NearestText(Scorer):
    """Keep the vision tokens whose keys are most like those of the last prompt token."""

    key: ClassVar[str] = "nearest_text"
    paper: ClassVar[str] = "https://example.org"
    reads = Reads.KEYS

    def score(self, view: LayerView) -> Tensor:
        """Cosine."""
        keys = view.keys()
        last = keys[torch.arange(view.rows), view.last]
        return torch.cosine_similarity(keys, last[:, None], dim=-1)
'''
LINES = {
    "vtw_eval/methods/registry.py": (
        '    "fastv": "vtw_eval.methods.fastv:FastV",\n',
        '    "nearest_text": "vtw_eval.methods.nearest_text:NearestText",\n',
    ),
    "tests/methods/examples.py": ('    "pyramiddrop": "pyramiddrop",\n', '    "nearest_text": "nearest_text,k=1",\n'),
}

USE = """
from pathlib import Path
import vtw_eval
from vtw_eval.cli.methods import listing
from vtw_eval.cost.dry_run import tokens_per_layer
from vtw_eval.methods import METHODS, NearestText, parse_method
from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import parse_options
from vtw_eval.sweep.plan import expand_method

assert Path(vtw_eval.__file__).is_relative_to(Path.cwd()) and vtw_eval.NearestText is NearestText
method = parse_method("nearest_text,k=1,r=0.25")
assert method == NearestText(k=1, r=0.25) and parse_method(str(method)) == method
assert listing(METHODS).count("nearest_text, k=2, r=0.5") == 1
assert "    Reads keys. https://example.org\\n" in listing(["nearest_text"])
assert tokens_per_layer(method, 3, text=20, vision=40).tolist() == [60, 50, 50]
assert expand_method({"method": "nearest_text", "k": [1]}) == ["nearest_text,k=1,r=0.5"]
given = {"pretrained": "shapes", "method": "nearest_text", "k": "1", "r": "0.25"}
for adapters in (ADAPTERS, KIT_ADAPTERS):
    assert parse_options("llava_vtw", adapters["llava_vtw"].options, given)[1] == method
"""

TESTS = (
    "tests/methods/test_registry.py::test_every_method_file_is_registered_and_exported",
    "tests/methods/test_methods.py::test_every_method_has_an_example",
    "tests/methods/test_methods.py::test_the_model_computes_what_masking_computes[llava-nearest_text]",
    "tests/methods/test_methods.py::test_rows_never_influence_each_other_and_a_cache_changes_nothing[qwen2_vl-nearest_text]",
    "tests/methods/test_reads.py::test_methods_that_read_no_layer_are_asked_before_the_first_one_runs",
    "tests/cost/test_agreement.py::test_every_method[nearest_text-llava_gqa]",
    "tests/cost/test_dry_run.py::test_every_method_of_the_registry_can_be_costed_or_says_why_not",
    "tests/test_docs.py::test_only_methods_are_listed",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with one more method."""
    tree = tmp_path_factory.mktemp("tree")
    skipped = shutil.ignore_patterns("__pycache__")
    for folder in ("vtw_eval", "model_adapters", "tasks", "tests", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=skipped)
    for file in ("setup.cfg", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, tree)
    (tree / "vtw_eval" / "methods" / "nearest_text.py").write_text(METHOD, encoding="utf-8")
    for name, (before, added) in LINES.items():
        text = (tree / name).read_text(encoding="utf-8")
        assert text.count(before) == 1
        (tree / name).write_text(text.replace(before, before + added), encoding="utf-8")
    return tree


def run(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_it_is_found_wherever_a_method_is_named(tree: Path) -> None:
    done = run(tree, "-c", USE)
    assert done.returncode == 0, done.stderr


def test_the_tests_cover_it(tree: Path) -> None:
    done = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert done.returncode == 0, done.stdout
