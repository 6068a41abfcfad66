"""Methods of others: of installed packages, by entry points, and in files and modules, by their place."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from vtw_eval.engine.reads import Reads
from vtw_eval.errors import named, suggest
from vtw_eval.methods.base import Method, is_plain
from vtw_eval.versions import source_hash

GROUP = "vtw_eval.methods"
"""Group of entry points by which a package adds methods: ``edge_first = pkg.module:EdgeFirst``."""


@functools.cache
def plugins() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of installed packages by name; nothing is loaded."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def distribution(entry: EntryPoint) -> str:
    """Return the name and version of the distribution that an entry point is of."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unnamed distribution"


def load_plugin(name: str) -> type[Method]:
    """Load a method that another package registers.

    Raises
    ------
    ValueError
        If several packages register the name, what they register cannot be loaded, or is no method of that name.
    """
    entry, *others = plugins()[name]
    if others:
        owners = ", ".join(distribution(one) for one in (entry, *others))
        raise ValueError(f"method {name!r} is registered more than once, by {owners}: uninstall all of them but one.")
    what = f"method {name!r} of {distribution(entry)}"
    try:
        found = entry.load()
    except Exception as error:  # whatever its code meets
        raise ValueError(f"{what} cannot be loaded from {entry.value}: {named(error)}") from error
    cls = check_class(found, what)
    if cls.key != name:
        raise ValueError(f"{what} has the key {cls.key!r}: it must be the name under which it is registered.")
    return cls


def load_place(place: str) -> tuple[type[Method], str]:
    """Load a method from ``FILE.py:Class`` or ``package.module:Class``.

    Returns
    -------
    class, place
        The place in one spelling: a file below the working directory by its path from there, any other by its whole
        path.

    Raises
    ------
    ValueError
        If there is no such file, module or class, if its code fails, or if it is no method.
    """
    where, _, name = place.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"method {place!r}: there is no file {where!r}.")
        module = _module_of(path)
        below = path.is_relative_to(Path.cwd())
        where = (path.relative_to(Path.cwd()) if below else path).as_posix()
        if re.search(r"[,+]", where):
            raise ValueError(f"method {place!r}: a spec cannot tell the commas and plus signs in {where!r}.")
    else:
        try:
            module = importlib.import_module(where)
        except Exception as error:  # whatever its code meets
            raise ValueError(f"method {place!r}: the module {where!r} cannot be imported: {named(error)}") from error
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if _is_own(value, module)]
        raise ValueError(
            f"method {place!r}: {where} has no {name!r}{suggest(name, known)} Methods there: "
            f"{', '.join(known) or 'none'}."
        )
    return check_class(getattr(module, name), f"method {place!r}"), f"{where}:{name}"


def _is_own(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__


@functools.cache
def _module_of(path: Path) -> ModuleType:
    """Import a file once, under a name that no other module has."""
    name = f"vtw_eval_method_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look their types up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its code meets
        del sys.modules[name]
        raise ValueError(f"{path}, line {_line(error, path)}: {named(error)}") from error
    return module


def _line(error: Exception, path: Path) -> int | None:
    """Return the line of a file at which an error came out of it."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines, frame = [], error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(path):
            lines.append(frame.tb_lineno)
        frame = frame.tb_next
    return lines[-1] if lines else None


def check_class(found: Any, what: str) -> type[Method]:
    """Check that a class is a method which a spec can name.

    Parameters
    ----------
    found
        What was found.
    what
        What it is called, for messages.

    Raises
    ------
    ValueError
        If it is no method, or a spec could not tell its key and parameters.
    """
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{what} is no method: it must be a subclass of vtw_eval.methods.Method, not {found!r}.")
    own = vars(found)
    if not re.fullmatch(r"\w[\w-]*", str(own.get("key", ""))):
        raise ValueError(f"{what} has no key of its own: write key: ClassVar[str] = 'a_name' (letters, digits, _, -).")
    if "__dataclass_fields__" not in own or not own["__dataclass_params__"].frozen:
        raise ValueError(f"{what} is no frozen dataclass: put @dataclass(frozen=True, kw_only=True) in front of it.")
    if not isinstance(found.reads, Reads | property):
        raise ValueError(f"{what} declares reads={found.reads!r}: write for instance reads = Reads.HIDDEN.")
    try:
        hints = get_type_hints(found)
    except NameError as error:
        raise ValueError(f"{what}: the types of its parameters are not known: {error}.") from None
    for field in fields(found):
        if field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{what}: its parameter {field.name} has no default.")
        if not is_plain(hints[field.name]):
            raise ValueError(
                f"{what}: its parameter {field.name} is of type {field.type}, which a spec cannot tell: use int, "
                "float, str, bool or Literal."
            )
    return found


def foreign_code(method: Method) -> str:
    """Return a short hash of the files that define a method, empty if it is of this project.

    Parameters
    ----------
    method
        A method; of a composition, all parts count.
    """
    classes = {cls for part in getattr(method, "parts", (method,)) for cls in type(part).__mro__}
    return _code(frozenset(cls for cls in classes if issubclass(cls, Method) and not _is_ours(cls)))


def _is_ours(cls: type[Method]) -> bool:
    return cls.__module__.partition(".")[0] == "vtw_eval"


@functools.cache  # what is loaded does not change with its file
def _code(classes: frozenset[type[Method]]) -> str:
    return source_hash({Path(inspect.getfile(cls)) for cls in classes}) if classes else ""
