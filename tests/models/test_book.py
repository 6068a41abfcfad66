"""Methods that answer together, image by image, answer as each does alone; what is in the book is not made again."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_runner import ADAPTERS, runner, video  # noqa: F401  the last two are fixtures
from tests.models.test_sharing import check, image, load, requests_about
from tests.support.harness_data import question
from vtw_eval.methods import parse_method
from vtw_eval.models.asked import shown_by
from vtw_eval.models.book import BookRunner
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.runner import Answer, DocumentError, Request, Runner
from vtw_eval.record.book import Book, Together

METHODS = ("baseline", "vtw,k=1", "downsample,r=0.5", "fastv,k=1", "random_vision,k=1", "tome,k=1")


def opened(runner: Callable[..., Runner], family: str, **more: Any) -> tuple[BookRunner, list[str]]:
    said: list[str] = []
    given = {"method": "baseline", "verify": False, "batch_size": 2, **more}
    made = runner(family, kind=BookRunner, log=said.append, **given)
    assert isinstance(made, BookRunner)
    return made, said


def alone(made: BookRunner, spec: str, requests: Sequence[Request]) -> list[Answer]:
    """Answers of one method, each prompt for itself."""
    object.__setattr__(made.options, "sharing", "off")
    made.exchange(parse_method(spec))
    answers = made.answer(requests, progress=False)
    object.__setattr__(made.options, "sharing", "auto")
    return answers


def together(
    made: BookRunner, specs: Sequence[str], requests: Sequence[Request], folder: Path, code: str = "code"
) -> list[Answer]:
    """Answers of the first method, which are made with those of the others."""
    made.exchange(parse_method(specs[0]))
    made.together = Together(Book(folder), {spec: f"{spec} {code}" for spec in specs})
    try:
        return made.answer(requests, progress=False)
    finally:
        made.together = None


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """Count the passes through a module within."""
    passes: list[int] = []
    hook = module.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl_remote"])
def test_each_method_answers_as_alone_and_later_ones_run_nothing(
    runner: Callable[..., Runner], video: str, tmp_path: Path, family: str
) -> None:
    made, said = opened(runner, family)
    requests = requests_about(load(video if ADAPTERS[family][1] else None))
    methods = METHODS if family == "llava" else METHODS[:4]
    expected = {spec: alone(made, spec, requests) for spec in methods}
    for number, spec in enumerate(methods):
        with counted(made.anatomy.layers[0]) as passes:
            found = together(made, methods[number:], requests, tmp_path)
        check(expected[spec], found)
        assert {answer.costs.latency_s for answer in found} == {None}
        assert bool(passes) == (number == 0), "later methods are served"
    assert len({answer.text for answers in expected.values() for answer in answers}) > 12
    assert not [line for line in said if "left to a run of its own" in line], said


def test_a_book_goes_on_where_it_was_interrupted(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, _ = opened(runner, "llava")
    requests = requests_about(load(None))
    methods = ("baseline", "fastv,k=1", "vtw,k=1")
    expected = [alone(made, spec, requests) for spec in methods]
    add, moments = Book.add, iter((2, 2))

    def interrupted() -> int:
        left = [next(moments)]

        def limited(self: Book, entries: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            add(self, entries)

        monkeypatch.setattr(Book, "add", limited)
        with pytest.raises(KeyboardInterrupt):
            together(made, methods, requests, tmp_path)
        return len(Book(tmp_path))

    assert 0 < interrupted() < interrupted() < 3 * len(requests)
    monkeypatch.setattr(Book, "add", add)
    for number, spec in enumerate(methods):
        check(expected[number], together(made, methods[number:], requests, tmp_path))
        assert made.method == parse_method(spec).bind(made.anatomy), "the method of the cell is there again"
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == len(Book(tmp_path)), "no answer was made twice"


def test_generation_arguments_code_and_precision_tell_answers_apart(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    made, _ = opened(runner, "llava")
    short, long = (requests_about(load(None)[:4], {"max_new_tokens": new}) for new in (1, 6))
    check(alone(made, "vtw,k=1", short), together(made, ["vtw,k=1"], short, tmp_path))
    check(alone(made, "vtw,k=1", long), together(made, ["vtw,k=1"], long, tmp_path))
    known = len(Book(tmp_path))
    assert known == 8
    together(made, ["vtw,k=1"], long, tmp_path, code="other code")
    assert len(Book(tmp_path)) == 12, "other code, its own answers"
    half, _ = opened(runner, "llava", dtype="bfloat16")
    together(half, ["vtw,k=1"], long, tmp_path)
    assert len(Book(tmp_path)) == 16
    turned = [replace(request, build=lambda family: family.chat_prompt([])) for request in long[:1]]
    with pytest.raises((DocumentError, ValueError)):  # another prompt of the same name is not served
        together(made, ["vtw,k=1"], turned, tmp_path)


def test_vision_features_are_made_once_but_for_methods_that_look_at_the_tower(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    made, _ = opened(runner, "llava", batch_size=3, use_cache=False)  # so that prompts share nothing else
    requests = requests_about([(f"picture {i}", [image(i)], question(i)) for i in range(6)])
    late, looking = ("fastv,k=1", "random_vision,k=1", "rand,k=1"), ("fastervlm,r=0.5",)
    runs: list[int] = []
    for specs in (late, looking, looking + late):
        expected = alone(made, specs[0], requests)
        with counted(made.family.model.model.vision_tower) as passes:
            check(expected, together(made, specs, requests, tmp_path / str(len(runs))))
        runs.append(len(passes))
    assert runs[0] == 2, "once for each batch"
    assert runs[2] == runs[1] + 2


def test_features_that_were_written_to_are_made_again(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made, _ = opened(runner, "llava")
    prompts = [request.build(made.family) for request in requests_about(load(None)[:2])]
    encoded = made.warm.encode(prompts)
    assert made.warm.encode(list(prompts)) is encoded
    owner, pixels = made.family.model.model, encoded.inputs["pixel_values"]
    with torch.no_grad(), made.warm.features(parse_method("fastv,k=1")):
        first = owner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        again = owner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        assert made.warm.hits == 1
        assert again is first
        first.zero_()
        anew = owner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        assert anew.any()
        pixels.zero_()
        assert not torch.equal(owner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0], anew)
        assert made.warm.hits == 1
    assert made.warm.encode(prompts[:1]) is not encoded


def test_what_is_wrong_with_another_method_costs_only_that(runner: Callable[..., Runner], tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from vtw_eval.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Broken(Method):\n"
        "    key: ClassVar[str] = 'broken'\n"
        "    def layers(self, num_layers):\n"
        "        return (1,)\n"
        "    def keep(self, view):\n"
        "        raise ZeroDivisionError('nothing to divide by')\n"
    )
    made, said = opened(runner, "llava")
    requests = requests_about(load(None))
    specs = ("vtw,k=1", f"{file}:Broken", "vtw,k=99", "no_such_method", "fastv,k=1")
    check(alone(made, "vtw,k=1", requests), together(made, specs, requests, tmp_path / "book"))
    left = [line for line in said if "left to a run of its own" in line]
    assert [line.split(" is left")[0] for line in left] == ["vtw,k=99", "no_such_method", f"{file}:Broken"]
    expected = alone(made, "fastv,k=1", requests)
    with counted(made.anatomy.layers[0]) as passes:
        check(expected, together(made, ("fastv,k=1",), requests, tmp_path / "book"))
    assert not passes, "a method behind the broken one has answered"
    with pytest.raises(DocumentError, match="nothing to divide by"):
        together(made, (f"{file}:Broken",), requests, tmp_path / "book")


def test_what_was_opened_before_is_opened_again_for_a_check_only(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made, said = opened(runner, "llava")
    asked = load(None)[:9]
    requests = requests_about(asked, {"max_new_tokens": 2})
    opened_now: list[int] = []

    def counting(place: int, other: Request) -> Request:
        def build(family: Family[Any]) -> DocumentPrompt:
            opened_now.append(place)
            return other.build(family)

        return replace(requests[place], build=build, asks=asked[place][2])

    same = [counting(place, request) for place, request in enumerate(requests)]
    expected = [alone(made, spec, same) for spec in ("vtw,k=1", "fastv,k=1")]
    opened_now.clear()
    check(expected[0], together(made, ("vtw,k=1", "fastv,k=1"), same, tmp_path))
    assert sorted(opened_now) == list(range(9))
    opened_now.clear()
    check(expected[1], together(made, ("fastv,k=1",), same, tmp_path))
    assert opened_now == [0]
    # the same name, words and media, and yet another prompt
    changed = [counting(0, requests_about([("", [image(8)], "What is it?")])[0]), *same[1:]]
    first = alone(made, "fastv,k=1", changed)
    assert first[0].costs != expected[1][0].costs
    check(first, together(made, ("fastv,k=1",), changed, tmp_path))
    assert "task t, split s, doc_id 0 is not asked as before" in said[-1]
    # another seed, other prompts
    opened_now.clear()
    made.exchange(parse_method("fastv,k=1"))
    made.together = Together(Book(tmp_path), {"fastv,k=1": "fastv,k=1 code"}, seed=1)
    made.answer(same, progress=False)
    made.together = None
    assert sorted(opened_now) == list(range(9))


def test_a_document_that_fails_is_named_and_the_others_are_kept(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made, _ = opened(runner, "llava")
    requests = requests_about(load(None)[:6], {"max_new_tokens": 2})

    def broken(family: Family[Any]) -> DocumentPrompt:
        raise KeyError("image")

    requests[3] = replace(requests[3], build=broken)
    for specs in (("vtw,k=1", "fastv,k=1"), ("fastv,k=1",)):
        with pytest.raises(DocumentError, match="task t, split s, doc_id 3: ") as raised:
            together(made, specs, requests, tmp_path)
        assert set(raised.value.answers) == {0, 1, 2, 4, 5}


def test_out_of_memory_takes_fewer_and_loses_nothing(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, said = opened(runner, "llava", batch_size=4)
    requests = requests_about(load(None)[:9], {"max_new_tokens": 2, "num_beams": 2})
    specs = ("rand,k=1", "rand,k=2")
    expected = [alone(made, spec, requests) for spec in specs]
    batch = BookRunner._batch

    def scarce(self: BookRunner, asked: Sequence[Request]) -> list[Answer]:
        if len(asked) > 1:
            raise torch.OutOfMemoryError("no")
        return batch(self, asked)

    monkeypatch.setattr(BookRunner, "_batch", scarce)
    check(expected[0], together(made, specs, requests, tmp_path))
    check(expected[1], together(made, specs[1:], requests, tmp_path))
    assert "out of memory: going on with batch size 1" in said


def test_samples_and_searches_are_answered_as_usual(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made, _ = opened(runner, "llava")
    requests = requests_about(load(None)[:4], {"max_new_tokens": 3, "temperature": 0.5})
    found = together(made, ("vtw,k=1", "baseline"), requests, tmp_path)
    assert all(answer.costs.latency_s is not None for answer in found)
    requests = requests_about(load(None)[:4], {"max_new_tokens": 3})
    found = together(made, ("vtw,k=search,samples=2,start=1", "baseline"), requests, tmp_path)
    assert {answer.costs.asked[:12] for answer in found} == {"vtw,k=search"}
    assert len(Book(tmp_path)) == 0


def test_progress_counts_the_answers_of_all_methods(runner: Callable[..., Runner], tmp_path: Path) -> None:
    made, _ = opened(runner, "llava")
    told: list[tuple[int, int]] = []
    made.on_answer = lambda answered, of: told.append((answered, of))
    requests = requests_about(load(None)[:6], {"max_new_tokens": 2})
    together(made, ("baseline", "fastv,k=1"), requests, tmp_path)
    assert told[-1] == (12, 12)
    assert [answered for answered, _ in told] == sorted(answered for answered, _ in told)


def test_a_video_that_has_changed_is_another_one(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"one")
    prompt = DocumentPrompt("What happens?", videos=(str(clip),))
    before = shown_by(prompt)
    assert shown_by(prompt) == before
    os.utime(clip, ns=(1, 1))
    assert shown_by(prompt) != before
