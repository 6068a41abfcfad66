"""The metadata names every package and file that an installation needs."""

from __future__ import annotations

import configparser
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {"vtw_eval": "vtw_eval", "vtw_eval.model_adapters": "model_adapters", "vtw_eval.tasks": "tasks"}


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed() -> None:
    listed = set(metadata()["options"]["packages"].split())
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in PLACES.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == found


def test_pyproject_holds_the_build_system_only() -> None:
    headings = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("[")]
    assert headings == ["[build-system]"]


def test_entry_points_are_installed_and_load() -> None:
    for group, name in [
        ("console_scripts", "vtw-eval"),
        ("console_scripts", "lmms_eval"),
        ("lmms_eval.models", "vtw_eval"),
    ]:
        [entry] = [e for e in entry_points(group=group) if e.name == name]
        assert callable(entry.load())
