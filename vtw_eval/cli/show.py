"""``vtw-eval show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.cli.model_args import adapter_arguments
from vtw_eval.files import check_output, write_atomically
from vtw_eval.models.adapters import ADAPTERS

if TYPE_CHECKING:
    from vtw_eval.methods import Method
    from vtw_eval.show import Scene


@app.command(
    epilog="Examples: vtw-eval show --model-args pretrained=shapes --image photo.png --question 'How many?' "
    "--method vtw,k=5 --method fastv,k=2,r=0.75 -o page.html · "
    "vtw-eval show --model-args pretrained=shapes --task shapes_vqa --doc 3 --method vtw,k=2 -o page.html"
)
def show(
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the page to this file.")],
    model: Annotated[str, typer.Option(help=f"Adapter: one of {', '.join(ADAPTERS)}.")] = "llava_vtw",
    model_args: Annotated[
        str, typer.Option(help="Options of the adapter, as in lmms_eval --model_args; pretrained=... among them.")
    ] = "",
    method: Annotated[
        list[str] | None, typer.Option(help="Method spec, such as vtw,k=16; several times for several. Default: vtw.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Picture; several times for several.", exists=True)] = None,
    video: Annotated[list[Path] | None, typer.Option(help="Video; several times for several.", exists=True)] = None,
    question: Annotated[list[str] | None, typer.Option(help="Asked about them; several times for several.")] = None,
    task: Annotated[str | None, typer.Option(help="Instead: a document of this task of lmms-eval.")] = None,
    doc: Annotated[list[int] | None, typer.Option(min=0, help="Number of the document. Default: 0.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer. Default: 64, or what the task says.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Write a PNG for each method and layer to this folder, too.")
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the methods with masked attention first.")
    ] = False,
) -> None:
    """Draw which patches of a picture, tile or frame each method keeps in which layers, beside the answers.

    The page is one HTML file that needs no network: for each method the picture as the model gets it at each layer
    where the tokens change, the answer and from which word on it differs from the unchanged model's, tokens by layer,
    FLOPs.
    """
    from vtw_eval.methods import parse_method
    from vtw_eval.show import page
    from vtw_eval.sweep.check import device_problem

    with user_errors("show", (ValueError, OSError, RuntimeError)):
        check_output(output)
        if pictures is not None:
            check_output(pictures, folder=True)
        if problem := device_problem(device):
            raise ValueError(problem)
        methods = [parse_method(spec) for spec in method or ["vtw"]]
        length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        arguments = adapter_arguments("show", model_args, device, verify=not no_verify)
        if task is not None:
            if image or video or question:
                raise ValueError("--task brings its own pictures and question: leave --image, --video, --question out.")
            scenes = _of_task(model, arguments, task, doc or [0], methods, length)
        else:
            if doc:
                raise ValueError("--doc is the number of a document of a task: give --task.")
            media = [str(path) for path in (*(image or ()), *(video or ()))]
            if not media or not question:
                raise ValueError("give --image or --video, and --question; or --task.")
            scenes = _of_files(model, arguments, media, question, methods, {"max_new_tokens": 64, **length})
        write_atomically(output, page(scenes, f"{arguments['pretrained']}: what methods keep"))
        if pictures is not None:
            _write_pictures(pictures, scenes)
    for scene in scenes:
        typer.echo(scene.title)
        for shown in scene.shown:
            place = shown.differs_from(scene.shown[0])
            told = "" if place is None else f" (differs from word {place + 1} on)"
            typer.echo(f"  {shown.method}: {shown.answer}{told}")


def _of_files(
    adapter: str,
    arguments: dict[str, Any],
    media: list[str],
    questions: list[str],
    methods: list[Method],
    generation: dict[str, Any],
) -> list[Scene]:
    from vtw_eval.models.family import content_of
    from vtw_eval.models.runner import Runner
    from vtw_eval.runtime import pick_device
    from vtw_eval.show import show as shown

    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}. Valid: {', '.join(ADAPTERS)}.")
    runner = Runner(
        adapter, arguments, simple=False, device=pick_device(arguments.get("device")), log=lambda line: None
    )
    messages = [[{"role": "user", "content": content_of(question, media)}] for question in questions]
    return [
        shown(runner, question, lambda family, own=own: family.chat_prompt(own), methods, generation)  # type: ignore[misc]
        for question, own in zip(questions, messages, strict=True)
    ]


def _of_task(
    adapter: str,
    arguments: dict[str, Any],
    task: str,
    documents: list[int],
    methods: list[Method],
    generation: dict[str, Any],
) -> list[Scene]:
    from vtw_eval.model_adapters.lmms.collect import collect
    from vtw_eval.show import show as shown

    runner, requests = collect(adapter, arguments, task, max(documents) + 1)
    if max(documents) >= len(requests):
        raise ValueError(f"--doc {max(documents)}: {task} has {len(requests)} documents.")
    asked = [requests[number] for number in documents]
    return [shown(runner, each.name, each.build, methods, {**each.generation, **generation}) for each in asked]


def _write_pictures(folder: Path, scenes: list[Scene]) -> None:
    from vtw_eval.report.render.patches import png
    from vtw_eval.show.page import pictures

    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        prefix = f"{number + 1}-" if len(scenes) > 1 else ""
        for name, pixels in pictures(scene):
            write_atomically(folder / f"{prefix}{name}.png", png(pixels))
