"""Talking in a browser: a page on this machine, in which two methods answer side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from vtw_eval.chat import words
from vtw_eval.chat.desk import Desk, Seat, check_upload
from vtw_eval.chat.pictures import Kept
from vtw_eval.chat.session import Session, Turn
from vtw_eval.chat.stream import Streamed
from vtw_eval.chat.terminal import ERRORS
from vtw_eval.media import is_video, viewed
from vtw_eval.report.render.patches import data_url

SUGGESTED = (
    *("baseline", "vtw", "vtw,k=2", "fastv,k=2,r=0.5", "fastv,k=2,r=0.75", "pyramiddrop", "sparsevlm", "tome", "dart"),
    *("divprune", "fastervlm,r=0.75", "visionzip", "random_vision,k=2,r=0.5", "downsample", "fastv+vtw"),
)
"""Methods to choose from; any spec can be typed."""

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""What the browser may ask for: this server alone, whatever a model says or the page's libraries would like."""

CSS = """
.gradio-container { max-width: 84rem !important; margin: 0 auto; }
#shown img { display: block; border-radius: var(--radius-sm); }
.numbers dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .9rem; margin: 0; }
.numbers dl { font-size: var(--text-sm); font-variant-numeric: tabular-nums; }
.numbers dt { font-weight: 600; }
.numbers dd { margin: 0; overflow-wrap: anywhere; }
.kept div { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
.kept figure { margin: 0; max-width: 100%; }
.kept img { max-width: 100%; height: auto; display: block; border-radius: var(--radius-sm); }
.kept figcaption { font-size: var(--text-sm); max-width: 13rem; padding-top: .2rem; }
"""

_THUMB = 160
"""Pixels of the longer side of the picture that is talked about."""

_SHOWN = 0.8
"""Pixels of the page for one of a picture."""

_EVERY = 0.08
"""Seconds between two looks at an answer that grows: more often shows nothing more."""


@dataclass(frozen=True)
class Settings:
    """What whoever starts the page decides."""

    name: str
    """Of the model."""
    max_new_tokens: int = 256
    """Length of an answer."""
    megabytes: float = 20
    """The largest file that is taken."""
    local: bool = True
    """Whether nobody else can reach the page."""


@dataclass(frozen=True)
class _Column:
    method: Any
    chat: Any
    numbers: Any
    kept: Any


Updates = dict[Any, Any]
"""New values by component."""


class Page:
    """The page, and what happens on it.

    Parameters
    ----------
    desk
        The conversations.
    settings
        See :class:`Settings`.
    """

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self.desk = desk
        self.settings = settings
        self.blocks = gr.Blocks(
            title=f"{settings.name}, side by side", analytics_enabled=False, delete_cache=(600, 4 * 3600)
        )
        with self.blocks:
            gr.Markdown(
                f"## {settings.name}, side by side\nShow a picture or a video (up to {settings.megabytes:g} MB) and "
                "ask about it. Later questions go on from what each method has left of it."
                + " Everything stays on this machine."
                * settings.local
            )
            self.message = gr.MultimodalTextbox(
                label="Question",
                show_label=False,
                placeholder="Drop a picture or a video here, and ask",
                file_types=["image", "video"],
                file_count="single",
                sources=["upload"],
                max_plain_text_length=4000,
                elem_id="question",
            )
            with gr.Row():
                self.stop = gr.Button("Stop", size="sm", scale=0, min_width=90, interactive=False, elem_id="stop")
                self.new = gr.Button("New conversation", size="sm", scale=0, min_width=170, elem_id="new")
            self.shown = gr.HTML(elem_id="shown")
            with gr.Row():
                self.columns = [self._column(number, spec) for number, spec in enumerate(desk.specs)]
            self._events()

    @staticmethod
    def _column(number: int, spec: str) -> _Column:
        with gr.Column(min_width=320):
            method = gr.Dropdown(
                list(dict.fromkeys((spec, *SUGGESTED))),
                value=spec,
                allow_custom_value=True,
                label=f"Method {number + 1}",
                elem_id=f"method-{number}",
            )
            chat = gr.Chatbot(
                label=f"Answers {number + 1}",
                show_label=False,
                height=300,
                render_markdown=False,
                feedback_options=None,
                buttons=["copy"],
                elem_id=f"chat-{number}",
                placeholder="No question yet",
            )
            numbers = gr.HTML(elem_classes="numbers", elem_id=f"numbers-{number}")
            kept = gr.HTML(elem_classes="kept", elem_id=f"kept-{number}")
        return _Column(method, chat, numbers, kept)

    def _events(self) -> None:
        methods, chats = [each.method for each in self.columns], [each.chat for each in self.columns]
        outputs = [
            *(self.message, self.stop, self.shown),
            *(part for each in self.columns for part in (each.method, each.chat, each.numbers, each.kept)),
        ]
        # One at a time, whoever asks: the others wait in the queue, and see their place in it.
        of_model: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        self.message.submit(self.ask, [self.message, *methods, *chats], outputs, **of_model)
        for each in self.columns:
            each.method.input(self.change, methods, outputs, **of_model)
            each.chat.clear(self.begin, None, outputs, **of_model)
        self.new.click(self.begin, None, outputs, **of_model)
        beside: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
        self.stop.click(self._stopped, None, None, **beside)
        self.blocks.unload(self._left)

    def _stopped(self, request: gr.Request) -> None:
        self.desk.stop(_person(request))

    def _left(self, request: gr.Request) -> None:
        self.desk.leave(_person(request))

    # What happens -------------------------------------------------------------------------------------------------

    def begin(self, request: gr.Request) -> Updates:
        """Begin anew, without a picture."""
        self.desk.seat(_person(request)).sides.show()
        return {**self._empty(), self.shown: ""}

    def change(self, request: gr.Request, *specs: str) -> Updates:
        """Begin anew with other methods, about the same picture."""
        sides = self.desk.seat(_person(request)).sides
        try:
            sides.change(specs)
        except ERRORS as error:
            _warn(str(error))
            return {each.method: str(own.method) for each, own in zip(self.columns, sides.sessions, strict=True)}
        if sides.media:
            gr.Info("Begun anew with these methods, about the same picture, whose encoding is kept.")
        return self._empty()

    def ask(self, request: gr.Request, message: dict[str, Any], *given: Any) -> Iterator[Updates]:
        """Ask all methods, one after the other, and show their answers while they grow."""
        specs, before = given[: len(self.columns)], given[len(self.columns) :]
        question, files = message["text"].strip(), list(message["files"])
        chats = [each.chat for each in self.columns]
        ready: Updates = {self.message: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        back: Updates = {**ready, self.message: gr.update(value=message, interactive=True)}
        try:
            seat = self._seated(_person(request), specs, question, files)
            histories = [list(each) for each in before]
            if not seat.sides.begun:
                if any(histories) and not files:
                    _warn("The conversation before was put away, because others talk here too. This one begins anew.")
                histories = [[] for _ in self.columns]
            for history in histories:
                history += [{"role": "user", "content": question}, {"role": "assistant", "content": "…"}]
            yield {
                **({self.shown: "".join(map(_medium, files))} if files else {}),
                self.message: gr.update(value=None, interactive=False),
                self.stop: gr.update(interactive=True),
                **dict(zip(chats, histories, strict=True)),
            }
            for column, session, history in zip(self.columns, seat.sides.sessions, histories, strict=True):
                yield from self._answer(column, session, history, question, seat)
            yield ready
            yield self._pictures(seat)
        except ERRORS as error:
            _warn(str(error))
            yield {**back, **dict(zip(chats, before, strict=True))}

    def _seated(self, person: str, specs: Sequence[str], question: str, files: Sequence[str]) -> Seat:
        """Return the seat of a person, with the methods and the picture that the page shows."""
        if not question:
            raise ValueError("there is no question.")
        seat = self.desk.seat(person)
        seat.stop.clear()
        if [str(self.desk.model.method(spec)) for spec in specs] != [str(own.method) for own in seat.sides.sessions]:
            seat.sides.change(specs)
        for file in files:
            check_upload(file, self.settings.megabytes)
        if files:
            seat.sides.show(*files)
        return seat

    def _answer(
        self, column: _Column, session: Session, history: list[Any], question: str, seat: Seat
    ) -> Iterator[Updates]:
        def work(told: Callable[[str], None], closed: Callable[[], bool]) -> Turn:
            return session.ask(
                question,
                max_new_tokens=self.settings.max_new_tokens,
                told=told,
                stopped=lambda: closed() or seat.stop.is_set(),
            )

        streamed, last = Streamed(work), 0.0
        for text in streamed:
            if (now := time.perf_counter()) - last >= _EVERY:
                last = now
                history[-1] = {"role": "assistant", "content": text}
                yield {column.chat: history}
        assert streamed.result is not None, "it has ended without an error"
        history[-1] = {"role": "assistant", "content": streamed.result.answer.strip() or "(nothing)"}
        yield {column.chat: history, column.numbers: numbers(streamed.result)}

    def _pictures(self, seat: Seat) -> Updates:
        eye, sessions = seat.sides.eye, seat.sides.sessions
        return {each.kept: pictures(eye.pictures(own)) for each, own in zip(self.columns, sessions, strict=True)}

    def _empty(self) -> Updates:
        found: Updates = {self.message: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        for each in self.columns:
            found |= {each.chat: [], each.numbers: "", each.kept: ""}
        return found


def numbers(turn: Turn) -> str:
    """Return what is told of a turn in HTML."""
    rows = [
        ("Speed", words.speed(turn)),
        ("FLOPs", words.work(turn)),
        ("KV cache", words.memory(turn)),
        ("Layers", words.layers(turn)),
        *(("Note", remark) for remark in words.remarks(turn)),
    ]
    return str(
        Markup("<dl>{}</dl>").format(Markup().join(Markup("<dt>{}</dt><dd>{}</dd>").format(*row) for row in rows))
    )


def pictures(kept: Sequence[Kept]) -> str:
    """Return what layers get of a picture in HTML, which holds it all."""
    figures = Markup().join(
        Markup('<figure><img src="{}" alt="{}" width="{}"><figcaption>{}</figcaption></figure>').format(
            data_url(each.pixels), each.caption, round(each.pixels.shape[1] * _SHOWN), each.caption
        )
        for each in kept
    )
    return str(Markup("<div>{}</div>").format(figures)) if kept else ""


def _medium(path: str) -> str:
    """Return what stands for a file in HTML; Gradio's own components would offer to send it to a server elsewhere."""
    if is_video(path):
        return str(escape(Path(path).name))
    with Image.open(path) as image:
        small = viewed(image).convert("RGB")
    small.thumbnail((_THUMB, _THUMB))
    return str(Markup('<img src="{}" alt="{}">').format(data_url(np.asarray(small)), Path(path).name))


def launch(page: Page, *, host: str, port: int, share: bool, block: bool = True) -> str:
    """Serve a page, and return its address.

    Parameters
    ----------
    page
        The page.
    host, port
        Where; port 0 takes one that is free.
    share
        Whether to make it reachable from elsewhere, by Gradio's servers.
    block
        Whether to return only when somebody ends it by Ctrl-C; the address is printed before.

    Raises
    ------
    OSError
        If the port is taken.
    """
    page.blocks.queue(max_size=32, default_concurrency_limit=1)
    _, local, shared = page.blocks.launch(
        server_name=host,
        server_port=port or None,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        max_file_size=int(page.settings.megabytes * 1e6),
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": [(_Guard, (), {})], "docs_url": None, "redoc_url": None},
    )
    if block:
        print(f"{page.settings.name}: {shared or local} (Ctrl-C ends it)", flush=True)
        page.blocks.block_thread()
    return str(local)


class _Guard:
    """Adds :data:`POLICY` to what the server sends."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, guarded)


def _person(request: gr.Request) -> str:
    return str(request.session_hash)


def _warn(message: str) -> None:
    """Show people what cannot be done; what they have written may look like HTML."""
    gr.Warning(str(escape(message)))
