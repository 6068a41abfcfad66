"""``vtw-eval web``."""

from __future__ import annotations

from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors


@app.command(
    epilog="Examples: vtw-eval web · "
    "vtw-eval web --model llava-hf/llava-1.5-7b-hf --method baseline --method vtw,k=16 --port 8000"
)
def web(
    model: Annotated[str, typer.Option(help="Checkpoint: folder or Hub name, or shapes, the embedded one.")] = "shapes",
    model_args: Annotated[str, typer.Option(help="More options of the adapter, as in lmms_eval --model_args.")] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method spec, such as vtw,k=16; one for each column. Default: baseline and vtw."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 256,
    upload: Annotated[float, typer.Option(min=0.001, help="Largest picture or video that is taken, in MB.")] = 20,
    conversations: Annotated[
        int, typer.Option(min=1, help="How many are held in memory; the one unused for longest goes first.")
    ] = 8,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 0.0.0.0 lets others on the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Make it reachable for anybody with a link, by Gradio's servers.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the methods with masked attention first.")
    ] = False,
) -> None:
    """Serve a page on this machine: drop in a picture or a video, ask, and see methods answer side by side.

    With each answer: tokens per second, FLOPs, KV cache and what the layers get of the picture. Questions of several
    people are answered one at a time. Nothing is sent anywhere unless --share is given.
    """
    from vtw_eval.chat.desk import Desk
    from vtw_eval.chat.terminal import ERRORS
    from vtw_eval.cli.chat import open_chat

    with user_errors("web", ERRORS):
        try:
            from vtw_eval.chat.web import Page, Settings, launch
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("gradio"):
                raise
            raise ValueError("the page needs Gradio: pip install 'vtw-eval[web]'.") from error
        opened = open_chat(model, model_args, device, verify=not no_verify)
        desk = Desk(opened, method or ["baseline", "vtw"], conversations)
        desk.seat("first").sides.show()  # says now what is wrong with the methods
        desk.leave("first")
        local = host in ("127.0.0.1", "localhost", "::1") and not share
        page = Page(desk, Settings(model, max_new_tokens, upload, local))
        launch(page, host=host, port=port, share=share)
