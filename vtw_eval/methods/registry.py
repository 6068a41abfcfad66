"""All methods by name, and the parser of method specs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vtw_eval.errors import suggest
from vtw_eval.methods.base import Method
from vtw_eval.methods.composite import Composite
from vtw_eval.methods.sockets import distribution, load_place, load_plugin, plugins

OURS: Mapping[str, str] = {
    "baseline": "vtw_eval.methods.baseline:Baseline",
    "vtw": "vtw_eval.methods.vtw.method:VTW",
    "rand": "vtw_eval.methods.rand:Rand",
    "random_k": "vtw_eval.methods.random_k:RandomK",
    "fastv": "vtw_eval.methods.fastv:FastV",
    "random_vision": "vtw_eval.methods.random_vision:RandomVision",
    "downsample": "vtw_eval.methods.downsample:Downsample",
    "tome": "vtw_eval.methods.tome:ToMe",
    "uniform": "vtw_eval.methods.uniform:Uniform",
    "first": "vtw_eval.methods.first:First",
    "last": "vtw_eval.methods.last:Last",
    "pyramiddrop": "vtw_eval.methods.pyramiddrop:PyramidDrop",
    "himap": "vtw_eval.methods.himap:HiMAP",
    "divprune": "vtw_eval.methods.divprune:DivPrune",
    "cdpruner": "vtw_eval.methods.cdpruner:CDPruner",
    "fastervlm": "vtw_eval.methods.fastervlm:FasterVLM",
    "vtc_cls": "vtw_eval.methods.vtc_cls:VTCCLS",
    "visionzip": "vtw_eval.methods.visionzip:VisionZip",
    "prumerge": "vtw_eval.methods.prumerge:PruMerge",
    "fopru": "vtw_eval.methods.fopru:FoPru",
    "vispruner": "vtw_eval.methods.vispruner:VisPruner",
    "scope": "vtw_eval.methods.scope:SCOPE",
    "hiprune": "vtw_eval.methods.hiprune:HiPrune",
    "holov": "vtw_eval.methods.holov:HoloV",
    "mmtok": "vtw_eval.methods.mmtok:MMTok",
    "trim": "vtw_eval.methods.trim:TRIM",
    "vscan": "vtw_eval.methods.vscan:VScan",
    "dart": "vtw_eval.methods.dart:DART",
    "feather": "vtw_eval.methods.feather:Feather",
    "sparsevlm": "vtw_eval.methods.sparsevlm:SparseVLM",
    "pact": "vtw_eval.methods.pact:PACT",
    "pool": "vtw_eval.methods.pool:Pool",
    "fitprune": "vtw_eval.methods.fitprune:FitPrune",
    "shortv": "vtw_eval.methods.shortv:ShortV",
    "ivc_prune": "vtw_eval.methods.ivc_prune:IVCPrune",
    "evs": "vtw_eval.methods.evs:EVS",
    "vidcom2": "vtw_eval.methods.vidcom2:VidCom2",
    "dycoke": "vtw_eval.methods.dycoke:DyCoke",
    "random_per_frame": "vtw_eval.methods.random_per_frame:RandomPerFrame",
    "uniform_frames": "vtw_eval.methods.uniform_frames:UniformFrames",
    "fastvid": "vtw_eval.methods.fastvid:FastVID",
    "framefusion": "vtw_eval.methods.framefusion:FrameFusion",
    "holitom": "vtw_eval.methods.holitom:HoliTom",
    "dyvte": "vtw_eval.methods.dyvte.method:DyVTE",
}
"""Where each method of this project stands, by its key."""


class _Ours(Mapping[str, type[Method]]):
    """Loads each on first use."""

    def __getitem__(self, key: str) -> type[Method]:
        module, _, name = OURS[key].partition(":")
        cls: type[Method] = getattr(importlib.import_module(module), name)
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(OURS)

    def __len__(self) -> int:
        return len(OURS)


METHODS: Mapping[str, type[Method]] = _Ours()
"""Every method of this project by its key."""


def method_names() -> list[str]:
    """Return the keys of all methods that are installed: ours, then those of other packages."""
    return list(dict.fromkeys([*OURS, *plugins()]))


def find_method(name: str) -> type[Method]:
    """Return a method's class.

    Parameters
    ----------
    name
        A key of ours or of another package's (entry points of the group ``vtw_eval.methods``), or the place of a class:
        ``FILE.py:Class`` or ``package.module:Class``.

    Raises
    ------
    ValueError
        If there is none, if it cannot be loaded, or if two have the name.
    """
    if ":" in name:
        cls, place = load_place(name)
        if not _is_registered(cls):
            if cls.key in OURS:
                raise ValueError(f"method {name!r} has the key {cls.key!r}, which is that of another one: rename it.")
            cls.place = place
        return cls
    if name not in method_names():
        raise ValueError(
            f"unknown method {name!r}{suggest(name, method_names())} Valid: {', '.join(method_names())}; or the place "
            "of a class, as in my_folder/my_method.py:MyMethod."
        )
    if name not in OURS:
        return load_plugin(name)
    if name in plugins():
        owners = ", ".join(distribution(entry) for entry in plugins()[name])
        raise ValueError(f"method {name!r} is one of vtw-eval's, and {owners} registers another one: uninstall that.")
    return METHODS[name]


def _is_registered(cls: type[Method]) -> bool:
    """Whether a class is what its key stands for."""
    try:
        return find_method(cls.key) is cls
    except ValueError:
        return False


def parameters(name: str) -> dict[str, Any]:
    """Return the types of a method's parameters by their names in a spec, such as ``fastv.k`` of ``fastv+vtw``.

    Raises
    ------
    ValueError
        See :func:`find_method`.
    """
    names = name.split("+")
    found: dict[str, Any] = {}
    for part in names:
        cls = find_method(part)
        hints, prefix = get_type_hints(cls), "" if len(names) == 1 else f"{part}."
        found |= {prefix + field.name: hints[field.name] for field in fields(cls)}
    return found


def make_method(name: str, params: Mapping[str, Any] | None = None) -> Method:
    """Make a method from its name and parameters, the latter as strings or values.

    Parameters
    ----------
    name
        See :func:`find_method`; or several joined by ``+``.
    params
        Hyper-parameters by name; strings are converted to the declared type.

    Raises
    ------
    ValueError
        For an unknown method, an unknown parameter or a value of the wrong type; the message lists the valid ones.
    """
    if "+" in name:
        return _make_composite(name, params or {})
    cls, hints = find_method(name), parameters(name)
    values: dict[str, Any] = {}
    for key, value in (params or {}).items():
        if key not in hints:
            listing = f"Valid: {', '.join(hints)}." if hints else "It takes none."
            raise ValueError(f"unknown parameter {key!r} of method {name!r}{suggest(key, hints)} {listing}")
        adapter = TypeAdapter(hints[key])
        try:
            values[key] = adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
        except ValidationError as error:
            problem = ", or ".join(e["msg"] for e in error.errors() if e["type"] != "none_required")
            raise ValueError(f"bad value {key}={value!r} of method {name!r}: {problem}.") from None
        text = values[key]
        if isinstance(text, str) and (text != text.strip() or not text or "," in text):
            raise ValueError(f"bad value {key}={text!r} of method {name!r}: a spec cannot tell commas or outer spaces.")
    return cls(**values)


def _make_composite(name: str, params: Mapping[str, Any]) -> Composite:
    """Make ``fastv+vtw`` from parameters such as ``fastv.k``."""
    names = [part.strip() for part in name.split("+")]
    own: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in params.items():
        part = max((part for part in names if key.startswith(f"{part}.")), key=len, default=None)
        if part is None:
            raise ValueError(
                f"parameter {key!r} of {name!r} belongs to no part{suggest(key.partition('.')[0], names)} "
                f"Write PART.NAME=VALUE with PART one of {', '.join(names)}."
            )
        own[part][key.removeprefix(f"{part}.")] = value
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
