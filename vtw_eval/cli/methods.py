"""``vtw-eval methods``."""

from __future__ import annotations

from importlib import resources

import typer

from vtw_eval.cli.app import app

LIST = "methods.txt"
"""Beside this file: what :func:`listing` returns, so that the command need not import torch. A test compares them."""


@app.command(epilog="Example of use: lmms_eval --model llava_vtw --model_args pretrained=CKPT,method=vtw,k=16 ...")
def methods() -> None:
    """List the methods with their parameters, what they need of the model, and their sources."""
    typer.echo((resources.files("vtw_eval.cli") / LIST).read_text("utf-8"), nl=False)


def listing() -> str:
    """Return what is told of every method, three lines for each, from their classes."""
    from vtw_eval.methods import METHODS

    lines = []
    for key, cls in METHODS.items():
        defaults = {name: "auto" if value is None else value for name, value in cls().params().items()}
        lines.append(", ".join([key, *(f"{name}={value}" for name, value in defaults.items())]))
        lines.append(f"    {(cls.__doc__ or '').strip().splitlines()[0]}")
        lines.append(f"    Needs {cls.needs}." + (f" {cls.paper}" if cls.paper else ""))
    return "\n".join(lines) + "\n"
