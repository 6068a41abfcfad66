"""Prompts about one image share it under methods that look at the question, and several methods share it with them."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_runner import ADAPTERS, runner, video  # noqa: F401  fixtures
from tests.models.test_sharing import both, check, load, requests_about
from tests.support.gates import random_gates
from vtw_eval.anatomy import find_tower
from vtw_eval.methods import Method, parse_method
from vtw_eval.methods.dyvte.method import DyVTE
from vtw_eval.models import late, shared
from vtw_eval.models.begun import begin
from vtw_eval.models.family import DocumentPrompt
from vtw_eval.models.runner import Request, Runner
from vtw_eval.models.shared import Sharer
from vtw_eval.models.sharing import SharingError, why_alone

CASES = [
    *(("llava", method) for method in ("random_k", "dyvte", "random_vision,k=0", "rand,k=2")),
    *((family, "fastv,k=2") for family in ("llava_onevision", "qwen3_vl")),
    *((family, "pyramiddrop") for family in ("qwen2_vl", "internvl")),
]


def opened(runner: Callable[..., Runner], family: str, spec: str, **options: Any) -> Runner:
    """Open a family with a method, with random gates if it needs some."""
    made = runner(family, **{"method": "baseline", "batch_size": 2, **options})
    method = parse_method(spec)
    if isinstance(method, DyVTE):
        method = replace(method, gates=random_gates(made.family.model), check_name=False)
    made.exchange(method)
    return made


@pytest.mark.parametrize(("family", "spec"), CASES)
def test_answers_and_costs_are_those_of_prompts_alone(
    runner: Callable[..., Runner], video: str, family: str, spec: str
) -> None:
    said: list[str] = []
    made = opened(runner, family, spec, log=said.append)
    documents = load(video if ADAPTERS[family][1] else None)
    one_by_one, together = both(made, requests_about(documents, {"max_new_tokens": 3}))
    check(one_by_one, together)
    alone = [i for i, answer in enumerate(together) if answer.costs.latency_s is not None]
    assert alone == [11, 12], said
    assert len({answer.text for answer in together}) > 4


@pytest.mark.parametrize("spec", ["fastv,k=2", "random_k"])
def test_half_precision_shares_where_as_many_tokens_are_left(runner: Callable[..., Runner], spec: str) -> None:
    made = opened(runner, "llava", spec, dtype="bfloat16")
    one_by_one, together = both(made, requests_about(load(None)[:6], {"max_new_tokens": 2}))
    assert all(answer.costs.latency_s is None for answer in together)
    costs = [[answer.costs.tokens_per_layer for answer in answers] for answers in (one_by_one, together)]
    assert costs[0] == costs[1]


def test_repetition_penalty(runner: Callable[..., Runner]) -> None:
    made = opened(runner, "qwen2_5_vl", "fastv,k=2", batch_size=1)  # padding counts as repeated too
    made.family.model.generation_config.repetition_penalty = 1.7
    one_by_one, together = both(made, requests_about(load(None)[:9], {"max_new_tokens": 4}))
    check(one_by_one, together)
    assert all(answer.costs.latency_s is None for answer in together)
    made.family.model.generation_config.repetition_penalty = None


def test_out_of_memory_takes_fewer_prompts_then_fewer_images_then_one_after_the_other(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    made = opened(runner, "llava", "fastv,k=2", log=said.append, batch_size=4)
    requests = requests_about(load(None)[:9], {"max_new_tokens": 2})
    one_by_one, together = both(made, requests)
    check(one_by_one, together)
    real, sizes, room = late.answer_late, [], {"rows": 1}

    def scarce(model: Any, method: Any, unchanged: Any, rows: Sequence[int], *more: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > room["rows"]:
            raise torch.OutOfMemoryError("no")
        return real(model, method, unchanged, rows, *more)

    monkeypatch.setattr(shared, "answer_late", scarce)
    check(one_by_one, made.answer(requests, progress=False))
    assert sizes == [4, 2, *[1] * 9]
    room["rows"] = 0
    check(one_by_one, made.answer(requests, progress=False))
    assert said[1:] == [
        "out of memory: going on with 2 prompts at a time",
        "out of memory: going on with 1 prompts at a time",
        "out of memory: going on with batch size 1",
        "prompts about one image are computed one by one: out of memory",
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("mmtok", "on what the vision tower makes of each prompt"),
        ("framefusion", "on what the vision tower makes of each prompt"),
        ("shortv,order=2-0-3,n=2", "leaves vision tokens of whole prompts as they are"),
    ],
)
def test_what_needs_whole_prompts_is_answered_alone(runner: Callable[..., Runner], spec: str, reason: str) -> None:
    said: list[str] = []
    made = opened(runner, "llava", spec, log=said.append)
    one_by_one, together = both(made, requests_about(load(None)[:4], {"max_new_tokens": 2}))
    check(one_by_one, together)
    assert all(answer.costs.latency_s is not None for answer in together)
    assert reason in said[-1]


@pytest.mark.parametrize("wrong", ["kept", "answer"])
def test_what_differs_from_a_prompt_alone_is_caught_in_the_run(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """The first batch is sabotaged: another choice, or another answer."""
    said: list[str] = []
    made = opened(runner, "llava", "fastv,k=2", log=said.append)
    other = parse_method("random_vision,k=2").bind(made.anatomy)
    real, calls = late.answer_late, []

    def sabotaged(model: Any, method: Method, *more: Any) -> Any:
        calls.append(method)
        found = real(model, other if wrong == "kept" else method, *more)
        return replace(found, tokens=found.tokens + 1) if wrong == "answer" else found

    monkeypatch.setattr(shared, "answer_late", sabotaged)
    one_by_one, together = both(made, requests_about(load(None)[:9], {"max_new_tokens": 2}))
    check(one_by_one, together)
    assert all(answer.costs.latency_s is not None for answer in together)
    assert "does something else to a prompt alone" in said[-1], said
    assert len(calls) == 1, "it is not tried again"


def test_a_choice_that_counts_padding_within_a_prompt_is_caught_in_the_run(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    """Alone and in a usual batch nothing stands between the words of a prompt."""
    file = tmp_path / "back.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from vtw_eval.engine import Reads\n"
        "from vtw_eval.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Back(Method):\n"
        "    key: ClassVar[str] = 'counts_back'\n"
        "    reads = Reads.HIDDEN\n"
        "    def layers(self, num_layers):\n"
        "        return (2,)\n"
        "    def keep(self, view):\n"
        "        return ~(view.vision & ((view.index[:, -1:] - view.index) % 5 == 0))\n"
    )
    said: list[str] = []
    made = runner("llava", method=f"{file}:Back", verify=False, log=said.append, batch_size=9)
    one_by_one, together = both(made, requests_about(load(None)[:9], {"max_new_tokens": 2}))
    check(one_by_one, together)
    assert all(answer.costs.latency_s is not None for answer in together)
    assert "does something else to a prompt alone" in said[-1], said


# --- several methods


SPECS = (
    "baseline",
    "vtw,k=1",
    "vtw,k=3,position=rearrange",
    "vtw,k=4",
    "downsample",
    "tome,k=1",
    "random_k",
    "fastv,k=2",
    "sparsevlm,k1=1,k2=2,k3=3",
    "fastervlm,r=0.4",
    "visionzip,r=0.4,contextual=0.4,space=decoder",
)


def prompts_of(made: Runner, requests: Sequence[Request]) -> list[list[DocumentPrompt]]:
    by_media: dict[str, list[DocumentPrompt]] = {}
    for request in requests:
        by_media.setdefault(request.media, []).append(request.build(made.family))
    return list(by_media.values())


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_methods_that_share_an_image_answer_as_each_alone(runner: Callable[..., Runner], family: str) -> None:
    made = runner(family, method="baseline", batch_size=4)
    documents = [d for d in load(None) if d[0]]
    requests = requests_about(documents, {"max_new_tokens": 3})
    arguments = made.family.generation(requests[0].generation)
    methods: Mapping[str, Method] = {
        spec: parse_method(spec).bind(made.anatomy)
        for spec in SPECS
        if family == "llava" or spec not in ("visionzip,r=0.4,contextual=0.4,space=decoder", "fastervlm,r=0.4")
    }
    assert not any(why_alone(made.family, made.anatomy, method, arguments) for method in methods.values())
    passes: list[None] = []
    handle = find_tower(made.anatomy).layers[0][0].register_forward_pre_hook(lambda *_: passes.append(None))
    sharer = Sharer(made.family, made.anatomy, made.method, arguments, made.sharing, made.log)
    made.sharing.sound |= {str(method) for method in methods.values()}  # what compares runs the tower
    begun = begin(sharer, list(methods.values()), prompts_of(made, requests))
    found = {spec: begun.answer(method) for spec, method in methods.items()}
    assert len(passes) == 1
    handle.remove()
    object.__setattr__(made.options, "sharing", "off")
    places: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(request.media, []).append(place)
    for spec, method in methods.items():
        made.exchange(method)
        usual = made.answer(requests, progress=False)
        for mine, rows in zip(found[spec], places.values(), strict=True):
            assert not isinstance(mine, SharingError)
            for each, place in zip(mine, rows, strict=True):
                text = made.family.decode(each.tokens[None], {})[0]
                assert text == usual[place].text, (spec, place)
                assert vars(each.counts).items() <= dict(usual[place].costs).items(), (spec, place)


def test_methods_may_want_other_prompts(runner: Callable[..., Runner]) -> None:
    made = runner("llava", method="baseline")
    requests = requests_about(load(None)[:6], {"max_new_tokens": 3})
    arguments = made.family.generation(requests[0].generation)
    methods = [parse_method(spec).bind(made.anatomy) for spec in ("vtw,k=1", "fastv,k=2")]
    sharer = Sharer(made.family, made.anatomy, made.method, arguments, made.sharing, made.log)
    begun = begin(sharer, methods, prompts_of(made, requests))
    for method in methods:
        every, some = begun.answer(method), begun.answer(method, [[1], [], [1, 0]])
        assert not any(isinstance(each, SharingError) for each in (*every, *some))
        chosen = [[every[0][1]], [], [every[2][1], every[2][0]]]  # type: ignore[index]
        for mine, wanted in zip(some, chosen, strict=True):
            assert [each.counts for each in mine] == [each.counts for each in wanted]  # type: ignore[union-attr]
            for one, other in zip(mine, wanted, strict=True):  # type: ignore[arg-type]
                assert torch.equal(one.tokens, other.tokens)
