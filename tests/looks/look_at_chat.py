"""The page of vtw-eval web in Chromium: a picture is dropped in, two methods answer side by side, nothing leaves."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from vtw_eval.chat.desk import Desk
from vtw_eval.chat.model import open_model
from vtw_eval.chat.web import Page as ChatPage
from vtw_eval.chat.web import Settings, launch
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.questions import prompt

SAMPLE = held_out("open_count", 2)[1]
QUESTION = prompt(SAMPLE.question)
WAIT = 120_000
"""Milliseconds: machines of CI are slow, and the page is large."""
LATER = prompt(held_out("open_shape", 1)[0].question)


Opened = Callable[..., tuple[Page, list[str]]]
"""From width and colour scheme to a page, and what it asked for elsewhere."""


@dataclass
class Served:
    address: str
    desk: Desk
    reached: list[Any] = field(default_factory=list)
    """Where this process has connected to beside this machine."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    model = open_model("shapes", {}, device=torch.device("cpu"), verify=False)
    desk = Desk(model, ["baseline", "vtw,k=5"], size=4)
    reached: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            reached.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        page = ChatPage(desk, Settings("shapes", max_new_tokens=24, megabytes=0.5))
        yield Served(launch(page, host="127.0.0.1", port=0, share=False, block=False), desk, reached)
        page.blocks.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(SAMPLE.image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def opened(browser: Browser, served: Served) -> Iterator[Opened]:
    """Open the page, and note what it asks others than the server for, or is not allowed to."""
    with ExitStack() as stack:

        def open_page(width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
            context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
            stack.callback(context.close)
            page = context.new_page()
            told: list[str] = []
            page.on("request", lambda asked: told.append(asked.url) if not _own(asked.url, served) else None)
            page.on("console", lambda line: told.append(line.text) if "Content Security" in line.text else None)
            page.on("pageerror", lambda error: told.append(str(error)))
            page.goto(served.address)
            expect(box(page)).to_be_visible(timeout=WAIT)
            return page, told

        yield open_page


def _own(url: str, served: Served) -> bool:
    return url.startswith((served.address, served.address.replace("http", "ws"), "data:", "blob:"))


def box(page: Page) -> Locator:
    return page.locator("#question textarea")


def ask(page: Page, question: str, picture: Path | None = None) -> None:
    if picture is not None:
        page.locator("#question input[type=file]").set_input_files(picture)
        expect(page.locator("#question img, #question .thumbnail-item").first).to_be_visible(timeout=WAIT)
    box(page).fill(question)
    box(page).press("Enter")


def answers(page: Page, number: int) -> Locator:
    return page.locator(f"#chat-{number} .bot.message, #chat-{number} .message.bot")


def shoot(page: Page, name: str) -> None:
    if place := os.environ.get("LOOKS"):
        page.wait_for_timeout(700)  # what fades in has done so
        page.screenshot(path=Path(place) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_two_methods_answer_about_a_picture(
    opened: Opened, served: Served, picture: Path, width: int, scheme: str
) -> None:
    page, told = opened(width, scheme)
    ask(page, QUESTION, picture)
    for number in (0, 1):
        expect(answers(page, number).last).to_contain_text(SAMPLE.question.answer, timeout=WAIT)
        numbers = page.locator(f"#numbers-{number}")
        for words in (r"tokens?, first after", r"FLOPs", r"KiB", r"layer 0"):
            expect(numbers).to_contain_text(re.compile(words))
        expect(page.locator(f"#kept-{number} img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#numbers-0")).to_contain_text("100.0% of that with all tokens")
    held = re.search(r"0-4: (\d+); 5-9: (\d+)", page.locator("#numbers-1").inner_text())
    assert held and int(held[1]) - int(held[2]) == 64
    expect(page.locator("#kept-1")).to_contain_text("layers 5 to 9: 0 of 64 vision tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("#shown img")).to_be_visible()
    assert page.get_by_role("button", name=re.compile(r"\bshare", re.IGNORECASE)).count() == 0
    shoot(page, f"chat-{width}-{scheme}")

    ask(page, LATER)
    for number in (0, 1):
        expect(page.locator(f"#numbers-{number}")).to_contain_text("the others were in the cache", timeout=WAIT)
        expect(answers(page, number)).to_have_count(2)
    shoot(page, f"chat-{width}-{scheme}-later")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    assert told == []
    assert served.reached == []


def test_another_method_begins_anew_and_the_picture_stays(opened: Opened, picture: Path) -> None:
    page, _ = opened()
    ask(page, QUESTION, picture)
    expect(page.locator("#kept-1 img").first).to_be_visible(timeout=WAIT)
    method = page.locator("#method-1 input")
    method.fill("fastv,k=2,r=0.75")
    method.press("Enter")
    expect(answers(page, 1)).to_have_count(0, timeout=WAIT)
    ask(page, QUESTION)
    expect(page.locator("#numbers-1")).to_contain_text(re.compile(r"0-1: \d+; 2-9: \d+"), timeout=WAIT)
    expect(page.locator("#numbers-1")).to_contain_text("encoding kept from before")
    shoot(page, "chat-method")
    method.fill("fastvv")
    method.press("Enter")
    expect(page.get_by_text(re.compile("unknown method.*fastv")).first).to_be_visible(timeout=WAIT)
    expect(method).to_have_value("fastv,k=2,r=0.75,seed=0")
    expect(answers(page, 1)).to_have_count(1)
    shoot(page, "chat-error")


def test_a_big_file_is_refused_with_the_limit(opened: Opened, tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3))
    noise.save(tmp_path / "noise.png")
    page, _ = opened()
    expect(page.get_by_text("up to 0.5 MB")).to_be_visible()
    page.locator("#question input[type=file]").set_input_files(tmp_path / "noise.png")
    expect(page.get_by_text(re.compile("exceed the maximum allowed size")).first).to_be_visible(timeout=WAIT)
    shoot(page, "chat-big")


def test_people_wait_for_each_other(opened: Opened, served: Served, picture: Path) -> None:
    pages = [opened()[0] for _ in range(3)]
    for page in pages:
        ask(page, QUESTION, picture)
    for page in pages:
        for number in (0, 1):
            expect(answers(page, number).last).to_contain_text(SAMPLE.question.answer, timeout=WAIT)
    assert len(served.desk) >= 3


def test_what_cannot_be_asked_is_told_and_stays_in_the_box(opened: Opened, picture: Path) -> None:
    page, _ = opened()
    ask(page, "What is <image>?", picture)
    expect(page.get_by_text("2 image marks (<image>) for 1 images").first).to_be_visible(timeout=WAIT)
    expect(box(page)).to_have_value("What is <image>?")
    shoot(page, "chat-refused")
