"""Names of tasks: groups written out, unknown names refused before any checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vtw_eval.errors import suggest
from vtw_eval.importing import importing
from vtw_eval.model_adapters.lmms.cli import tasks_folder
from vtw_eval.papers.benchmarks import BENCHMARKS
from vtw_eval.sweep.plan import PlanError


class _Loader(yaml.SafeLoader):
    """Reads a task file without the functions that it names."""


_Loader.add_multi_constructor("!function", lambda loader, suffix, node: None)
_Loader.add_constructor("!function", lambda loader, node: None)


@cache
def own_tasks() -> Mapping[str, tuple[str, ...]]:
    """Return our tasks of lmms-eval by name, each with the tasks that it stands for if it is a group."""
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(tasks_folder().rglob("*.yaml")):
        name, members = _read(file)
        if name:
            found[name] = members
    return found


def _read(file: Path) -> tuple[str, tuple[str, ...]]:
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        return "", ()
    if isinstance(content.get("group"), str):
        return content["group"], _members(content.get("task"))
    name = content.get("task")
    return (name, ()) if isinstance(name, str) else ("", ())


def _members(tasks: Any) -> tuple[str, ...]:
    names = tasks if isinstance(tasks, list) else [tasks]
    return tuple(
        str(entry.get("task") or entry.get("group")) if isinstance(entry, dict) else str(entry) for entry in names
    )


@cache
def _stock_tasks() -> Mapping[str, tuple[str, ...]]:
    """Return lmms-eval's own tasks by name, as :func:`own_tasks` does; takes some seconds."""
    with importing("lmms-eval"):
        from lmms_eval.tasks import TaskManager
        from loguru import logger

    logger.disable("lmms_eval")  # it tells of each file that is no task
    manager = TaskManager("WARNING")
    logger.enable("lmms_eval")
    found: dict[str, tuple[str, ...]] = {}
    for name, entry in manager._task_index.items():
        members = entry.get("task")
        if entry["type"] == "group":
            members = members if isinstance(members, list) else _read(Path(entry["yaml_path"]))[1]
        found[name] = tuple(members) if entry["type"] in ("group", "tag") else ()
    return found


def expand_tasks(names: Sequence[str]) -> list[str]:
    """Return single tasks for names of tasks and groups, each once.

    Raises
    ------
    PlanError
        For a name that lmms-eval does not know.
    """
    found: list[str] = []
    for name in names:
        found += _expand(_benchmarks().get(name.casefold(), name), ())
    return list(dict.fromkeys(found))


def _benchmarks() -> Mapping[str, str]:
    """Return lmms-eval's tasks by the names that the papers give to benchmarks, in small letters."""
    return {benchmark.title.casefold(): benchmark.lmms.name for benchmark in BENCHMARKS if benchmark.lmms}


def _expand(name: str, above: tuple[str, ...]) -> list[str]:
    if name in above:
        raise PlanError(f"the group {name!r} contains itself.")
    ours = own_tasks()
    members = ours[name] if name in ours else _stock_tasks().get(name)
    if members is None:
        known = [*ours, *_stock_tasks()]
        raise PlanError(
            f"tasks: unknown task {name!r}{suggest(name, known)} `lmms_eval --tasks list` shows all; ours: "
            f"{', '.join(ours)}; benchmarks of the papers: {', '.join(b.title for b in BENCHMARKS if b.lmms)}."
        )
    return [task for member in members for task in _expand(member, (*above, name))] if members else [name]
