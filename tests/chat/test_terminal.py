"""The terminal, through a pipe and by its lines; several people at one model; pages need Gradio."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.support.videos import smooth, write_clip
from vtw_eval.chat import ChatModel, words
from vtw_eval.chat.desk import PIXELS, Desk, check_upload
from vtw_eval.chat.model import open_model
from vtw_eval.chat.sides import Sides
from vtw_eval.chat.terminal import Terminal, interrupted
from vtw_eval.cli import app
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.questions import prompt

SAMPLE = held_out("open_count", 2)[1]
QUESTION = " ".join(prompt(SAMPLE.question).split())  # a line


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return open_model("shapes", {}, device=torch.device("cpu"), verify=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(SAMPLE.image).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def said(model: ChatModel, specs: list[str], *lines: str, live: bool = False) -> tuple[str, list[str], Sides]:
    """What is printed for some lines, and what was wrong with them."""
    out, wrong = io.StringIO(), list[str]()
    sides = Sides(model, specs)
    Terminal(sides, out, live=live, max_new_tokens=8).run(lines, lambda error: wrong.append(str(error)))
    return out.getvalue(), wrong, sides


def test_through_a_pipe(run: Callable[..., subprocess.CompletedProcess[str]], script: str, picture: Path) -> None:
    lines = f"{QUESTION}\n:method vtw,k=5 fastv,k=2,r=0.75\n{QUESTION}\n:quit\nnever asked\n"
    file = picture.parent / "lines.txt"
    file.write_text(lines)
    command = f"{script}/vtw-eval chat --no-verify --image {picture} --method baseline < {file}"
    done = run("bash", "-c", command)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()
    heads = ["baseline:", "vtw,k=5,position=keep:", "fastv,k=2,r=0.75,seed=0:"]
    assert [line for line in printed if line in heads] == heads
    assert [printed[printed.index(head) + 1] for head in heads][:2] == [SAMPLE.question.answer] * 2
    assert sum("picture encoded" in line for line in printed) == 1
    assert sum("encoding kept from before" in line for line in printed) == 2
    assert "never" not in done.stdout and "Loading" not in done.stderr


def test_errors_end_a_pipe(tmp_path: Path) -> None:
    for words_, given, message in (
        (["--no-verify"], ":nonsense\n", "unknown command :nonsense"),
        (["--no-verify"], ":image nowhere.png\n", "nowhere.png"),
        (["--no-verify", "--method", "fastvv"], "", "fastv"),
        (["--model", str(tmp_path / "nowhere")], "", "no checkpoint"),
        (["--model-args", "method=vtw"], "", "use --method"),
    ):
        done = CliRunner().invoke(app, ["chat", *words_], input=given)
        assert done.exit_code in (1, 2), words_
        assert message in done.output and "Traceback" not in done.output


def test_lines(model: ChatModel, picture: Path) -> None:
    drawing = picture.parent / "kept.png"
    out, wrong, sides = said(
        model,
        ["baseline", "vtw,k=5"],
        f":image {picture}",
        QUESTION,
        f":picture {drawing}",
        QUESTION,
        ":new",
        QUESTION,
        ":help",
        "",
    )
    assert not wrong
    assert [len(session.turns) for session in sides.sessions] == [1, 1]
    assert out.count("the others were in the cache") == 2
    assert "layers 5 to 9: 0 of 64 vision tokens" in out and ":method SPEC" in out
    whole, cut = (np.asarray(Image.open(drawing.with_stem(f"kept-{n}"))) for n in (1, 2))
    assert whole.shape == (256, 256, 3) and cut.shape == (256, 256 + 8 + 256, 3)
    assert np.array_equal(whole, cut[:, :256])  # all tokens enter the first layers
    assert cut[:, 264:].mean() < whole.mean() * 0.6  # none the others


def test_what_cannot_be_done_is_told_and_the_conversation_goes_on(model: ChatModel, picture: Path) -> None:
    video = write_clip(picture.parent / "a.mp4", smooth(4))
    text = picture.parent / "a.txt"
    text.write_text("no picture")
    _, wrong, sides = said(
        model,
        ["vtw,k=5"],
        *(f":image {picture}", QUESTION, ":image", f":image {video}", f":video {picture}", f":image {text}"),
        *(":method vtw,k=99", ":method", ":picture a.jpg", ":nonsense", "<image>?", QUESTION),
    )
    told = ["name a file", "is no image", "is no video", "neither a picture", "k=99", "name a method", "PNG", ":help"]
    assert len(wrong) == len(told) + 1 and "image marks" in wrong[-1]
    assert all(part in message for part, message in zip(told, wrong, strict=False)), wrong
    assert [turn.question for turn in sides.sessions[0].turns] == [QUESTION, QUESTION]
    _, wrong, _ = said(model, ["vtw,k=5"], ":picture a.png")
    assert wrong == ["there is nothing to draw: show a picture and ask something first."]


def test_somebody_who_watches_sees_the_answer_once(model: ChatModel, picture: Path) -> None:
    sample = held_out("caption", 1)[0]
    Image.fromarray(sample.image).save(picture)
    lines = (f":image {picture}", " ".join(prompt(sample.question).split()))
    piped, _, sides = said(model, ["vtw,k=5"], *lines)
    watched, _, _ = said(model, ["vtw,k=5"], *lines, live=True)
    answer = sides.sessions[0].turns[0].answer
    assert len(answer.split()) > 3
    assert [line.strip() for line in piped.splitlines()[:2]] == [line.strip() for line in watched.splitlines()[:2]]
    assert watched.count(answer.strip()) == 1


def test_control_c_ends_an_answer_only() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin with Ctrl-C ignored
    with interrupted() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_words(model: ChatModel, picture: Path) -> None:
    _, _, sides = said(model, ["vtw,k=5"], f":image {picture}", QUESTION)
    turn = sides.sessions[0].turns[0]
    tokens = turn.prompt_tokens + turn.new_tokens - 1
    assert words.layers(turn) == f"tokens held by layer 0-4: {tokens}; 5-9: {tokens - 64}"
    assert words.memory(turn).endswith(f"{(tokens - 32) / tokens:.1%} of that with all tokens")
    assert "GFLOPs" in words.work(turn) and "first after" in words.speed(turn)


# --- several people


def test_the_conversation_unused_for_longest_goes_first(model: ChatModel, picture: Path) -> None:
    desk = Desk(model, ["vtw,k=5"], size=2)
    for person in ("a", "b"):
        desk.seat(person).sides.show(str(picture))
    first = desk.seat("a")
    desk.seat("c")
    assert desk.seat("a") is first and len(desk) == 2
    assert desk.seat("b").sides.media == () and len(desk) == 2
    last = desk.seat("b")
    desk.stop("b")
    assert last.stop.is_set() and not desk.seat("a").stop.is_set()
    desk.stop("nobody")
    desk.leave("b")
    assert len(desk) == 1


def test_big_files_are_refused(picture: Path) -> None:
    check_upload(str(picture), 1)
    with pytest.raises(ValueError, match=r"up to 0\.001 MB"):
        check_upload(str(picture), 0.001)
    bomb = picture.parent / "bomb.png"
    Image.new("1", (10_000, PIXELS // 10_000 + 1)).save(bomb)
    with pytest.raises(ValueError, match="up to 50 million"):
        check_upload(str(bomb), 20)
    text = picture.parent / "a.txt"
    text.write_text("text")
    with pytest.raises(ValueError, match="neither a picture"):
        check_upload(str(text), 20)


def test_the_page_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vtw_eval.chat.web", raising=False)
    done = CliRunner().invoke(app, ["web"])
    assert done.exit_code == 2 and "pip install 'vtw-eval[web]'" in done.output
