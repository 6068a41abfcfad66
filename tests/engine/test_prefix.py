"""What goes on behind a shared prefix is what the whole prompt alone gives, in rows of their own and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.methods.examples import EXAMPLES
from tests.support.families import FAMILIES, make_inputs, make_model
from tests.support.oracle import FLASH, register_attention
from vtw_eval import Method, parse_method
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.packed import answer_packed
from vtw_eval.engine.prefix import generate_behind, run_prefix
from vtw_eval.families import BIDIRECTIONAL
from vtw_eval.methods import METHODS
from vtw_eval.methods.base import kept_count
from vtw_eval.methods.scorer import Scorer

WINDOWED = {name for name in FAMILIES if name.startswith(("gemma3", "cohere2_vision", "mistral3_sliding"))}
"""Families with sliding windows shorter than the prompts of this file."""

SHARING = [name for name in FAMILIES if name not in WINDOWED and not name.startswith(tuple(BIDIRECTIONAL))]

ROWS = [["t3", "i", "t2"], ["t5", "I", "t2"], ["t1", "i", "i", "t2"]]
QUESTIONS = [[[20, 30, 40, 50], [22, 33, 44, 55, 66, 77, 88, 99, 11], [21], [20, 30, 40, 50]], [], [[20], [33, 44]]]
"""Of each row: of different lengths, one of a single token, one twice; one row is asked nothing."""

PACKED = [0, 2, 0], [QUESTIONS[0][:3], QUESTIONS[2], QUESTIONS[0][3:]]
"""The same in rows, two of which begin with the same prefix."""

NEW = 5
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


def alone(name: str, model: Any, row: Sequence[str], question: Sequence[int], greedy: Any = GREEDY) -> Tensor:
    """Answer one whole prompt: the row and its question in one prefill."""
    inputs = make_inputs(name, model, [row])
    shape = inputs["input_ids"].shape
    for key, value in inputs.items():
        if value.shape == shape:
            fill = question if key == "input_ids" else [int(key == "attention_mask")] * len(question)
            inputs[key] = torch.cat([value, torch.tensor([fill])], dim=1)
    return model.generate(**inputs, **greedy)[0, shape[1] + len(question) :]


@torch.no_grad()
def three_ways(name: str, model: Any, method: Method, kind: MaskKind | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Answer all questions alone, behind a prefix in rows of their own, and packed."""
    flat = [(row, question) for row, questions in enumerate(QUESTIONS) for question in questions]
    with method(model):
        wanted = torch.stack([alone(name, model, ROWS[row], question) for row, question in flat])
        prefix = run_prefix(model, make_inputs(name, model, ROWS))
        run_prefix(model, make_inputs(name, model, [["t9", "I", "i", "t4"]]))  # another one in between
        rows = generate_behind(model, prefix, [row for row, _ in flat], [question for _, question in flat], GREEDY)
        if kind is None:
            return wanted, rows, None
        packed = answer_packed(model, prefix, *PACKED, kind=kind, max_new_tokens=NEW, eos=[], pad=0)
    assert [len(answers) for answers in packed] == [3, 2, 1]
    return wanted, rows, torch.cat([packed[0], packed[2], packed[1]])


@pytest.mark.parametrize("name", SHARING)
def test_every_family(name: str) -> None:
    model = make_model(name, attn="sdpa")
    for spec in ("baseline", "vtw,k=2", "vtw,k=0,position=rearrange", "downsample", "tome"):
        wanted, rows, packed = three_ways(name, model, parse_method(spec), "boolean")
        assert torch.equal(rows, wanted), spec
        assert torch.equal(packed, wanted), spec
    assert len(set(map(str, wanted.tolist()))) > 3


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_eager_attention(name: str) -> None:
    model = make_model(name, attn="eager", dtype=torch.float32)
    for spec in ("baseline", "vtw,k=2"):
        wanted, rows, packed = three_ways(name, model, parse_method(spec), "additive")
        assert torch.equal(rows, wanted), spec
        assert torch.equal(packed, wanted), spec


def test_flash_attention_takes_rows_of_their_own() -> None:
    register_attention()
    model = make_model("llava", attn=FLASH)
    for spec in ("baseline", "vtw,k=2"):
        wanted, rows, _ = three_ways("llava", model, parse_method(spec), None)
        assert torch.equal(rows, wanted), spec


@torch.no_grad()
def test_an_answer_ends_at_an_end_token() -> None:
    model = make_model("llava", attn="sdpa")
    prefix = run_prefix(model, make_inputs("llava", model, ROWS))

    def answers(eos: list[int]) -> list[list[int]]:
        made = answer_packed(model, prefix, *PACKED, kind="boolean", max_new_tokens=NEW, eos=eos, pad=7)
        return torch.cat(made).tolist()

    free = answers([])
    end = free[0][2]
    cut = [row[: row.index(end) + 1] if end in row else row for row in free]
    width = max(map(len, cut))
    assert answers([end]) == [row + [7] * (width - len(row)) for row in cut]
    assert answers([row[0] for row in free]) == [[row[0]] for row in free]


# --- which methods can share


def claiming() -> dict[str, Method]:
    """Every method that claims to be independent of the question, set so that it acts on a tiny model."""
    found = {label: method for label, method in EXAMPLES.items() if method.question_independent}
    for key in METHODS:
        method = parse_method(key)
        if method.question_independent:
            found[key] = method.scaled(0.5, 4) or method
    return found


def check_claim(name: str, method: Method) -> None:
    """Check that answers behind a prefix are those of the whole prompt."""
    model = make_model(name, attn="sdpa")
    wanted, rows, packed = three_ways(name, model, method, "boolean")
    assert torch.equal(rows, wanted)
    assert torch.equal(packed, wanted)


@pytest.mark.parametrize(("label", "method"), claiming().items(), ids=str)
def test_what_claims_to_be_independent_of_the_question_is(label: str, method: Method) -> None:
    check_claim("llava", method)
    assert not {"rand", "random_k", "random_vision", "fastv", "pyramiddrop", "dyvte", "cdpruner"} & set(claiming())


@dataclass(frozen=True, kw_only=True)
class Liar(Scorer):
    """FastV's choice, by the attention of the prompt's last token, said to be independent of it."""

    key: ClassVar[str] = "liar"
    reads = Reads.ATTENTION
    question_independent = True

    def score(self, view: LayerView) -> Tensor:
        return view.attention(view.layer)


@dataclass(frozen=True, kw_only=True)
class Counter(Scorer):
    """Keep as many vision tokens as there are others: roles alone tell how long a question is."""

    key: ClassVar[str] = "counter"
    reads = Reads.ROLES

    def score(self, view: LayerView) -> Tensor:
        return -view.index.double()

    def kept(self, view: LayerView) -> Tensor:
        return kept_count((view.valid & ~view.vision).sum(dim=1) // 4, 0.0)


@pytest.mark.parametrize("method", [Liar(k=1, r=0.5), Counter(k=0)], ids=str)
def test_what_lies_about_it_is_caught(method: Method) -> None:
    assert method.bind(find_anatomy(make_model("llava"))).question_independent
    with pytest.raises(AssertionError):
        check_claim("llava", method)
