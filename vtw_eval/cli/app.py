"""The application to which the sub-commands belong, and how they tell an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

app = typer.Typer(
    name="vtw-eval",
    help="Visual-token reduction for multimodal models: methods, costs, tables. Evaluations run through lmms_eval.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@contextmanager
def user_errors(command: str, kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turn exceptions whose messages are written for users into one line and exit status 1.

    Parameters
    ----------
    command
        Name of the sub-command.
    kinds
        Exceptions to report.
    """
    try:
        yield
    except kinds as error:
        typer.echo(f"vtw-eval {command}: error: {error}", err=True)
        raise typer.Exit(1) from None
