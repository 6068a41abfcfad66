"""Short names of methods for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtw_eval.methods.registry import parse_method

_QUIET = ("seed", "position")


def labels_of(methods: Iterable[str], names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a label for each method spec: its name, or the spec without seed and position where those are the default.

    Parameters
    ----------
    methods
        Specs. Those that would get the same label keep their whole spec.
    names
        By spec, of those that have one.
    """
    specs = list(methods)
    short = {spec: _shorten(spec) for spec in specs}
    labels = list(short.values())
    plain = {spec: label if labels.count(label) == 1 else spec for spec, label in short.items()}
    return plain | named_labels(specs, names or {})


def named_labels(methods: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of those methods that have a name; runs with different seeds are told apart by them."""
    named = {spec: names[spec] for spec in methods if spec in names}
    counts = Counter(named.values())
    return {spec: name if counts[name] == 1 else ", ".join([name, *_seeds(spec)]) for spec, name in named.items()}


def group_label(group: Sequence[str], labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Return what tables call a method that ran with some seeds.

    Parameters
    ----------
    group
        Specs that differ in seeds only.
    labels
        Of single runs, by spec.
    names
        By spec, of those that have one.
    """
    first = group[0]
    if len(group) == 1:
        return labels[first]
    return f"{names.get(first) or seedless(labels[first])} ({len(group)} seeds)"


def method_called(text: str, names: Mapping[str, str]) -> str:
    """Return the spec of the method that has a name, or the text itself, which is then a spec."""
    return next((spec for spec, name in names.items() if name == text), text)


def _seeds(spec: str) -> list[str]:
    return [f"{name}={value}" for name, value in params_of(spec).items() if is_seed(name)]


def is_seed(parameter: str) -> bool:
    """Whether a parameter of a method, or of a part of a composition, is a seed."""
    return parameter.rpartition(".")[2] == "seed"


def seedless(label: str) -> str:
    """Return the label or spec of a method without its seeds."""
    return ",".join(part for part in label.split(",") if not is_seed(part.partition("=")[0]))


def same_method(spec: str, other: str) -> bool:
    """Whether two specs name one method with the same parameters, those left out being the defaults."""
    return spec == other or _same(spec, other)


def _shorten(spec: str) -> str:
    name, *parts = spec.split(",")
    kept = list(parts)
    for part in parts:
        rest = [other for other in kept if other != part]
        if part.partition("=")[0].rpartition(".")[2] in _QUIET and _same(spec, ",".join([name, *rest])):
            kept = rest
    return ",".join([name, *kept])


def _same(spec: str, shorter: str) -> bool:
    try:
        return parse_method(spec) == parse_method(shorter)
    except ValueError:
        return False  # a method of another version


@dataclass(frozen=True)
class Ablation:
    """Methods that differ in one parameter only."""

    name: str
    """Of the method, with its other parameters."""
    parameter: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]
    """Specs, by value."""


def params_of(spec: str) -> Mapping[str, Any]:
    """Return all parameters of a method spec with their values, nothing for one that is not known."""
    try:
        return parse_method(spec).params()
    except ValueError:
        return {}


def families(methods: Iterable[str], pooled: Iterable[str] = ()) -> list[Ablation]:
    """Return the ablations among methods: for each parameter, those that are equal but for it.

    Parameters
    ----------
    methods
        Specs. A family has at least two; its values are in ascending order, numbers before words.
    pooled
        Those of them that stand for runs with several seeds, so that their own seed says nothing.
    """
    means = set(pooled)
    found: dict[tuple[str, str], list[tuple[Any, str]]] = {}
    for spec in methods:
        params = params_of(spec)
        if spec in means:
            params = {name: value for name, value in params.items() if not is_seed(name)} | {"seeds": "several"}
        for parameter, value in params.items():
            others = [f"{name}={other}" for name, other in params.items() if name != parameter and other is not None]
            found.setdefault((",".join([spec.partition(",")[0], *others]), parameter), []).append((value, spec))
    result = []
    for (name, parameter), members in found.items():
        if len(members) < 2:
            continue
        members.sort(key=lambda m: (not isinstance(m[0], int | float), m[0] if isinstance(m[0], int | float) else 0))
        result.append(Ablation(name, parameter, tuple(m[0] for m in members), tuple(m[1] for m in members)))
    return result
