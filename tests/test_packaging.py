"""The metadata names every package and file that an installation needs."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from fnmatch import fnmatch
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
PLACES = {"vtw_eval": "vtw_eval", "vtw_eval.model_adapters": "model_adapters", "vtw_eval.tasks": "tasks"}


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def declared(*, dev: bool) -> set[str]:
    """Return the distributions that setup.cfg names, with or without those for development only."""
    parser = metadata()
    extras = parser["options.extras_require"]
    sections = [parser["options"]["install_requires"], *(extras[name] for name in extras if dev or name != "dev")]
    return {canonicalize_name(Requirement(line).name) for section in sections for line in section.strip().splitlines()}


def imported(folder: str) -> set[str]:
    """Return the top-level modules that a folder's files import anywhere, without Python's own and this project's."""
    found: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"model_adapters", "tasks", "tests", "vtw_eval"}


@pytest.mark.parametrize("folder", ["vtw_eval", "model_adapters", "tasks", "tests"])
def test_what_is_imported_is_declared(folder: str) -> None:
    known = declared(dev=folder == "tests")
    homes = packages_distributions()
    # What is not installed is imported to see it fail.
    undeclared = {
        module
        for module in imported(folder) & set(homes)
        if not known & {canonicalize_name(name) for name in homes[module]}
    }
    assert not undeclared


def test_every_package_is_found_and_every_module_is_in_one() -> None:
    """The two folders at the top are found through their links."""
    parser = metadata()
    assert parser["options"]["packages"] == "find:"
    found = set(find_packages(str(ROOT), include=[parser["options.packages.find"]["include"]]))
    holding = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in PLACES.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert found == holding


def test_every_file_of_data_is_installed() -> None:
    rules = metadata()["options.package_data"]
    for package, folder in PLACES.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix not in (".yaml", ".safetensors", ".json", ".jinja", ".typed"):
                continue
            place = file.relative_to(ROOT / folder)
            owners = [".".join([package, *place.parts[:i]]) for i in range(len(place.parts))]
            wanted = [(owner, "/".join(place.parts[i:])) for i, owner in enumerate(owners) if owner in rules]
            assert any(fnmatch(rest, rule) for owner, rest in wanted for rule in rules[owner].split()), file


def test_the_pythons_that_are_claimed_are_those_that_are_tried() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    claimed = re.findall(r"Python :: (3\.\d+)", metadata()["metadata"]["classifiers"])
    assert workflow["jobs"]["locked"]["strategy"]["matrix"]["python"] == claimed
    assert metadata()["options"]["python_requires"] == f">={claimed[0]}"


def test_pyproject_holds_the_build_system_only() -> None:
    headings = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("[")]
    assert headings == ["[build-system]"]


def test_entry_points_are_installed_and_load() -> None:
    for group, name in [
        ("console_scripts", "vtw-eval"),
        ("console_scripts", "lmms_eval"),
        ("lmms_eval.models", "vtw_eval"),
        ("vtw_eval.harnesses", "lmms-eval"),
        ("vtw_eval.harnesses", "vlmevalkit"),
    ]:
        [entry] = [e for e in entry_points(group=group) if e.name == name]
        assert callable(entry.load())
