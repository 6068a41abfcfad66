"""What answers tell of the tokens that were kept is what a forward of each prompt alone keeps."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.test_runner import message, runner  # noqa: F401  the last one is a fixture
from tests.support.harness_data import picture, question
from vtw_eval.methods import parse_method
from vtw_eval.models.runner import Request, Runner
from vtw_eval.models.traces import _outlived

METHODS = [
    "baseline",
    "vtw,k=1",
    "fastv,k=1,r=0.5",
    "tome,k=0,r=0.3",
    "divprune",
    "rand,k=1",
    "pyramiddrop,r=0.5",
    "fastv+vtw,fastv.k=1,vtw.k=3",
]


def requests() -> list[Request]:
    """Prompts of different length, the second with two images, in one batch."""
    shown = [[{"type": "image", "url": picture(seed)}] for seed in (0, 1, 2)]
    shown[1] *= 2
    messages = [message(question(i) + " and why?" * i, *media) for i, media in enumerate(shown)]
    return [
        Request(f"document {i}", 1, {"max_new_tokens": 2}, lambda family, own=own: family.chat_prompt(own))  # type: ignore[misc]
        for i, own in enumerate(messages)
    ]


def alone(made: Runner, request: Request) -> list[Tensor]:
    """Of each layer which vision tokens enter it, read from the cache positions of a forward of one prompt."""
    encoded = made.family.encode([request.build(made.family)])
    with torch.no_grad(), made.method(made.family.model, prompt_ids=encoded.inputs["input_ids"]) as trace:
        made.family.model(**encoded.inputs)
    vision = torch.isin(encoded.inputs["input_ids"][0], torch.tensor(sorted(made.anatomy.vision_token_ids)))
    return [trace.kept(layer)[0, vision] for layer in range(made.anatomy.num_layers)]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_answers_of_a_batch_tell_what_was_kept(runner: Callable[..., Runner], family: str) -> None:
    made, asked = runner(family, method="baseline", batch_size=3, verify=False), requests()
    layers = made.anatomy.num_layers
    kinds = set()
    for spec in METHODS:
        method = parse_method(spec.replace("vtw.k=3", f"vtw.k={layers - 1}"))
        made.exchange(method)
        for request, answer in zip(asked, made.answer(asked, progress=False), strict=True):
            sets = answer.costs.kept_sets()
            assert sets is not None, spec
            told = [torch.tensor(one.kept) for one in sets for _ in range(one.first, one.last + 1)]
            for layer, kept in enumerate(alone(made, request)):
                assert torch.equal(told[layer], kept), (spec, layer)
            kinds.add((bool(answer.costs.kept), len(sets)))
    assert {(False, 1), (False, 2), (True, 2), (True, 1)} <= kinds


def test_a_token_that_comes_back_is_refused() -> None:
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    assert _outlived([first, first], 2) == [2, 0]
    with pytest.raises(ValueError, match="come back"):
        _outlived([first, second], 2)
