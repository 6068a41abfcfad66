"""What a folder of cells is about: ``index.json``, or the plan in folders of versions that did not write one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from vtw_eval.record.cell import CellSpec
from vtw_eval.record.strict import Strict

_SEED = re.compile(r"(?<![^,.])seed=0(?![^,])")
"""The parameter of a spec in full, also of a part of a composite."""


class Index(Strict):
    """The cells of a sweep and what tables call things. Whoever reads it needs neither the plan nor a harness."""

    version: Literal[1] = 1
    title: str = ""
    """Heading of the report."""
    names: dict[str, str] = Field(default_factory=dict)
    """What tables call methods, by spec; others go by their spec."""
    budgets: dict[str, list[str]] = Field(default_factory=dict)
    """Specs of the methods that were set to one cost, without seeds other than the first, by what it is called."""
    missed: list[str] = Field(default_factory=list)
    """Which methods could not be set to a budget, and why."""
    cells: list[CellSpec] = Field(min_length=1)
    """In the order of tables: by model, by method, by task."""


def read_index(text: str) -> Index:
    """Return an index from the content of its file.

    Raises
    ------
    ValueError
        If it is none; the message is one line.
    """
    try:
        return Index.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(_line(error)) from None


def write_index(index: Index) -> str:
    """Return the content of an index's file."""
    return json.dumps(index.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def index_of_plan(text: str) -> Index:
    """Return what a plan says that an earlier version kept beside its cells, the only sign of what they are.

    It was checked when it was written, and methods were spelled in full. Nothing is checked again: adapters, their
    options and methods may have other names by now, and no harness need be there.

    Parameters
    ----------
    text
        YAML.

    Raises
    ------
    ValueError
        If it is no such plan; the message is one line.
    """
    import yaml

    try:
        plan = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    try:
        cells = {cell.key: cell for cell in _cells(plan)}
        return Index(title=plan.get("title", ""), names=plan.get("names", {}), cells=list(cells.values()))
    except ValidationError as error:
        raise ValueError(_line(error)) from None
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a plan as sweeps keep it ({type(error).__name__}: {error})") from None


def _cells(plan: Mapping[str, Any]) -> Iterator[CellSpec]:
    seeds = plan.get("seeds", [0])
    dtype = {"dtype": plan["dtype"]} if plan.get("dtype") else {}
    for model in plan["models"]:
        methods = model["methods"] if model.get("methods") is not None else plan.get("methods", ["baseline"])
        variants = [variant for method in methods for variant in _seeded(method, seeds)]
        for (method, seed), task in itertools.product(variants, plan["tasks"]):
            yield CellSpec(
                model=model["name"],
                adapter=model["adapter"],
                pretrained=model["pretrained"],
                model_args={**dtype, **model.get("args", {})},
                method=method,
                task=task,
                harness=plan.get("harness", "lmms-eval"),
                limit=plan.get("limit"),
                seed=seed,
            )


def _seeded(method: str, seeds: list[int]) -> list[tuple[str, int]]:
    """Return a method with each seed; one that draws nothing at random, and so has none, with the first."""
    if re.search(r"(?<![^,.])seed=", method) is None:
        return [(method, seeds[0])]
    return [(_SEED.sub(f"seed={seed}", method), seed) for seed in seeds]


def _line(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place + ': ' if place else ''}{first['msg']}"
