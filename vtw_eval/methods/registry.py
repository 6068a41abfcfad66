"""All methods by their lower-case key, and the parser of method specs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vtw_eval.errors import suggest
from vtw_eval.methods.base import Method
from vtw_eval.methods.baseline import Baseline
from vtw_eval.methods.composite import Composite
from vtw_eval.methods.downsample import Downsample
from vtw_eval.methods.dyvte.method import DyVTE
from vtw_eval.methods.fastv import FastV
from vtw_eval.methods.pyramiddrop import PyramidDrop
from vtw_eval.methods.rand import Rand
from vtw_eval.methods.random_k import RandomK
from vtw_eval.methods.random_vision import RandomVision
from vtw_eval.methods.tome import ToMe
from vtw_eval.methods.vtw.method import VTW

METHODS: Mapping[str, type[Method]] = {
    cls.key: cls for cls in (Baseline, VTW, Rand, RandomK, FastV, RandomVision, Downsample, ToMe, PyramidDrop, DyVTE)
}
"""Every method that a spec can name."""


def make_method(name: str, params: Mapping[str, Any] | None = None) -> Method:
    """Make a method from its key and parameters, the latter as strings or values.

    Parameters
    ----------
    name
        A key of :data:`METHODS`.
    params
        Hyper-parameters by name; strings are converted to the declared type.

    Raises
    ------
    ValueError
        For an unknown method, an unknown parameter or a value of the wrong type; the message lists the valid ones.
    """
    if "+" in name:
        return _make_composite(name, params or {})
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{suggest(name, list(METHODS))} Valid: {', '.join(METHODS)}.")
    cls = METHODS[name]
    hints = get_type_hints(cls)
    valid = [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    for key, value in (params or {}).items():
        if key not in valid:
            listing = f"Valid: {', '.join(valid)}." if valid else "It takes none."
            raise ValueError(f"unknown parameter {key!r} of method {name!r}{suggest(key, valid)} {listing}")
        adapter = TypeAdapter(hints[key])
        try:
            values[key] = adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
        except ValidationError as error:
            problem = ", or ".join(e["msg"] for e in error.errors() if e["type"] != "none_required")
            raise ValueError(f"bad value {key}={value!r} of method {name!r}: {problem}.") from None
    return cls(**values)


def _make_composite(name: str, params: Mapping[str, Any]) -> Composite:
    """Make ``fastv+vtw`` from parameters such as ``fastv.k``."""
    names = [part.strip() for part in name.split("+")]
    own: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in params.items():
        part, dot, parameter = key.partition(".")
        if not dot or part not in own:
            raise ValueError(
                f"parameter {key!r} of {name!r} belongs to no part{suggest(part, names)} "
                f"Write PART.NAME=VALUE with PART one of {', '.join(names)}."
            )
        own[part][parameter] = value
    return Composite(parts=tuple(make_method(part, own[part]) for part in names))


def parse_method(spec: str) -> Method:
    """Make a method from a spec such as ``"vtw,k=16"``.

    Raises
    ------
    ValueError
        See :func:`make_method`; also for a part that is not ``name=value`` or stands twice.
    """
    name, *parts = [part.strip() for part in spec.split(",")]
    params: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"bad part {part!r} in method spec {spec!r}: write name=value, as in 'vtw,k=16'.")
        if key in params:
            raise ValueError(f"parameter {key!r} stands twice in method spec {spec!r}.")
        params[key] = value
    return make_method(name, params)
