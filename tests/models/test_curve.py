"""A runner that answers at all k at once gives the answers and costs of one run per k, and counts its passes."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.test_runner import ADAPTERS, message, runner, video  # noqa: F401  the last two are fixtures
from tests.support.harness_data import picture, question
from vtw_eval.methods import VTW, Baseline, Method
from vtw_eval.models.curve import CurveRunner
from vtw_eval.models.runner import Answer, Request, Runner

LAYERS = 4
FAMILIES = [family for family in ADAPTERS if family != "internvl_remote"]


def image(seed: int) -> dict[str, Any]:
    return {"type": "image", "url": picture(seed)}


def requests_of(clip: str | None) -> list[Request]:
    """Questions of different length about two images, one of them twice; one about an image of its own, one about two
    images, two of which one stands in front of the image, one without an image, two about a video.
    """
    asked: list[tuple[str, list[dict[str, Any]]]] = [
        (f"picture {i % 2}", message(question(i) + " and why?" * (i % 3), image(i % 2))) for i in (0, 1, 2, 3, 5, 0)
    ]
    asked += [("", message(question(1), image(7))), ("pair", message(question(4), image(1), image(2)))]
    before = [
        {"role": "user", "content": [{"type": "text", "text": question(2)}, image(8), {"type": "text", "text": "?!"}]}
    ]
    asked += [("mixed", before), ("mixed", message(question(3), image(8))), ("", message(question(2)))]
    if clip is not None:
        shown: Mapping[str, Any] = {"type": "video", "url": clip}
        asked += [("clip", message(text, shown)) for text in ("What happens?", "What is there at the end?")]

    def build(messages: list[dict[str, Any]]) -> Callable[[Any], Any]:
        return lambda family: family.chat_prompt(messages)

    return [
        Request(f"task t, split s, doc_id {i}", 0, {"max_new_tokens": 6}, build(messages), "t", name)
        for i, (name, messages) in enumerate(asked)
    ]


def at_each_k(made: Runner, requests: Sequence[Request], ks: Sequence[int]) -> dict[int, list[Answer]]:
    found = {}
    for k in (LAYERS, *ks):
        method: Method = Baseline() if k == LAYERS else VTW(k=k)
        made.exchange(method)
        found[k] = made.answer(requests, progress=False)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_costs_and_divergence_are_those_of_one_run_per_k(
    runner: Callable[..., Runner], video: str, family: str
) -> None:
    said: list[str] = []
    made = runner(family, kind=CurveRunner, method="baseline", batch_size=3, log=said.append, verify=False)
    plain = runner(family, method="baseline", batch_size=3, sharing="off", verify=False)
    assert isinstance(made, CurveRunner)
    requests = requests_of(video if ADAPTERS[family][1] else None)
    made.ks = (0, 1, 3)
    found, expected = at_each_k(made, requests, made.ks), at_each_k(plain, requests, made.ks)
    for k, answers in found.items():
        assert [answer.text for answer in answers] == [answer.text for answer in expected[k]]
        for one, other in zip(answers, expected[k], strict=True):
            assert one.costs.untimed() == other.costs.untimed()
    alone = [i for i, answer in enumerate(found[1]) if answer.costs.latency_s is not None]
    assert alone == [10], "\n".join(said)  # what shows nothing
    assert len({answer.text for answers in found.values() for answer in answers}) > 10
    for k, mean in made.mean_divergence("t").items():
        searched = [float(plain.search([request], 1.0, start=k).per_sample[0, k]) for request in requests]
        assert mean == pytest.approx(sum(searched) / len(requests), rel=1e-3)


def test_the_model_runs_once_for_all_k(runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes over what 18 questions about an image begin with and ask, one for each further word; three compare."""
    made = runner("llava", kind=CurveRunner, method="baseline", verify=False)
    assert isinstance(made, CurveRunner)
    made.ks = (0, 1, 2, 3)
    passes = []
    made.anatomy.decoder.register_forward_pre_hook(lambda *args: passes.append(1))
    build = requests_of(None)[0]
    requests = [Request(f"doc {i}", 0, {"max_new_tokens": 3}, build.build, "t", "same") for i in range(18)]
    answers = at_each_k(made, requests, made.ks)
    assert len(passes) == 2 + 2 + 3
    assert {answer.costs.batch_rows for answer in answers[0]} == {18}


def test_where_a_model_does_not_allow_it_each_k_runs_for_itself_and_that_is_told_once(
    runner: Callable[..., Runner],
) -> None:
    said: list[str] = []
    made, plain = (
        runner("llava", kind=kind, log=said.append, method="baseline", verify=False) for kind in (CurveRunner, Runner)
    )
    assert isinstance(made, CurveRunner)
    for each in (made, plain):
        each.family.model.generation_config.repetition_penalty = 1.3
    made.ks, requests = (1, 2), requests_of(None)[:5]
    found, expected = at_each_k(made, requests, made.ks), at_each_k(plain, requests, made.ks)
    for k, answers in found.items():
        assert [answer.text for answer in answers] == [answer.text for answer in expected[k]]
    assert [line for line in said if line.startswith("each k is run for itself")] == [
        "each k is run for itself: a repetition penalty needs a row for each prompt"
    ]
    assert set(made.mean_divergence("t")) == {1, 2}


def test_out_of_memory_halves_the_questions_then_the_images(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtw_eval.models import curve

    made, plain = (
        runner("llava", kind=kind, method="baseline", verify=False, batch_size=4) for kind in (CurveRunner, Runner)
    )
    assert isinstance(made, CurveRunner)
    made.ks, requests = (1, 3), requests_of(None)
    asked: list[int] = []
    answer_curve = curve.answer_curve

    def little_memory(anatomy: Any, beginnings: Any, own: Sequence[Sequence[Any]], *args: Any, **given: Any) -> Any:
        asked.append(sum(map(len, own)))
        if asked[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_curve(anatomy, beginnings, own, *args, **given)

    monkeypatch.setattr(curve, "answer_curve", little_memory)
    found, expected = at_each_k(made, requests, made.ks), at_each_k(plain, requests, made.ks)
    for k, answers in found.items():
        assert [answer.text for answer in answers] == [answer.text for answer in expected[k]]
    assert made.batch_size == 1 and made.sharing.questions == 1


def test_other_methods_and_positions_are_answered_as_usual(runner: Callable[..., Runner]) -> None:
    made = runner("llava", kind=CurveRunner, method="vtw", k=2, position="rearrange", verify=False)
    plain = runner("llava", method="vtw", k=2, position="rearrange", verify=False)
    assert isinstance(made, CurveRunner)
    made.ks, requests = (2,), requests_of(None)[:3]
    texts = [[answer.text for answer in each.answer(requests, progress=False)] for each in (made, plain)]
    assert texts[0] == texts[1]
    assert not made.divergence


def test_sharing_off_runs_each_k_for_itself(runner: Callable[..., Runner]) -> None:
    said: list[str] = []
    made = runner("llava", kind=CurveRunner, method="baseline", verify=False, sharing="off", log=said.append)
    assert isinstance(made, CurveRunner)
    made.ks = (1,)
    answers = at_each_k(made, requests_of(None)[:4], made.ks)
    assert all(answer.costs.latency_s is not None for each in answers.values() for answer in each)
    assert "each k is run for itself: sharing=off" in said


def test_answers_that_are_not_those_of_a_run_of_its_own_are_not_kept(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtw_eval.models import curve

    said: list[str] = []
    made = runner("llava", kind=CurveRunner, method="baseline", verify=False, log=said.append)
    plain = runner("llava", method="baseline", verify=False)
    assert isinstance(made, CurveRunner)
    made.ks, requests = (1, 3), requests_of(None)
    answer_curve = curve.answer_curve

    def wrong(*args: Any, **given: Any) -> Any:
        return [replace(each, tokens=each.tokens.roll(1, dims=0)) for each in answer_curve(*args, **given)]

    monkeypatch.setattr(curve, "answer_curve", wrong)
    found, expected = at_each_k(made, requests, made.ks), at_each_k(plain, requests, made.ks)
    for k, answers in found.items():
        assert [answer.text for answer in answers] == [answer.text for answer in expected[k]]
    assert sum("with all k at once and" in line for line in said) == 1
