"""The plan of a sweep: a typed YAML file that says which models, methods and tasks become cells."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vtw_eval.errors import suggest
from vtw_eval.methods import Method, make_method, parse_method
from vtw_eval.methods.composite import Composite, parts_of
from vtw_eval.methods.registry import parameters
from vtw_eval.names import check_names
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.index import Index
from vtw_eval.record.strict import Strict
from vtw_eval.sweep.budget import Budget, Fitted, fit_methods
from vtw_eval.sweep.curve_entry import CurveEntry, check_curves
from vtw_eval.sweep.harness import find_harness

PRESETS = Path(__file__).parent / "presets"
"""Folder of the plans that come with the package."""

Value = str | int | float | bool | None


class PlanError(ValueError):
    """A plan that cannot be carried out; the message names the place and what would be right."""


def expand_method(entry: Any) -> list[str]:
    """Return the specs that an entry of ``methods`` stands for.

    Parameters
    ----------
    entry
        A spec such as ``"vtw,k=16"``, or a mapping ``{method: vtw, k: [8, 12, 16]}`` whose lists are multiplied out.

    Raises
    ------
    ValueError
        For a method, a parameter or a value that does not exist; the message lists the valid ones.
    """
    if isinstance(entry, str):
        return [str(parse_method(entry))]
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} is neither a spec such as 'vtw,k=16' nor a mapping such as {{method: vtw, k: 16}}")
    if not isinstance(entry.get("method"), str):
        raise ValueError("a mapping needs 'method', as in {method: vtw, k: [8, 12, 16]}")
    names = [str(name) for name in entry if name != "method"]
    lists = [value if isinstance(value, list) else [value] for name, value in entry.items() if name != "method"]
    for name, values in zip(names, lists, strict=True):
        for value in values:
            _refuse_truth(name, value, _parameter_type(entry["method"], name))
    empty = [name for name, values in zip(names, lists, strict=True) if not values]
    if empty:
        raise ValueError(f"{empty[0]} is an empty list: name at least one value")
    return [
        str(make_method(entry["method"], dict(zip(names, values, strict=True)))) for values in itertools.product(*lists)
    ]


def _parameter_type(method: str, name: str) -> Any:
    """Return the declared type of a method's parameter, such as ``fastv.k`` of ``fastv+vtw``; None if there is none."""
    try:
        return parameters(method).get(name)
    except ValueError:  # make_method() tells it
        return None


def _refuse_truth(name: str, value: Any, kind: Any) -> None:
    """Refuse a truth value where a number or a text is wanted: YAML reads yes, no, on and off as such."""
    if isinstance(value, bool) and kind is not None and bool not in (kind, *get_args(kind)):
        raise ValueError(
            f"{name} cannot be {value}, as which YAML reads yes, no, on and off: write a number or a text."
        )


def with_seed(spec: str, seed: int) -> str | None:
    """Return a method spec with another seed in place of 0; None if the method draws nothing at random."""

    def reseed(method: Method) -> Method:
        if isinstance(method, Composite):
            return replace(method, parts=tuple(reseed(part) for part in method.parts))
        return replace(method, seed=seed) if getattr(method, "seed", None) == 0 else method  # type: ignore[call-arg]

    method = parse_method(spec)
    parts = parts_of(method)
    return str(reseed(method)) if any(hasattr(part, "seed") for part in parts) else None


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _expand(entries: Any) -> Any:
    """Expand a list of methods; an error tells which entry it is about."""
    if not isinstance(entries, list):
        return entries
    specs: list[str] = []
    for number, entry in enumerate(entries):
        try:
            specs += expand_method(entry)
        except ValueError as error:
            raise ValueError(f"entry {number} ({entry!r}): {error}") from None
    return _unique(specs)


Methods = Annotated[list[str], BeforeValidator(_expand), Field(min_length=1)]


def _no_truth(value: Any) -> Any:
    """Refuse truth values among integers, which would count as 0 and 1."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool):
            raise ValueError(f"Input should be a valid integer, not {item}, as which YAML reads yes, no, on and off.")
    return value


Integer = Annotated[int, BeforeValidator(_no_truth)]


def _off(value: Any) -> Any:
    """Take what YAML makes of a bare off for the word."""
    return "off" if value is False else value


def _texts(names: Any) -> Any:
    """Refuse a name that is no text, as YAML reads ``{vtw,k=16: VTW}``: two keys, the first without a value."""
    for spec, name in names.items() if isinstance(names, Mapping) else ():
        if not isinstance(name, str):
            raise ValueError(
                f"{spec!r} is named {name!r}, which is no text; between braces, a spec with commas stands in quotes."
            )
    return names


def _installed(harness: str) -> str:
    find_harness(harness)
    return harness


class ModelEntry(Strict):
    """One checkpoint."""

    name: str
    """In tables."""
    adapter: str
    """Such as ``llava_vtw``."""
    pretrained: str
    """Hub id or folder; ``shapes`` for the embedded one."""
    args: dict[str, Value] = Field(default_factory=dict)
    """Further options of the adapter."""
    methods: Methods | None = None
    """In place of the methods of the plan."""

    @model_validator(mode="after")
    def _known(self) -> ModelEntry:
        for name, better in {
            "method": "methods",
            "pretrained": "pretrained of the model",
            "batch_size": "batch_size of the plan",
            "verify": "verify of the plan",
            "device": "device of the plan",
        }.items():
            if name in self.args:
                raise ValueError(f"{name} does not belong into args: use {better}.")
        return self


class Plan(Strict):
    """What a sweep evaluates: every model with every method on every task."""

    title: str = ""
    """Heading of the report."""
    models: list[ModelEntry] = Field(min_length=1)
    methods: Methods = Field(default_factory=lambda: ["baseline"])
    """Specs, or mappings whose lists are multiplied out."""
    budgets: list[Budget] = Field(default_factory=list)
    """Costs at which the methods are compared: each method's own strength is set, and controls are added."""
    fitted: dict[str, list[Fitted]] = Field(default_factory=dict)
    """By model: the methods at each budget; filled in by :func:`resolve`."""
    names: Annotated[dict[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    """What tables call methods, by spec in any spelling and with any seed; others go by their spec."""
    curves: list[CurveEntry] = Field(default_factory=list)
    """Models of which VTW at every k is evaluated too, at once."""
    tasks: list[str] = Field(min_length=1)
    """Tasks of the harness, groups of them, or names of benchmarks."""
    harness: Annotated[str, AfterValidator(_installed)] = "lmms-eval"
    """One that is installed, see :func:`vtw_eval.sweep.harness.find_harness`."""
    limit: Annotated[int | None, BeforeValidator(_no_truth)] = Field(default=None, ge=1)
    """First documents of each task only."""
    seeds: list[Integer] = Field(default=[0], min_length=1)
    """Methods that draw at random run once per seed; the others with the first."""
    batch_size: Integer = Field(default=1, ge=1)
    verify: bool = True
    """Whether methods are first compared with masked attention on the installed packages."""
    sharing: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = "auto"
    """"auto": methods answer together while an image is at hand, and questions about it share what they have in
    common; "off": each prompt is computed for itself, so that it has a latency."""
    device: str | None = None
    """``None``: a GPU if there is one."""
    dtype: str | None = None
    """For every model that does not name its own."""
    workers: Annotated[int | Literal["cores"], BeforeValidator(_no_truth)] = 1
    """Processes at a time; ``cores``: one per CPU core."""

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: list[ModelEntry]) -> list[ModelEntry]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} stands twice: tables could not tell the models apart.")
        return models

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: list[str]) -> list[str]:
        return _unique(tasks)

    @field_validator("workers")
    @classmethod
    def _positive(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 1:
            raise ValueError("workers is a number of processes, 1 or more, or 'cores'.")
        return workers

    @model_validator(mode="after")
    def _options(self) -> Plan:
        from vtw_eval.models.options import parse_options

        adapters = find_harness(self.harness).adapters()
        for number, model in enumerate(self.models):
            if model.adapter not in adapters:
                raise ValueError(
                    f"models[{number}].adapter: unknown adapter {model.adapter!r}{suggest(model.adapter, adapters)} "
                    f"Valid: {', '.join(adapters)}."
                )
            given = {"dtype": self.dtype or "auto", **model.args, "pretrained": model.pretrained, "method": "baseline"}
            try:
                hints = get_type_hints(adapters[model.adapter].options)
                for name, value in model.args.items():
                    _refuse_truth(name, value, hints.get(name))
                parse_options(model.adapter, adapters[model.adapter].options, given)
            except ValueError as error:
                raise ValueError(f"models[{number}].args: {error}") from None
        return self

    @model_validator(mode="after")
    def _named(self) -> Plan:
        if self.names:
            try:
                check_names(self.names, dict.fromkeys(cell.method for cell in self.cells()))
            except ValueError as error:
                raise ValueError(f"names: {error}") from None
        return self

    @model_validator(mode="after")
    def _unnamed(self) -> Plan:
        if self.names and self.budgets:
            raise ValueError("names: a method has another spec at each budget; name them in the report, by --name.")
        return self

    @model_validator(mode="after")
    def _curved(self) -> Plan:
        check_curves(self.curves, [model.name for model in self.models])
        return self

    @model_validator(mode="after")
    def _pairs(self) -> Plan:
        mme = [task for task in self.tasks if task.casefold() in ("mme", "shapes_mme", "boards_mme")]
        if self.limit is not None and self.limit % 2 and mme:
            raise ValueError(f"limit {self.limit} is odd, but {mme[0]} scores pairs of documents: take an even limit.")
        return self

    def changed(self, **values: Any) -> Plan:
        """Return the plan with other values for some of its keys, checked like a plan file.

        Raises
        ------
        PlanError
            If the values do not fit.
        """
        return parse_plan({**self.model_dump(), **values})

    def cells(self) -> list[CellSpec]:
        """Return the cells in the order of the plan: by model, by method, by task; no cell twice."""
        found: dict[str, CellSpec] = {}
        for model in self.models:
            args = {**({"dtype": self.dtype} if self.dtype else {}), **model.args}
            for spec in self._methods(model):
                for method, seed in self._seeded(spec):
                    for task in self.tasks:
                        cell = CellSpec(
                            model=model.name,
                            adapter=model.adapter,
                            pretrained=model.pretrained,
                            model_args=args,
                            method=method,
                            task=task,
                            harness=self.harness,
                            limit=self.limit,
                            seed=seed,
                        )
                        found.setdefault(cell.key, cell)
        return list(found.values())

    def index(self) -> Index:
        """Return what a store keeps of the plan for those who read results."""
        budgets: dict[str, list[str]] = {}
        for fitted in itertools.chain.from_iterable(self.fitted.values()):
            budgets.setdefault(fitted.budget, []).extend(fitted.methods)
        return Index(
            title=self.title,
            names=self.names,
            budgets={label: _unique(specs) for label, specs in budgets.items()},
            missed=self.missed,
            cells=self.cells(),
        )

    @property
    def missed(self) -> list[str]:
        """Which methods of a resolved plan could not be set to a budget, and why."""
        return _unique(line for fitted in itertools.chain.from_iterable(self.fitted.values()) for line in fitted.missed)

    def text(self) -> str:
        """Return the plan as YAML, which :func:`read_plan` gives back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def _methods(self, model: ModelEntry) -> list[str]:
        """Return the specs of a model: as they stand, or at each budget beside the unchanged model."""
        specs = self.methods if model.methods is None else model.methods
        if not self.budgets or model.name not in self.fitted:
            return specs
        return _unique(["baseline", *(spec for fitted in self.fitted[model.name] for spec in fitted.methods)])

    def _seeded(self, spec: str) -> list[tuple[str, int]]:
        variants = [(with_seed(spec, seed), seed) for seed in self.seeds]
        return [(text, seed) for text, seed in variants if text is not None] or [(spec, self.seeds[0])]


def resolve(plan: Plan) -> Plan:
    """Return a plan whose tasks are single tasks of its harness, and whose methods are set to its budgets.

    Raises
    ------
    PlanError
        For an unknown task, for a limit that a task cannot have, and for a model whose costs are not known.
    """
    fitted = {}
    for model in plan.models if plan.budgets else ():
        try:
            specs = plan.methods if model.methods is None else model.methods
            fitted[model.name] = list(fit_methods(specs, plan.budgets, model.pretrained))
        except ValueError as error:
            raise PlanError(f"budgets: {error}") from None
    return plan.changed(tasks=find_harness(plan.harness).expand(plan.tasks), fitted=fitted)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, which YAML readers otherwise take in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise PlanError(f"line {node.start_mark.line + 1}: the key {key!r} stands twice.")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def presets() -> list[str]:
    """Return the names of the plans that come with the package."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def find_plan(name: str) -> Path:
    """Return the file of a plan, given as a path or as the name of a preset.

    Raises
    ------
    PlanError
        If it is neither.
    """
    file = Path(name)
    if file.is_file():
        return file
    if name in presets():
        return PRESETS / f"{name}.yaml"
    raise PlanError(
        f"{name!r} is neither a file nor a preset{suggest(name, presets())} Presets: {', '.join(presets())}."
    )


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises
    ------
    PlanError
        If the file is no valid plan; the message tells where and what is valid there.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise PlanError(f"{file}: not valid YAML: {error}") from error
    except PlanError as error:
        raise PlanError(f"{file}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: cannot be read: {error}") from error
    return parse_plan(content, str(file))


def parse_plan(content: Any, source: str = "plan") -> Plan:
    """Make a plan from the content of its file.

    Parameters
    ----------
    content
        Mapping as read from YAML.
    source
        Name of the file, for messages.

    Raises
    ------
    PlanError
        See :func:`read_plan`.
    """
    if not isinstance(content, dict):
        raise PlanError(f"{source}: a plan is a mapping with the keys {', '.join(Plan.model_fields)}.")
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        problems = [_problem(dict(item), content) for item in error.errors()]
        raise PlanError(f"{source}: " + f"\n{source}: ".join(problems)) from None


def _problem(error: dict[str, Any], content: Any) -> str:
    loc = [part for part in error["loc"] if part not in ("int", "literal['cores']")]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    entries: dict[Any, type[Strict]] = {"models": ModelEntry, "curves": CurveEntry}
    known = list((entries.get(loc[0], Plan) if len(loc) > 2 else Plan).model_fields)
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggest(str(loc[-1]), known)} Valid: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{place}: is missing."
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and "ctx" in error else ""
    return f"{place + ': ' if place else ''}{message}{'' if message.endswith('.') else shown + '.'}"


def select(cells: Sequence[CellSpec], patterns: Sequence[str]) -> list[CellSpec]:
    """Return the cells that match any of the patterns, or all if there are none.

    Parameters
    ----------
    cells
        Cells of a plan.
    patterns
        Globs for a model, a method, a task, or ``MODEL/METHOD/TASK``.

    Raises
    ------
    PlanError
        If a pattern matches no cell.
    """
    if not patterns:
        return list(cells)

    def matches(cell: CellSpec, pattern: str) -> bool:
        names = (cell.model, cell.method, cell.task, f"{cell.model}/{cell.method}/{cell.task}")
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    for pattern in patterns:
        if not any(matches(cell, pattern) for cell in cells):
            names = _unique(name for cell in cells for name in (cell.model, cell.method, cell.task))
            raise PlanError(
                f"--only {pattern}: no cell matches{suggest(pattern, names)} Patterns are compared with models, "
                f"methods, tasks and MODEL/METHOD/TASK; tasks are {', '.join(_unique(c.task for c in cells))}."
            )
    return [cell for cell in cells if any(matches(cell, pattern) for pattern in patterns)]
