"""How questions about an image are dealt to passes and rows, and that this changes no answer."""

# ruff: noqa: F811  fixtures of another module are parameters here

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.models.test_runner import runner  # noqa: F401  a fixture
from tests.models.test_sharing import both, check, load, requests_about
from vtw_eval.models import questions
from vtw_eval.models.questions import at_once, divided
from vtw_eval.models.runner import Runner
from vtw_eval.models.sharing import Split


@pytest.mark.parametrize("lengths", [[20] * 18, [31, 20, 25, 40, 22, 24, 28, 33, 21], [300, 5, 5, 5], [7], [900, 800]])
def test_rows_are_alike_and_hold_each_question_once(lengths: list[int]) -> None:
    rows = divided(lengths, 100)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    sums = [sum(lengths[number] for number in row) for row in rows]
    assert len(rows) == min(-(-sum(lengths) // 100), len(lengths))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1 or len(lengths) % len(rows)
    assert max(sums) - min(sums) <= max(lengths)


def test_no_questions_need_no_rows() -> None:
    assert divided([], 100) == []


@pytest.mark.parametrize(("counts", "expected"), [((18, 2), 18), ((30,), 30), ((60,), 30), ((1, 61), 21)])
def test_passes_hold_as_many_questions_as_each_other(counts: Sequence[int], expected: int) -> None:
    assert at_once([Split(600, [[1] * 34] * count) for count in counts]) == expected


@pytest.mark.parametrize("tokens_of_a_pass", [1024, 150])
def test_several_rows_and_passes_for_an_image_give_the_same_answers(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, tokens_of_a_pass: int
) -> None:
    passes: list[tuple[list[int], list[int]]] = []
    packed = questions.answer_packed

    def watched(model: Any, prefix: Any, rows: Any, own: Any, **more: Any) -> Any:
        passes.append((list(rows), list(map(len, own))))
        return packed(model, prefix, rows, own, **more)

    monkeypatch.setattr(questions, "answer_packed", watched)
    monkeypatch.setattr(questions, "ROW_TOKENS", 80)
    monkeypatch.setattr(questions, "PASS_TOKENS", tokens_of_a_pass)
    made = runner("llava", method="baseline", batch_size=2, verify=False)
    asked = load(None)[:9]
    check(*both(made, requests_about([*asked, *asked[::2]], {"max_new_tokens": 4})))
    assert any(len(set(rows)) < len(rows) and max(counts) > 1 for rows, counts in passes), passes
    assert (len(passes) > 2) == (tokens_of_a_pass < 1024)
