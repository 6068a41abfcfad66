"""Prompts that show the same share the pass over it, and nothing else changes: answers and costs are the usual ones."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_runner import ADAPTERS, message, runner, video  # noqa: F401  the last two are fixtures
from tests.support.harness_data import picture, question
from vtw_eval.models import questions
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.runner import Answer, DocumentError, Request, Runner

SHARING = [family for family in ADAPTERS if family != "internvl_remote"]


def requests_about(
    documents: Sequence[tuple[str, Sequence[Mapping[str, Any]], str]], generation: Mapping[str, Any] | None = None
) -> list[Request]:
    """Make requests of the name of what is shown, the media, and the question."""

    def build(messages: list[dict[str, Any]]) -> Callable[[Family[Any]], DocumentPrompt]:
        return lambda family: family.chat_prompt(messages)

    given = {"max_new_tokens": 6} if generation is None else generation
    return [
        Request(f"task t, split s, doc_id {i}", len(text), given, build(message(text, *media)), "t", name)
        for i, (name, media, text) in enumerate(documents)
    ]


def image(seed: int) -> dict[str, Any]:
    return {"type": "image", "url": picture(seed)}


def load(clip: str | None) -> list[tuple[str, Sequence[Mapping[str, Any]], str]]:
    """Questions of different length about three images in turn, two of them twice; one about an image of its own, one
    without, two about two images together, two about a video.
    """
    asked = [(f"picture {i % 3}", [image(i % 3)], question(i) + " and why?" * (i % 4)) for i in range(9)]
    asked += [asked[0], asked[4], ("picture 7", [image(7)], question(1)), ("", [], question(2))]
    asked += [("pair", [image(1), image(2)], question(i)) for i in (3, 5)]
    if clip is not None:
        asked += [
            ("clip", [{"type": "video", "url": clip}], text) for text in ("What happens?", "What is there at the end?")
        ]
    return asked


def both(made: Runner, requests: Sequence[Request]) -> tuple[list[Answer], list[Answer]]:
    """Answers one by one, and together."""
    object.__setattr__(made.options, "sharing", "off")
    alone = made.answer(requests, progress=False)
    object.__setattr__(made.options, "sharing", "auto")
    return alone, made.answer(requests, progress=False)


def check(alone: Sequence[Answer], together: Sequence[Answer]) -> None:
    """Check that texts and whole records are equal, times aside."""
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for one, other in zip(alone, together, strict=True):
        assert other.costs.untimed() == one.costs.untimed()
        assert one.costs.latency_s is not None


CASES = [
    *((family, method) for family in SHARING for method in ("baseline", "vtw,k=1")),
    *((family, method) for family in ("llava", "qwen2_vl", "internvl") for method in ("downsample", "tome")),
]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_answers_and_costs_are_those_of_prompts_alone(
    runner: Callable[..., Runner],
    video: str,
    family: str,
    method: str,
) -> None:
    name, _, k = method.partition(",k=")
    said: list[str] = []
    made = runner(family, method=name, log=said.append, batch_size=2, **({"k": k} if k else {}))
    documents = load(video if ADAPTERS[family][1] else None)
    one_by_one, together = both(made, requests_about(documents))
    check(one_by_one, together)
    shared = [answer.costs.latency_s is None for answer in together]
    assert shared == [i not in (11, 12) for i in range(len(documents))], said
    assert {answer.costs.batch_rows for answer in together[:11]} == {3, 4}
    assert len({answer.text for answer in together}) > 6


def alone_because(made: Runner, requests: Sequence[Request], said: list[str]) -> str:
    """Return why requests were answered one by one, after comparing answers."""
    one_by_one, together = both(made, requests)
    check(one_by_one, together)
    assert all(answer.costs.latency_s is not None for answer in together)
    (reason,) = [line for line in said if line.startswith("prompts about one image")]
    return reason


def test_a_video_whose_frames_are_numbered_beyond_the_question_is_answered_alone(
    runner: Callable[..., Runner],
    video: str,
) -> None:
    """Qwen2.5-VL numbers an answer from behind the last frame on, but the question from behind the video's width."""
    said: list[str] = []
    made = runner("qwen2_5_vl", method="baseline", log=said.append)
    clip = [{"type": "video", "url": video}]
    requests = requests_about([("clip", clip, "What happens?"), ("clip", clip, "Is there a disc?")])
    assert "positions in a video" in alone_because(made, requests, said)


@pytest.mark.parametrize(
    ("arguments", "generation", "reason"),
    [
        ({"use_cache": "false"}, {}, "without a KV cache"),
        ({}, {"num_beams": 2}, "beams"),
        ({"dtype": "bfloat16", "batch_size": 1}, {}, "in half precision it would round otherwise, as batches do"),
    ],
)
def test_what_cannot_share_is_answered_alone_and_says_why_once(
    runner: Callable[..., Runner],
    arguments: Mapping[str, Any],
    generation: Mapping[str, Any],
    reason: str,
) -> None:
    said: list[str] = []
    made = runner("llava", log=said.append, **{"method": "baseline", "batch_size": 2, **arguments})
    requests = requests_about(load(None)[:6], {"max_new_tokens": 3, **generation})
    assert reason in alone_because(made, requests, said)


def test_code_that_comes_with_a_checkpoint_is_answered_alone(runner: Callable[..., Runner]) -> None:
    said: list[str] = []
    made = runner("internvl_remote", method="baseline", log=said.append)
    requests = requests_about(load(None)[:4], {"max_new_tokens": 3})
    assert "code that comes with a checkpoint" in alone_because(made, requests, said)


def test_sampling_is_answered_alone(runner: Callable[..., Runner]) -> None:
    said: list[str] = []
    made = runner("llava", method="baseline", log=said.append)
    answers = made.answer(requests_about(load(None)[:4], {"max_new_tokens": 3, "temperature": 0.5}), progress=False)
    assert all(answer.costs.latency_s is not None for answer in answers)
    assert "samples are drawn for a batch as a whole" in said[-1]


def test_half_precision_shares_where_batches_round_already(runner: Callable[..., Runner]) -> None:
    made = runner("llava", method="baseline", dtype="bfloat16", batch_size=2)
    answers = made.answer(requests_about(load(None)[:6], {"max_new_tokens": 2}), progress=False)
    assert all(answer.costs.latency_s is None for answer in answers)


def test_off_is_off(runner: Callable[..., Runner]) -> None:
    made = runner("llava", method="baseline", sharing="off")
    answers = made.answer(requests_about(load(None)[:6], {"max_new_tokens": 2}), progress=False)
    assert all(answer.costs.latency_s is not None for answer in answers)


def test_a_wrong_name_of_what_is_shown_does_no_harm(runner: Callable[..., Runner]) -> None:
    """Only documents whose pixels are equal share."""
    made = runner("llava", method="baseline", batch_size=2)
    documents = [("the same", [image(i % 2)], question(i)) for i in range(5)]
    one_by_one, together = both(made, requests_about(documents))
    check(one_by_one, together)
    assert [answer.costs.batch_rows for answer in together] == [3, 2, 3, 2, 3]


def test_repetition_penalty_takes_rows_of_their_own(runner: Callable[..., Runner]) -> None:
    made = runner("qwen2_5_vl", method="vtw", k=1, batch_size=2)
    requests = requests_about(load(None))
    made.family.model.generation_config.repetition_penalty = 1.7
    object.__setattr__(made.options, "sharing", "off")
    made.batch_size = 1  # padding counts as repeated too
    one_by_one = made.answer(requests, progress=False)
    object.__setattr__(made.options, "sharing", "auto")
    made.batch_size = 3
    together = made.answer(requests, progress=False)
    check(one_by_one, together)
    assert sum(answer.costs.latency_s is None for answer in together) == len(requests) - 2
    made.family.model.generation_config.repetition_penalty = None
    assert [a.text for a in made.answer(requests, progress=False)] != [a.text for a in together]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_out_of_memory_asks_fewer_questions_then_shows_fewer_images_then_goes_alone(
    runner: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    attention: str,
) -> None:
    said: list[str] = []
    made = runner("llava", k=1, batch_size=2, log=said.append, attn_implementation=attention)
    requests = requests_about(load(None)[:9], {"max_new_tokens": 3})
    one_by_one, together = both(made, requests)
    check(one_by_one, together)
    packed = questions.answer_packed
    sizes: list[tuple[int, ...]] = []
    room = {"questions": 1}

    def scarce(model: Any, prefix: Any, rows: Any, own: Any, **more: Any) -> Any:
        sizes.append(tuple(map(len, own)))
        if len(own) > 1 or sizes[-1][0] > room["questions"]:
            raise torch.OutOfMemoryError("no")
        return packed(model, prefix, rows, own, **more)

    monkeypatch.setattr(questions, "answer_packed", scarce)
    for room["questions"], first in ((1, [(3, 3), (1, 1), (1,), (1,), (1,)]), (0, [(1,), (1,), (1,)])):
        sizes.clear()
        check(one_by_one, made.answer(requests, progress=False))
        assert sizes[: len(first)] == first
    assert said[1:] == [
        "out of memory: going on with 1 questions about an image at a time",
        "out of memory: going on with batch size 1",
        "prompts about one image are computed one by one: out of memory",
    ]


def test_a_document_that_fails_is_named_and_the_others_share(runner: Callable[..., Runner]) -> None:
    made = runner("llava", method="baseline", batch_size=2)
    requests = requests_about(load(None)[:6], {"max_new_tokens": 2})

    def broken(family: Family[Any]) -> DocumentPrompt:
        raise KeyError("image")

    requests[3] = replace(requests[3], build=broken)
    with pytest.raises(DocumentError, match="task t, split s, doc_id 3: ") as raised:
        made.answer(requests, progress=False)
    assert [place for place, answer in raised.value.answers.items() if answer.costs.latency_s is None] == [1, 4, 2, 5]
    assert set(raised.value.answers) == {0, 1, 2, 4, 5}


def test_a_method_that_lies_about_the_question_is_caught_in_the_run(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    """It reads roles only, but counts the words of the question."""
    file = tmp_path / "counter.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from vtw_eval.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Counter(Method):\n"
        "    key: ClassVar[str] = 'counts_words'\n"
        "    def layers(self, num_layers):\n"
        "        return (1,)\n"
        "    def keep(self, view):\n"
        "        words = (view.valid & ~view.vision).sum(dim=1, keepdim=True)\n"
        "        return ~(view.vision & (view.vision.cumsum(dim=1) <= words // 8))\n"
    )
    said: list[str] = []
    made = runner("llava", method=f"{file}:Counter", verify=False, log=said.append)
    reason = alone_because(made, requests_about(load(None)[:6], {"max_new_tokens": 3}), said)
    assert "keeps other tokens of an image when a question follows" in reason
