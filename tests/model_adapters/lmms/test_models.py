"""The model classes, called as lmms-eval's evaluator calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lmms_eval.api.instance import Instance

from tests.support.harness_data import picture, question
from vtw_eval.model_adapters.lmms.models import LlavaVTW, LlavaVTWSimple
from vtw_eval.models.runner import DocumentError

DOCS = [{"question": question(i), "image": picture(i) if i % 3 else None} for i in range(5)]


def instance(request_type: Any, arguments: tuple[Any, ...], doc_id: int) -> Instance:
    return Instance(request_type, arguments, 0, {"task": "t", "doc_id": doc_id, "repeats": 1})


def visuals(doc: dict[str, Any]) -> list[Any]:
    return [] if doc["image"] is None else [doc["image"]]


def messages(doc: dict[str, Any], text: str | None = None) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": image} for image in visuals(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text or doc["question"]}]}]


@pytest.fixture
def models(checkpoint: Callable[[str], str]) -> tuple[LlavaVTW, LlavaVTWSimple]:
    made = [
        cls(pretrained=checkpoint("llava"), k=1, device="cpu", batch_size="2") for cls in (LlavaVTW, LlavaVTWSimple)
    ]
    for model in made:
        model.task_dict = {"t": {"test": DOCS}}
    return made[0], made[1]


def test_generate_until(models: tuple[LlavaVTW, LlavaVTWSimple]) -> None:
    chat, simple = models
    limit = {"max_new_tokens": 4}
    order = [3, 0, 4, 1, 2]
    by_messages = chat.generate_until(
        [instance("generate_until", (DOCS[i]["question"], messages, limit, i, "t", "test"), i) for i in order]
    )
    by_context = simple.generate_until(
        [instance("generate_until", (DOCS[i]["question"], limit, visuals, i, "t", "test"), i) for i in order]
    )
    alone = [
        chat.generate_until([instance("generate_until", ("", messages, limit, i, "t", "test"), i)])[0] for i in order
    ]
    assert [result.text for result in by_messages] == [result.text for result in alone]
    assert [result.text for result in by_context] == [result.text for result in by_messages]
    for i, result in zip(order, by_messages, strict=True):
        assert result.token_counts is not None
        written = result.token_counts.to_dict()
        assert written["vision_tokens"] == (16 if i % 3 else 0)
        assert written["output_tokens"] == result.token_counts.output_tokens == 4
    assert limit == {"max_new_tokens": 4}, "a task's generation arguments are left alone"


def test_rounds(models: tuple[LlavaVTW, LlavaVTWSimple]) -> None:
    chat, simple = models
    limit = {"max_new_tokens": 3}

    def next_messages(doc: dict[str, Any], **kwargs: Any) -> Any:
        if not kwargs:
            return messages(doc)
        if kwargs["round_idx"] == 2:
            return None, True, None, None
        assert len(kwargs["previous_output"]) == 1
        return messages(doc, "Are you sure?"), False, None, "noted"

    def next_text(doc: dict[str, Any], previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        return visuals(doc), "Are you sure?", round_idx == 2, previous_output, "noted"

    by_messages = chat.generate_until_multi_round(
        [instance("generate_until_multi_round", ("", next_messages, limit, 1, "t", "test"), 1)]
    )
    by_context = simple.generate_until_multi_round(
        [instance("generate_until_multi_round", (DOCS[1]["question"], limit, visuals, next_text, 1, "t", "test"), 1)]
    )
    assert by_messages == by_context
    assert len(by_messages[0]) == 2


def test_loglikelihood(models: tuple[LlavaVTW, LlavaVTWSimple]) -> None:
    chat, simple = models
    requests = [
        instance("loglikelihood", (DOCS[1]["question"], target, visuals, 1, "t", "test"), 1)
        for target in (" yes", " no", lambda doc: " yes")
    ]
    yes, no, again = simple.loglikelihood(requests)
    assert yes == again != no
    assert yes[0] < 0
    with pytest.raises(NotImplementedError, match="force_simple"):
        chat.loglikelihood(requests)


def test_a_failing_document_is_named(models: tuple[LlavaVTW, LlavaVTWSimple]) -> None:
    _, simple = models
    audio = instance("generate_until", ("What?", {}, lambda doc: [{"array": [0.0]}], 2, "t", "test"), 2)
    with pytest.raises(DocumentError, match="task t, split test, doc_id 2: TypeError: only images and videos"):
        simple.generate_until([audio])


def test_clean_frees_the_model(models: tuple[LlavaVTW, LlavaVTWSimple]) -> None:
    chat, _ = models
    chat.clean()
    with pytest.raises(RuntimeError, match="cleaned up"):
        chat.generate_until([])


def test_unsuitable_devices(checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="device_map spreads one model"):
        LlavaVTW(pretrained=checkpoint("llava"), device="cpu", device_map="auto")
