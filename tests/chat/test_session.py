"""A conversation answers as one long prompt does, costs what a counter counts, and encodes a picture once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.support.videos import smooth, write_clip
from vtw_eval.anatomy import find_tower
from vtw_eval.chat import ChatModel, Session
from vtw_eval.chat.model import open_model
from vtw_eval.chat.stream import Streamed
from vtw_eval.methods import METHODS
from vtw_eval.models.family import content_of
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.questions import prompt
from vtw_eval.verify.oracle import masked, traced

CPU = torch.device("cpu")
QUESTIONS = ["Is there a red circle in the image?", "Which one of the two?", "yes or no?"]
NEW = 6


@pytest.fixture(scope="module")
def shapes() -> ChatModel:
    return open_model("shapes", {}, device=CPU, verify=False)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(held_out("open_count", 2)[1].image)


def talk(session: Session, questions: list[str] = QUESTIONS) -> None:
    for question in questions:
        session.ask(question, max_new_tokens=NEW)


def messages_of(session: Session, turn: int) -> list[dict[str, Any]]:
    """The conversation up to a question, as anybody would write it down."""
    found: list[dict[str, Any]] = []
    for number, said in enumerate(session.turns[: turn + 1]):
        found.append({"role": "user", "content": content_of(said.question, session.media if not number else ())})
        found.append({"role": "assistant", "content": [{"type": "text", "text": said.answer}]})
    return found[:-1]


def check(session: Session, k: int | None = None) -> None:
    """Each answer is that of the whole conversation without a KV cache, the removed tokens hidden by masks.

    Which they are, the trace of the first turn tells, or the layer from which on VTW withdraws them.
    """
    family, trace = session.model.family, session.trace
    assert trace is not None
    hidden = traced(trace) if k is None else k
    for number, turn in enumerate(session.turns):
        encoded = family.encode([family.chat_prompt(messages_of(session, number))])
        arguments = {**family.generation({"max_new_tokens": NEW}), "use_cache": False}
        with torch.no_grad(), masked(family.model, hidden):
            tokens = family.generate(encoded, arguments)
        assert turn.prompt_tokens == encoded.inputs["input_ids"].shape[1]
        answer = family.decode(tokens, {})[0]
        assert answer == turn.answer or (turn.ended == "stopped" and answer.startswith(turn.answer)), (number, turn)


@pytest.mark.parametrize("spec", ["vtw,k=5", "fastv,k=2,r=0.75", "fastervlm,r=0.5", "baseline"])
def test_later_answers_are_those_of_the_whole_conversation(shapes: ChatModel, picture: Image.Image, spec: str) -> None:
    questions = [prompt(sample.question) for sample in held_out("open_color", 3)]
    session = Session(shapes, shapes.method(spec), [picture])
    talk(session, questions)
    check(session)
    first, second, _ = session.turns
    assert second.fresh_tokens < first.fresh_tokens / 2 and not second.notes
    assert second.prompt_tokens > first.prompt_tokens + first.new_tokens - 1


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "qwen2_vl", "internvl"])
def test_all_families(checkpoint: Callable[[str], str], picture: Image.Image, name: str) -> None:
    model = open_model(checkpoint(name), {"dtype": "float32"}, device=CPU, verify=False)
    sessions = [Session(model, model.method(spec), [picture]) for spec in ("vtw,k=2", "fastv,k=1,r=0.5")]
    for question in QUESTIONS:  # in turns, as they are answered side by side
        for session in sessions:
            session.ask(question, max_new_tokens=NEW)
    for session in sessions:
        check(session)
        assert [turn.encoding for turn in session.turns[1:]] == ["none", "none"]
    assert [session.turns[0].encoding for session in sessions] == ["made", "kept"]
    assert len({turn.answer for session in sessions for turn in session.turns}) > 2


def test_a_video(checkpoint: Callable[[str], str], tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(8))
    video = str(tmp_path / "a.mp4")
    model = open_model(checkpoint("llava_onevision"), {"dtype": "float32"}, device=CPU, verify=False)
    session = Session(model, model.method("vtw,k=2"), [video])
    talk(session)
    check(session)
    assert session.turns[0].encoding == "made" and session.turns[0].prompt_tokens > 20


def test_a_picture_is_opened_for_the_first_question_and_to_compare_once(picture: Image.Image, tmp_path: Path) -> None:
    model = open_model("shapes", {}, device=CPU, verify=False)
    file = tmp_path / "a.png"
    picture.save(file)
    session = Session(model, model.method("vtw,k=5"), [str(file)])
    talk(session, QUESTIONS[:2])
    kept = file.rename(tmp_path / "b.png")
    talk(session, QUESTIONS[2:])
    kept.rename(file)
    check(session)


def test_no_picture_at_all(shapes: ChatModel) -> None:
    session = Session(shapes, shapes.method("vtw,k=5"))
    talk(session)
    check(session)
    assert [turn.encoding for turn in session.turns] == ["none"] * 3


# --- the encoding


def test_a_picture_is_encoded_once_whatever_the_method(picture: Image.Image) -> None:
    model = open_model("shapes", {}, device=CPU, verify=False)
    runs: list[int] = []
    layer = find_tower(model.anatomy).layers[0][0]
    layer.register_forward_hook(lambda *args: runs.append(1))
    encodings = []
    for spec in ("baseline", "vtw,k=5", "fastervlm,r=0.5", "fastv,k=2,r=0.5"):
        session = Session(model, model.method(spec), [picture])
        encodings.append(session.ask(QUESTIONS[0], max_new_tokens=NEW).encoding)
    assert encodings == ["made", "kept", "read", "kept"]
    assert len(runs) == 2
    other = Image.fromarray(held_out("open_count", 2)[0].image)
    assert Session(model, model.method("vtw,k=5"), [other]).ask(QUESTIONS[0], max_new_tokens=2).encoding == "made"
    for number in range(model.features.size):
        shade = Image.new("RGB", (64, 64), (40 * number, 0, 0))
        Session(model, model.method("vtw,k=5"), [shade]).ask(QUESTIONS[0], max_new_tokens=2)
    assert Session(model, model.method("vtw,k=5"), [picture]).ask(QUESTIONS[0], max_new_tokens=2).encoding == "made"


# --- costs


def test_flops_are_those_that_are_counted_and_memory_that_of_the_cache(checkpoint: Callable[[str], str]) -> None:
    options = {"dtype": "float32", "attn_implementation": "eager"}  # whose products the counter sees
    model = open_model(checkpoint("llava"), options, device=CPU, verify=False)
    session = Session(model, model.method("vtw,k=2"), [Image.new("RGB", (64, 48), (200, 30, 30))])
    session.ask(QUESTIONS[0], max_new_tokens=NEW)
    with FlopCounterMode(display=False) as counter:
        turn = session.ask(QUESTIONS[1], max_new_tokens=NEW)
    assert turn.prefill_flops is not None and turn.answer_flops is not None and turn.new_tokens > 1
    assert turn.prefill_flops + turn.answer_flops == counter.get_total_flops()
    total, text = turn.prompt_tokens + turn.new_tokens - 1, turn.tokens_per_layer[-1]
    assert turn.tokens_per_layer == (total, total, text, text) and total - text == 16
    width = 2 * 2 * 16 * 4  # keys and values, heads, head width, bytes
    assert turn.kv_bytes == sum(turn.tokens_per_layer) * width
    assert turn.kv_share == pytest.approx(sum(turn.tokens_per_layer) / (4 * total))


# --- how an answer ends, and what goes wrong


def test_an_answer_is_told_while_it_grows_and_can_be_stopped(checkpoint: Callable[[str], str]) -> None:
    model = open_model(checkpoint("llava"), {"dtype": "float32"}, device=CPU, verify=False)
    told: list[str] = []
    session = Session(model, model.method("vtw,k=2"))
    turn = session.ask(QUESTIONS[0], max_new_tokens=NEW, told=told.append)
    assert turn.ended == "length" and turn.new_tokens == NEW
    assert told[-1] == turn.answer and len(told) > 2
    assert all(after.startswith(before.rstrip("\ufffd")) for before, after in itertools.pairwise(told))
    stopping = Session(model, model.method("vtw,k=2"))
    cut = stopping.ask(QUESTIONS[0], max_new_tokens=NEW, stopped=lambda: True)
    assert cut.ended == "stopped" and cut.new_tokens == 1
    talk(stopping)
    check(stopping)
    streamed = Streamed(
        lambda told, stop: Session(model, model.method("vtw,k=2")).ask(
            QUESTIONS[0], max_new_tokens=NEW, told=told, stopped=stop
        )
    )
    assert list(streamed) == told
    assert streamed.result is not None and streamed.result.answer == turn.answer


def test_errors_cross_the_thread_and_closing_stops_the_work() -> None:
    def fail(told: Callable[[str], None], stop: Callable[[], bool]) -> None:
        told("a")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(Streamed(fail))
    ended: list[bool] = []

    def endless(told: Callable[[str], None], stop: Callable[[], bool]) -> None:
        while not stop():
            told("a")
        ended.append(True)

    for _ in Streamed(endless):
        break
    assert ended == [True]


def test_a_question_that_cannot_be_asked_leaves_the_conversation_as_it_was(
    shapes: ChatModel, picture: Image.Image
) -> None:
    session = Session(shapes, shapes.method("vtw,k=5"), [picture])
    with pytest.raises(ValueError, match="image marks"):
        session.ask("What is <image>?")
    talk(session, QUESTIONS[:1])
    with pytest.raises(ValueError, match="image marks"):
        session.ask("What is <image>?")
    with pytest.raises(ValueError, match="empty"):
        session.ask("  ")
    talk(session, QUESTIONS[1:])
    check(session)
    assert not any(turn.notes for turn in session.turns)


def test_a_turn_that_fails_makes_the_next_one_run_it_all_again(shapes: ChatModel, picture: Image.Image) -> None:
    session = Session(shapes, shapes.method("vtw,k=5"), [picture])
    talk(session, QUESTIONS[:1])

    def break_off(text: str) -> None:
        raise RuntimeError("the line is down")

    with pytest.raises(RuntimeError, match="line is down"):
        session.ask(QUESTIONS[1], told=break_off)
    talk(session, QUESTIONS[1:])
    check(session, k=5)
    assert session.turns[1].notes == ("the whole conversation has run again: the last answer has failed",)
    assert not session.turns[2].notes and len(session.turns) == 3


def test_a_template_that_rewrites_what_was_said_makes_it_run_again(
    checkpoint: Callable[[str], str], picture: Image.Image
) -> None:
    model = open_model(checkpoint("llava"), {"dtype": "float32"}, device=CPU, verify=False)
    template = "{{ messages | length }} " + model.family.processor.chat_template
    model.family.processor.chat_template = template
    session = Session(model, model.method("vtw,k=2"), [picture])
    talk(session)
    check(session, k=2)
    assert "begins otherwise than before" in session.turns[1].notes[0]


@pytest.mark.parametrize(
    ("spec", "message"), [("vtw,k=99", "k=99"), ("vtw,k=search", "give a number"), ("fastvv", "fastv")]
)
def test_what_the_model_cannot_have_is_refused(shapes: ChatModel, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.method(spec)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="use_cache"):
        open_model("shapes", {"use_cache": "False"}, device=CPU)
    with pytest.raises(ValueError, match="nowhere"):
        open_model("nowhere", {}, device=CPU)
    assert "vtw" in METHODS
