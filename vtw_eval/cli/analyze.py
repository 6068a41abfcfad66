"""``vtw-eval analyze``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.cli.layers import numbers_of_layers
from vtw_eval.cli.model_args import adapter_arguments
from vtw_eval.files import check_output, write_files
from vtw_eval.models.adapters import ADAPTERS

if TYPE_CHECKING:
    from vtw_eval.models.curve import CurveRunner
    from vtw_eval.models.family import DocumentPrompt, Family
    from vtw_eval.models.requests import Request

_GIVEN = "questions"
"""Name of what is asked about files."""


@app.command(
    epilog="Examples: vtw-eval analyze --model-args pretrained=shapes --task shapes_vqa --task shapes_caption "
    "-o runs/analysis · vtw-eval analyze --model-args pretrained=llava-hf/llava-1.5-7b-hf --task pope --limit 50 "
    "--method vtw,k=16 --k 4,8,12,16,24 -o runs/pope · vtw-eval analyze --model-args pretrained=shapes "
    "--image photo.png --question 'How many?' -o runs/photo"
)
def analyze(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of text, tables and figures.")],
    model: Annotated[str, typer.Option(help=f"Adapter: one of {', '.join(ADAPTERS)}.")] = "llava_vtw",
    model_args: Annotated[
        str, typer.Option(help="Options of the adapter, as in lmms_eval --model_args; pretrained=... among them.")
    ] = "",
    task: Annotated[list[str] | None, typer.Option(help="Task of lmms-eval, or of ours. Repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="First documents of each task.")] = 100,
    image: Annotated[
        list[Path] | None, typer.Option(help="Instead of a task: picture; several times for several.", exists=True)
    ] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Video; several times for several.", exists=True)] = None,
    question: Annotated[list[str] | None, typer.Option(help="Asked about them; several times for several.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method whose attention is compared with the unchanged model's; repeatable. Default: vtw."),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(help="Numbers of layers at which VTW's answers are compared, such as 0,4,8. Default: all."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer. Default: what the task says, 64 for files.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the methods with masked attention first.")
    ] = False,
) -> None:
    """Read where attention goes, layer by layer and token by token, and which answers stay the same at which k.

    Computed from queries and keys, a few rows at a time: attention need not be eager, and memory grows with the length
    of the prompt. The folder gets README.md (what it says beside the papers' figures), attention.csv, kinds.csv,
    entropy.csv, agreement.csv, and five figures as PNG and SVG.
    """
    from vtw_eval.analyze import analyse, analysis_files
    from vtw_eval.methods import parse_method
    from vtw_eval.sweep.check import device_problem

    with user_errors("analyze", (ValueError, OSError, RuntimeError)):
        check_output(output, folder=True)
        if problem := device_problem(device):
            raise ValueError(problem)
        methods = [parse_method(spec) for spec in method or ["vtw"]]
        ks = numbers_of_layers(k)
        arguments = adapter_arguments("analyze", model_args, device, verify=not no_verify)
        length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        if task is not None:
            if image or video or question:
                raise ValueError("--task brings its own pictures and question: leave --image, --video, --question out.")
            runner, asked = _of_tasks(model, arguments, task, limit, length)
        else:
            media = [str(path) for path in (*(image or ()), *(video or ()))]
            if not media or not question:
                raise ValueError("give --task; or --image or --video, and --question.")
            runner, asked = _of_files(model, arguments, media, question, {"max_new_tokens": 64, **length})
        say = typer.echo
        found = [
            analyse(runner, name, requests, methods, ks, progress=True, log=lambda line: say(line, err=True))
            for name, requests in asked.items()
        ]
        command = shlex.join(["vtw-eval", *sys.argv[1:]])
        files = analysis_files(found, str(arguments["pretrained"]), command)
        write_files(output, files)
    typer.echo(f"In {output}: {', '.join(files)}")


def _of_tasks(
    adapter: str, arguments: dict[str, Any], tasks: list[str], limit: int, generation: dict[str, Any]
) -> tuple[CurveRunner, dict[str, list[Request]]]:
    """Open a model, and return it with the first documents of tasks by the task's name."""
    from dataclasses import replace

    from vtw_eval.model_adapters.lmms.collect import collect
    from vtw_eval.models.curve import CurveRunner

    runner, requests = collect(adapter, arguments, tasks, limit, CurveRunner)
    assert isinstance(runner, CurveRunner), "it was asked for"
    found: dict[str, list[Request]] = {}
    for request in requests:
        own = replace(request, generation={**request.generation, **generation})
        found.setdefault(request.task, []).append(own)
    order = {name: place for place, name in enumerate(tasks)}
    return runner, dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _of_files(
    adapter: str, arguments: dict[str, Any], media: list[str], questions: list[str], generation: dict[str, Any]
) -> tuple[CurveRunner, dict[str, list[Request]]]:
    """Open a model, and return it with a document for each question about files."""
    from vtw_eval.models.curve import CurveRunner
    from vtw_eval.models.family import content_of
    from vtw_eval.models.requests import Request
    from vtw_eval.runtime import pick_device

    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}. Valid: {', '.join(ADAPTERS)}.")
    device = pick_device(arguments.get("device"))
    runner = CurveRunner(adapter, arguments, simple=False, device=device, log=lambda line: None)

    def asking(question: str) -> Callable[[Family[Any]], DocumentPrompt]:
        messages = [{"role": "user", "content": content_of(question, media)}]
        return lambda family: family.chat_prompt(messages)

    requests = [
        Request(question, len(question), generation, asking(question), _GIVEN, "files") for question in questions
    ]
    return runner, {_GIVEN: requests}
