"""``vtw-eval methods``."""

from __future__ import annotations

import typer

from vtw_eval.cli.app import app


@app.command(epilog="Example of use: lmms_eval --model llava_vtw --model_args pretrained=CKPT,method=vtw,k=16 ...")
def methods() -> None:
    """List the methods with their parameters, what they need of the model, and their sources."""
    from vtw_eval.methods import METHODS

    for key, cls in METHODS.items():
        defaults = {name: "auto" if value is None else value for name, value in cls().params().items()}
        typer.echo(", ".join([key, *(f"{name}={value}" for name, value in defaults.items())]))
        typer.echo(f"    {(cls.__doc__ or '').strip().splitlines()[0]}")
        typer.echo(f"    Needs {cls.needs}." + (f" {cls.paper}" if cls.paper else ""))
