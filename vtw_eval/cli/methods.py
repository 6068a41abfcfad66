"""``vtw-eval methods``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import entry_points

import typer

from vtw_eval.cli.app import app
from vtw_eval.files import cache_home, write_atomically
from vtw_eval.versions import engine_hash


@app.command(
    epilog="Examples of use: lmms_eval --model llava_vtw --model_args pretrained=CKPT,method=vtw,k=16 ...; a method in "
    "a file of your own: method=my_folder/my_method.py:MyMethod"
)
def methods() -> None:
    """List the methods with their parameters, what they read of the model, and their sources.

    Those of this project come first, then those that other installed packages add.
    """
    typer.echo(_ours() + _others(), nl=False)


def _ours() -> str:
    """Return what is told of our methods; kept in the user's cache, because importing torch takes seconds."""
    path = cache_home() / "methods" / f"{engine_hash()}.txt"
    with suppress(OSError, UnicodeError):
        return path.read_text("utf-8")
    from vtw_eval.methods.registry import OURS

    text = listing(OURS)
    with suppress(OSError):
        write_atomically(path, text)
    return text


def _others() -> str:
    """Return what is told of methods of other packages, or why they cannot be used."""
    if not entry_points(group="vtw_eval.methods"):
        return ""
    from vtw_eval.methods.sockets import distribution, plugins

    lines = []
    for name, entries in plugins().items():
        try:
            lines.append(listing([name]))
        except ValueError as error:
            lines.append(f"{name}\n    Cannot be used: {error}\n")
        else:
            lines.append(f"    From {distribution(entries[0])}.\n")
    return "".join(lines)


def listing(names: Iterable[str]) -> str:
    """Return what is told of methods, three lines for each, from their classes."""
    from vtw_eval.methods.registry import find_method

    lines = []
    for name in names:
        cls = find_method(name)
        method = cls()
        defaults = {param: "auto" if value is None else value for param, value in method.params().items()}
        lines.append(", ".join([name, *(f"{param}={value}" for param, value in defaults.items())]))
        lines.append(f"    {(cls.__doc__ or '').strip().partition(chr(10))[0]}")
        needs = f" Needs {method.also_needs}." if method.also_needs else ""
        lines.append(f"    Reads {method.reads.words}.{needs}" + (f" {cls.paper}" if cls.paper else ""))
    return "\n".join(lines) + "\n"
