"""The application to which the sub-commands belong, and how they tell an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from vtw_eval._version import __version__

app = typer.Typer(
    name="vtw-eval",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtw-eval {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version, and end.")
    ] = False,
) -> None:
    """Visual-token reduction for multimodal models: methods, costs, tables. Evaluations run through lmms_eval.

    Exit status: 0; 1 if something could not be done; 2 if the command cannot be carried out as it is written; 3 if
    results are worse than those before (report --fail-on-regression).
    """


FAILED = 1
"""Exit status where something asked for could not be done."""
USAGE = 2
"""Exit status of a command that cannot be carried out as it is written."""
REGRESSION = 3
"""Exit status where results are worse than those before."""


@contextmanager
def user_errors(
    command: str,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
    usage: tuple[type[Exception], ...] = (ValueError,),
) -> Iterator[None]:
    """Turn exceptions whose messages are written for users into one line and an exit status.

    Parameters
    ----------
    command
        Name of the sub-command.
    kinds
        Exceptions to report.
    usage
        Those of them that tell of what was asked for, which end with :data:`USAGE`; others end with :data:`FAILED`.
    """
    try:
        yield
    except kinds as error:
        typer.echo(f"vtw-eval {command}: error: {error}", err=True)
        raise typer.Exit(USAGE if isinstance(error, usage) else FAILED) from None
