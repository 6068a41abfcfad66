"""``vtw-eval chat``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtw_eval.cli.app import app, user_errors

if TYPE_CHECKING:
    from vtw_eval.chat import ChatModel


@app.command(
    epilog="Examples: vtw-eval chat --image photo.png · "
    "vtw-eval chat --model llava-hf/llava-1.5-7b-hf --method baseline --method vtw,k=16 --image photo.png · "
    r"printf 'How many objects are there?\n:method fastv,k=2\nHow many objects are there?\n' | "
    "vtw-eval chat --image photo.png"
)
def chat(
    model: Annotated[str, typer.Option(help="Checkpoint: folder or Hub name, or shapes, the embedded one.")] = "shapes",
    model_args: Annotated[str, typer.Option(help="More options of the adapter, as in lmms_eval --model_args.")] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method spec, such as vtw,k=16; several times for several. Default: baseline and vtw."),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Picture; several times for several.", exists=True)] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Video; several times for several.", exists=True)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 256,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the methods with masked attention first.")
    ] = False,
) -> None:
    """Talk about a picture or a video, and see what methods answer, one below the other, and what that costs.

    Later questions go on from what a method has left in the KV cache. Lines that begin with a colon are commands;
    :help lists them. Through a pipe it reads lines, too, and ends at the first that cannot be done.
    """
    from vtw_eval.chat.sides import Sides
    from vtw_eval.chat.terminal import ERRORS, Terminal, typed

    with user_errors("chat", ERRORS):
        opened = open_chat(model, model_args, device, verify=not no_verify)
        sides = Sides(opened, method or ["baseline", "vtw"])
        sides.show(*map(str, (*(image or ()), *(video or ()))))
        live = sys.stdin.isatty()
        terminal = Terminal(sides, sys.stdout, live=live, max_new_tokens=max_new_tokens)
        if not live:

            def give_up(error: Exception) -> None:
                raise error

            terminal.run(sys.stdin, give_up)
            return
        about = f"{model}: {' and '.join(str(session.method) for session in sides.sessions)}. :help lists commands."
        typer.echo(about if sides.media else f"{about} :image PATH shows a picture.")
        terminal.run(typed(), lambda error: typer.echo(f"error: {error}", err=True))


def open_chat(model: str, model_args: str, device: str | None, *, verify: bool) -> ChatModel:
    """Open what the options of chat and web name.

    Raises
    ------
    ValueError
        If there is no such checkpoint or device, or an option is none of the adapter's.
    """
    from transformers.utils import logging

    from vtw_eval.chat.model import open_model
    from vtw_eval.models.options import check_unique_names
    from vtw_eval.runtime import pick_device
    from vtw_eval.sweep.check import device_problem

    if problem := device_problem(device):
        raise ValueError(problem)
    check_unique_names(model_args)
    entries = (part.strip().partition("=") for part in model_args.split(",") if part.strip())
    given: dict[str, Any] = {name.strip(): value.strip() for name, _, value in entries}
    options = {"pretrained": "--model", "method": "--method", "device": "--device", "verify": "--no-verify"}
    for name, better in options.items():
        if name in given:
            raise ValueError(f"{name} does not belong into --model-args: use {better}.")
    logging.disable_progress_bar()
    return open_model(model, given, device=pick_device(device), verify=verify)
