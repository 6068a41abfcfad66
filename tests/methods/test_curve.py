"""Answers for all k at once are those of one run per k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.families import PAD, VIDEO, make_inputs
from tests.support.oracle import models, widen_windows
from vtw_eval import VTW
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine.masks import mask_kind
from vtw_eval.methods.vtw.curve import CurveAnswers, answer_curve, begin

NEW = 5
PACKABLE = (
    "llava", "llava_gqa", "vipllava", "llava_next", "llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl",
    "qwen3_vl", "internvl", "idefics3", "smolvlm", "mistral3", "pixtral_llava", "glm4v", "aya_vision",
    "cohere2_vision", "mistral3_sliding",
)  # fmt: skip
"""Those whose tokens see nothing that follows them; sliding windows are made to hold whole prompts."""

SHOWN: dict[str, Sequence[Sequence[str]]] = {
    "images": [["t3", "i", "t2"], ["t1", "I", "t4"]],
    "several": [["i", "t2", "I", "t1"], ["t6", "i", "t1"]],
    "video": [["t2", "v", "t2"]],
}
"""What prompts begin with, by kind; the rows of one kind run together."""

OWN = [[[11, 12, 13], [14], [15, 16, 17, 18, 19, 20, 21], [11, 12, 13]], [[31], [32, 33]]]
"""Questions about each; of different length, one of them twice."""


def one_run_per_k(
    model: Any, inputs: Mapping[str, Tensor], own: Sequence[Sequence[int]], types: str | None, layers: int
) -> tuple[Tensor, Tensor]:
    """Words and logits of the first word of VTW in the usual path, by k and question, each prompt alone."""
    words, logits = [], []
    for k in range(layers + 1):
        for question in own:
            given = dict(inputs)
            more = torch.tensor([question])
            given["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            if types:
                given[types] = torch.cat([inputs[types], torch.zeros_like(more)], dim=1)
            with VTW(k=k)(model), torch.no_grad():
                made = model.generate(
                    **given, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
                )
            words.append(made.sequences[0, given["input_ids"].shape[1] :])
            logits.append(made.logits[0][0].double())
    shape = (layers + 1, len(own))
    return torch.stack(words).unflatten(0, shape), torch.stack(logits).unflatten(0, shape)


def curve(
    model: Any, inputs: Mapping[str, Tensor], own: Sequence[Sequence[Sequence[int]]], ks: Sequence[int], **given: Any
) -> list[CurveAnswers]:
    anatomy = find_anatomy(model)
    kind = mask_kind(anatomy.text_config._attn_implementation)
    beginnings = begin(anatomy, inputs, ks)
    return answer_curve(
        anatomy, beginnings, own, ks, **{"kind": kind, "max_new_tokens": NEW, "eos": [], "pad": PAD, **given}
    )


def types_of(inputs: Mapping[str, Tensor]) -> str | None:
    return next((name for name in inputs if name.endswith("token_type_ids")), None)


def check(found: CurveAnswers, words: Tensor, logits: Tensor) -> None:
    """Compare; norms and eager attention of transformers round to float32, whatever the model is in."""
    assert torch.equal(found.tokens, words)
    log_p = logits.log_softmax(-1)
    expected = (log_p[:-1].exp() * (log_p[:-1] - log_p[-1])).sum(-1)
    torch.testing.assert_close(found.divergence, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.parametrize("family", PACKABLE)
def test_all_k_equal_one_run_per_k(family: str, kind: str) -> None:
    if kind == "video" and family not in VIDEO:
        return
    model, _ = models(family, "eager" if kind == "several" else "sdpa")
    widen_windows(model, 128)
    rows = SHOWN[kind]
    layers = find_anatomy(model).num_layers
    found = curve(model, make_inputs(family, model, rows), OWN[: len(rows)], range(layers))
    distinct = set()
    for row, own, answers in zip(rows, OWN, found, strict=False):
        alone = make_inputs(family, model, [row])
        words, logits = one_run_per_k(model, alone, own, types_of(alone), layers)
        check(answers, words, logits)
        distinct |= {tuple(each.tolist()) for each in words[:, 0]}
    assert len(distinct) > 2


def test_some_k_and_an_end_of_answers() -> None:
    """Given k are those among all; an answer ends with its end token and is padded; beginnings serve again."""
    model, _ = models("qwen2_vl", "sdpa")
    anatomy = find_anatomy(model)
    inputs = make_inputs("qwen2_vl", model, SHOWN["images"])
    whole = curve(model, inputs, OWN, range(4))
    ends = whole[0].tokens[:, 0, 2].unique().tolist()
    beginnings = begin(anatomy, inputs, [1, 3])
    given: dict[str, Any] = {"kind": "boolean", "max_new_tokens": NEW, "eos": ends, "pad": 7}
    found = answer_curve(anatomy, beginnings, OWN, [1, 3], **given)
    for some, all_ in zip(found, whole, strict=True):
        torch.testing.assert_close(some.divergence, all_.divergence[[1, 3]], atol=1e-9, rtol=1e-6)
        expected = all_.tokens[[1, 3, 4]].clone()
        is_end = torch.isin(expected, torch.tensor(ends)).int()
        expected[(is_end.cumsum(-1) - is_end) > 0] = 7
        assert torch.equal(some.tokens, expected[..., : some.tokens.shape[-1]])
    assert any(bool((each.tokens == 7).any()) for each in found)
    for rows in (0, 1):  # a prefix without questions, and then another one
        own = [part if row == rows else [] for row, part in enumerate(OWN)]
        again = answer_curve(anatomy, beginnings, own, [1, 3], **{**given, "eos": []})
        assert torch.equal(again[rows].tokens, whole[rows].tokens[[1, 3, 4]])
        assert again[1 - rows].tokens.shape[1] == again[1 - rows].divergence.shape[1] == 0


def test_no_k_at_all_is_the_unchanged_model() -> None:
    model, _ = models("llava", "sdpa")
    inputs = make_inputs("llava", model, SHOWN["images"])
    (alone, _), (whole, _) = curve(model, inputs, OWN, []), curve(model, inputs, OWN, range(4))
    assert torch.equal(alone.tokens, whole.tokens[-1:])
    assert alone.divergence.shape == (0, 4)


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model, _ = models("qwen3_vl", "sdpa")
    inputs = make_inputs("qwen3_vl", model, [["t3", "i", "t2"]])

    def hooks() -> list[tuple[int, int]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    before = hooks()
    curve(model, inputs, OWN[:1], range(4))
    with pytest.raises(ValueError, match="no vision token"):
        curve(model, make_inputs("qwen3_vl", model, [["t3"]]), OWN[:1], range(4))
    with pytest.raises(IndexError):
        curve(model, inputs, [[[10**6]]], range(4))
    assert hooks() == before
