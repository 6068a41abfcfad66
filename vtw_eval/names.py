"""What tables call methods: names by spec, which are no part of what is evaluated."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace

from vtw_eval.errors import suggest
from vtw_eval.methods import Method, parse_method
from vtw_eval.methods.baseline import Baseline
from vtw_eval.methods.composite import Composite


def but_for_seeds(spec: str) -> Hashable:
    """Return what is equal for specs that differ in spelling or seeds only; the spec of a method that is not known."""
    try:
        return _seedless(parse_method(spec))
    except ValueError:
        return spec


def _seedless(method: Method) -> Method:
    if isinstance(method, Composite):
        return replace(method, parts=tuple(_seedless(part) for part in method.parts))
    return replace(method, seed=0) if hasattr(method, "seed") else method  # type: ignore[call-arg]


def names_of(methods: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each method that has one, by its spec as given.

    Parameters
    ----------
    methods
        Specs.
    names
        Names by spec, in any spelling and with any seed; those of other methods say nothing.
    """
    known = {but_for_seeds(spec): name for spec, name in names.items()}
    return {spec: known[key] for spec in methods if (key := but_for_seeds(spec)) in known}


def check_names(names: Mapping[str, str], methods: Iterable[str]) -> None:
    """Check that names tell methods apart.

    Parameters
    ----------
    names
        Names by spec, in any spelling and with any seed.
    methods
        Specs of all methods.

    Raises
    ------
    ValueError
        If a name is not one line of text or that of another method, a spec is none of the methods, two methods get one
        name, or one gets two.
    """
    specs = {spec: but_for_seeds(spec) for spec in methods}
    named: dict[Hashable, str] = {}
    owners: dict[str, tuple[str, Hashable]] = {}
    for spec, name in names.items():
        key = but_for_seeds(spec)
        if key not in specs.values():
            once = list({key: spec for spec, key in reversed(specs.items())}.values())[::-1]
            raise ValueError(f"{_unknown(spec, once)} Methods: {'; '.join(once)}.")
        if not name.isprintable() or not name or name != name.strip():
            raise ValueError(f"{spec!r} cannot be named {name!r}: a name is one line, without spaces around it.")
        if named.setdefault(key, name) != name:
            raise ValueError(
                f"{spec!r} is named twice, {named[key]!r} and {name!r}: specs that differ in spelling or seeds only "
                "are one method and get one name."
            )
        first, owner = owners.setdefault(name, (spec, key))
        if owner != key:
            raise ValueError(f"{first!r} and {spec!r} are both named {name!r}: give each method a name of its own.")
        # The unchanged model may be no method of the plan, but its name is what reports compare with by default.
        if (meant := but_for_seeds(name)) != key and meant in {*specs.values(), Baseline()}:
            raise ValueError(f"{spec!r} cannot be named {name!r}, which is another method: give it a name of its own.")


def _unknown(spec: str, methods: list[str]) -> str:
    """Return why a spec is none of the methods."""
    try:
        parse_method(spec)
    except ValueError as error:
        return f"{spec!r}: {error}"
    return f"{spec!r} is none of the methods{suggest(spec, methods)}"
