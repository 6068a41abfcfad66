"""Documents that are made ready in a thread: nothing changes but the time at which they are opened."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_runner import requests_of, runner, video  # noqa: F401  the last two are fixtures
from tests.models.test_sharing import load, requests_about
from vtw_eval.methods import parse_method
from vtw_eval.models.book import BookRunner
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.llava import Llava
from vtw_eval.models.prefetch import AHEAD, Ahead
from vtw_eval.models.runner import Answer, DocumentError, Request, Runner
from vtw_eval.record.book import Book, Together


class Opened:
    """Counts how often each request is built, and in which thread."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.threads: set[str] = set()

    def watched(self, requests: Sequence[Request]) -> list[Request]:
        """Return requests that are counted; each notes something on its picture."""

        def build(request: Request) -> Callable[[Family[Any]], DocumentPrompt]:
            def built(family: Family[Any]) -> DocumentPrompt:
                self.times[request.name] += 1
                self.threads.add(threading.current_thread().name.partition("_")[0])
                prompt = request.build(family)
                return replace(prompt, notes=(*prompt.notes, f"seen {len(prompt.text) % 2}"))

            return built

        return [replace(request, build=build(request)) for request in requests]


def answered(made: Runner, requests: Sequence[Request]) -> tuple[list[Answer], dict[str, list[str]], Opened]:
    """Return answers, the notes in their order, and what was opened."""
    opened = Opened()
    made.noted = {}
    answers = made.answer(opened.watched(requests), progress=False)
    return answers, {note: list(names) for note, names in made.noted.items()}, opened


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vtw-eval prefetch")]


@pytest.mark.parametrize("sharing", ["auto", "off"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_answers_costs_and_notes_are_the_same(
    runner: Callable[..., Runner], video: str, family: str, sharing: str
) -> None:
    clip = None if family == "llava" else video
    requests = [*requests_about(load(clip)), *requests_of(clip)[:3]]
    requests = [replace(request, name=f"doc {i}") for i, request in enumerate(requests)]
    found = {}
    for prefetch in ("off", "on"):
        made = runner(family, method="baseline", batch_size=2, sharing=sharing, prefetch=prefetch, verify=False)
        found[prefetch] = answered(made, requests)
    (plain, notes, _), (ahead, own_notes, opened) = found["off"], found["on"]
    assert [answer.text for answer in ahead] == [answer.text for answer in plain]
    assert len({answer.text for answer in ahead}) > 5
    for one, other in zip(plain, ahead, strict=True):
        assert one.costs.untimed() == other.costs.untimed()
        assert (one.costs.latency_s is None) == (other.costs.latency_s is None)
        assert one.costs.batch_rows == other.costs.batch_rows
    assert any(answer.costs.latency_s is None for answer in ahead) == (sharing == "auto")
    assert {name: list(own) for name, own in own_notes.items()} == notes
    assert list(own_notes) == list(notes)
    assert opened.threads == {"vtw-eval prefetch"}
    if sharing == "off":
        assert set(opened.times.values()) == {1}
    assert not alive()


@pytest.mark.parametrize("together", [True, False])
def test_a_document_that_fails_is_named_and_the_others_are_answered(
    runner: Callable[..., Runner], together: bool
) -> None:
    requests = requests_about(load(None)[:7], {"max_new_tokens": 2})

    def broken(family: Family[Any]) -> DocumentPrompt:
        raise KeyError("image")

    requests[3] = replace(requests[3], build=broken)
    errors = []
    for prefetch in ("off", "on"):
        sharing = "auto" if together else "off"
        made = runner("llava", method="baseline", batch_size=2, sharing=sharing, prefetch=prefetch, verify=False)
        with pytest.raises(DocumentError, match="task t, split s, doc_id 3: KeyError") as raised:
            made.answer(requests, progress=False)
        errors.append((str(raised.value), {i: answer.text for i, answer in raised.value.answers.items()}))
        assert set(raised.value.answers) == {0, 1, 2, 4, 5, 6}
        assert list(raised.value.answers) == list(errors[0][1])
    assert errors[0] == errors[1]
    assert made._preparer is not None
    assert not made._preparer._known  # another request may get the name of one that is gone
    assert not alive()


def test_an_error_of_the_processor_names_the_document(runner: Callable[..., Runner]) -> None:
    made = runner("llava", method="baseline", batch_size=2, prefetch="on", verify=False)
    requests = requests_of(None, {"max_new_tokens": 2})
    right = requests[4].build

    def odd(family: Family[Any]) -> DocumentPrompt:
        return replace(right(family), text=right(family).text + "<image>")

    requests[4] = replace(requests[4], build=odd)
    with pytest.raises(DocumentError, match=r"^task t, split s, doc_id 4: ValueError: the prompt has 2 image marks"):
        made.answer(requests, progress=False)


@pytest.mark.parametrize("together", [True, False])
def test_out_of_memory_opens_nothing_again(runner: Callable[..., Runner], together: bool) -> None:
    requests = requests_about(load(None)[:9], {"max_new_tokens": 3})
    given = {"method": "baseline", "batch_size": 4, "sharing": "auto" if together else "off", "verify": False}
    plain = runner("llava", prefetch="off", **given).answer(requests, progress=False)
    made = runner("llava", prefetch="on", **given)
    most = 1 if together else 2

    def scarce(module: Any, args: Any, given: dict[str, Any]) -> None:
        if len(given["inputs_embeds"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    made.anatomy.decoder.register_forward_pre_hook(scarce, with_kwargs=True)
    answers, _, opened = answered(made, requests)
    assert [answer.text for answer in answers] == [answer.text for answer in plain]
    assert made.batch_size == most
    assert set(opened.times.values()) == {1}


def test_two_batches_are_ready_before_the_model_has_done_the_first(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runner("llava", method="baseline", batch_size=1, prefetch="on", verify=False)
    requests, opened = requests_of(None, {"max_new_tokens": 2}), Opened()
    generate, ready = made.family.generate, threading.Event()
    seen: list[bool] = []

    def build(request: Request) -> Callable[[Family[Any]], DocumentPrompt]:
        def built(family: Family[Any]) -> DocumentPrompt:
            prompt = request.build(family)
            if sum(opened.times.values()) >= AHEAD + 1:
                ready.set()
            return prompt

        return built

    def slow(encoded: Encoded, arguments: Any) -> torch.Tensor:
        seen.append(ready.wait(60))
        if len(seen) == 1:
            assert sum(opened.times.values()) == AHEAD + 1  # and no more: memory is not for all
        return generate(encoded, arguments)

    monkeypatch.setattr(made.family, "generate", slow)
    watched = opened.watched(requests)
    made.answer([replace(request, build=build(request)) for request in watched], progress=False)
    assert all(seen)
    assert len(seen) == len(requests)


def test_the_thread_ends_when_the_model_fails(runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner("llava", method="baseline", prefetch="on", verify=False)

    def interrupted(*args: Any) -> Any:
        assert alive()
        raise KeyboardInterrupt

    monkeypatch.setattr(made.family, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.answer(requests_of(None), progress=False)
    assert not alive()
    assert made._ahead is None


def test_on_a_cpu_it_is_off_unless_asked_for(runner: Callable[..., Runner]) -> None:
    for prefetch, prepares in (("auto", False), ("on", True), ("off", False)):
        made = runner("llava", method="baseline", verify=False, prefetch=prefetch)
        assert (made._prepares() is not None) == prepares
    remote = runner("internvl_remote", method="baseline", verify=False, prefetch="on")
    assert remote._prepares() is None  # its code may do anything with the model when it encodes


def test_what_was_not_announced_is_done_in_the_same_thread() -> None:
    where: list[str] = []

    def prepare(batch: Sequence[str]) -> str:
        where.append(threading.current_thread().name)
        return "".join(batch)

    items = ["a", "b", "c", "d"]
    with Ahead(prepare) as ahead:
        ahead.announce(items[:2])
        ahead.announce(items[2:])
        assert ahead.take(items[:2]) == "ab"
        assert ahead.take(items[2:3]) == "c"
        assert ahead.take(items[3:]) == "d"
    assert len(set(where)) == 1
    assert where[0] != threading.current_thread().name


def test_several_methods_find_documents_ready(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, int]] = []
    encode = Llava.encode

    def watched(self: Llava, prompts: Sequence[DocumentPrompt]) -> Encoded:
        calls.append((threading.current_thread().name.partition("_")[0], len(prompts)))
        return encode(self, prompts)

    monkeypatch.setattr(Llava, "encode", watched)
    requests, specs = requests_about(load(None)[:12], {"max_new_tokens": 2}), ("baseline", "fastv,k=1")
    found, own_calls = {}, {}
    for prefetch in ("off", "on"):
        made = runner("llava", kind=BookRunner, method=specs[0], batch_size=2, prefetch=prefetch, verify=False)
        assert isinstance(made, BookRunner)
        book = Book(tmp_path / prefetch)
        made.together = Together(book, {spec: spec for spec in specs})
        calls.clear()
        found[prefetch], own_calls[prefetch] = [answered(made, requests)], list(calls)
        made.exchange(parse_method(specs[1]))
        made.together = Together(book, {specs[1]: specs[1]})
        found[prefetch].append(answered(made, requests))
    for plain, ahead in zip(found["off"], found["on"], strict=True):
        assert [answer.text for answer in ahead[0]] == [answer.text for answer in plain[0]]
        assert [answer.costs for answer in ahead[0]] == [answer.costs for answer in plain[0]]
        assert ahead[1] == plain[1]
    assert found["on"][0][2].threads == {"vtw-eval prefetch"}
    assert set(found["on"][0][2].times.values()) == {1}
    groups = {name: [(thread, count) for thread, count in own if count > 1] for name, own in own_calls.items()}
    assert {thread for thread, _ in groups["off"]} == {"MainThread"}
    assert groups["on"] == [("vtw-eval prefetch", count) for _, count in groups["off"]]
    assert made._preparer is not None
    assert not made._preparer._known
    assert not alive()
