"""Answers do not depend on the batch, costs are those of a naive count, and failures name the document."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.harness_data import picture, question, write_video
from vtw_eval.engine.calls import cache_of_output, with_cache
from vtw_eval.methods import VTW, parse_method
from vtw_eval.models import runner as core
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.internvl_remote import tile_grid, tiles, to_tensor
from vtw_eval.models.runner import DocumentError, Request, Runner
from vtw_eval.verify.verdict import VerificationError

ADAPTERS: Mapping[str, tuple[str, bool]] = {
    "llava": ("llava_vtw", False),
    "llava_next": ("llava_vtw", False),
    "llava_onevision": ("llava_vtw", True),
    "qwen2_vl": ("qwen2vl_vtw", True),
    "qwen2_5_vl": ("qwen2vl_vtw", True),
    "qwen3_vl": ("qwen2vl_vtw", True),
    "qwen3_vl-A1B": ("qwen2vl_vtw", True),
    "internvl": ("internvl_vtw", True),
    "internvl3_5": ("internvl_vtw", True),
    "internvl_remote": ("internvl_vtw", True),
    "video_llava": ("video_llava_vtw", True),
}
"""Adapter of each family, and whether the family takes videos."""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, seed=3)
    return str(path)


@pytest.fixture(scope="module")
def runner(checkpoint: Callable[[str], str]) -> Callable[..., Runner]:
    """Open a family with a method; small frame limits keep it quick."""
    limits = {
        "llava_onevision": {"max_frames_num": 4},
        "qwen2_vl": {"max_num_frames": 4, "max_pixels": 28 * 28 * 16},
        "qwen2_5_vl": {"max_num_frames": 4, "min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 16},
        "qwen3_vl": {"max_num_frames": 4, "min_pixels": 32 * 32 * 4, "max_pixels": 32 * 32 * 16},
        "qwen3_vl-A1B": {"max_num_frames": 4, "min_pixels": 32 * 32 * 4, "max_pixels": 32 * 32 * 16},
        "internvl": {"num_frames": 4},
        "internvl3_5": {"num_frames": 4},
        "internvl_remote": {"num_frames": 4, "trust_remote_code": True},
    }

    def make(
        family: str,
        simple: bool = False,
        log: Callable[[str], None] = print,
        kind: type[Runner] = Runner,
        **arguments: Any,
    ) -> Runner:
        given = {"pretrained": checkpoint(family), **limits.get(family, {}), **arguments}
        return kind(ADAPTERS[family][0], given, simple=simple, device=torch.device("cpu"), log=log)

    return make


def message(text: str, *media: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def requests_of(video: str | None, generation: Mapping[str, Any] | None = None) -> list[Request]:
    """Make text-only documents, documents with one and with several images, and one with a video."""
    documents = []
    for i in range(7):
        images = [{"type": "image", "url": picture(10 * i + j)} for j in range((0, 1, 2)[i % 3])]
        documents.append(message(question(i), *images))
    if video is not None:
        documents.append(message("What happens?", {"type": "video", "url": video}))

    def build(messages: list[dict[str, Any]]) -> Callable[[Family[Any]], DocumentPrompt]:
        return lambda family: family.chat_prompt(messages)

    given = {"max_new_tokens": 6} if generation is None else generation
    return [
        Request(f"task t, split s, doc_id {i}", len(messages[0]["content"][-1]["text"]), given, build(messages))
        for i, messages in enumerate(documents)
    ]


@pytest.mark.parametrize("method", ["baseline", "vtw", "random_k", "rand", "fastv"])
@pytest.mark.parametrize("family", ADAPTERS)
def test_batch_size_changes_nothing(runner: Callable[..., Runner], video: str, family: str, method: str) -> None:
    requests = requests_of(video if ADAPTERS[family][1] else None)
    made = runner(family, method=method, **({"k": 1} if method == "vtw" else {}))
    single = made.answer(requests, progress=False)
    made.batch_size = 8
    batched = made.answer(requests, progress=False)
    assert [answer.text for answer in batched] == [answer.text for answer in single]
    assert len({answer.text for answer in single}) > len(single) / 2
    for one, other in zip(single, batched, strict=True):
        assert one.costs.tokens_per_layer == other.costs.tokens_per_layer
        assert one.costs.vision_per_layer == other.costs.vision_per_layer
        assert one.costs.output_tokens == other.costs.output_tokens
    assert max(answer.costs.batch_rows for answer in batched) == min(8, len(requests))


@pytest.mark.parametrize("family", ADAPTERS)
def test_costs_are_those_of_a_naive_count(runner: Callable[..., Runner], video: str, family: str) -> None:
    requests = requests_of(video if ADAPTERS[family][1] else None)
    made = runner(family, k=2, batch_size=3)
    hidden = 64
    for request, answer in zip(requests, made.answer(requests, progress=False), strict=True):
        encoded = made.family.encode([request.build(made.family)])
        ids = encoded.inputs["input_ids"][0]
        remote = made.family.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>"])
        marks = torch.tensor(made.anatomy.vision_token_ids or remote)
        vision = int(torch.isin(ids, marks).sum())
        expected = (len(ids), len(ids), len(ids) - vision, len(ids) - vision)
        assert answer.costs.input_tokens == len(ids)
        assert answer.costs.vision_tokens == vision
        assert answer.costs.tokens_per_layer == expected
        assert answer.costs.vision_per_layer == (vision, vision, 0, 0)
        assert answer.costs.prefill_flops == sum(4 * s * s * hidden + 24 * s * hidden * hidden for s in expected)


@pytest.mark.parametrize("family", ADAPTERS)
def test_the_method_matters(runner: Callable[..., Runner], family: str) -> None:
    requests = requests_of(None)
    full = [answer.text for answer in runner(family, method="baseline").answer(requests, progress=False)]
    kept = [answer.text for answer in runner(family, k=4).answer(requests, progress=False)]
    early = [answer.text for answer in runner(family, k=0).answer(requests, progress=False)]
    assert kept == full
    changed = [i for i, (before, after) in enumerate(zip(full, early, strict=True)) if before != after]
    assert len(changed) >= 2
    assert all(i % 3 for i in changed), "documents without an image stay the same"


def test_default_k_is_said(runner: Callable[..., Runner]) -> None:
    said: list[str] = []
    runner("llava", log=said.append)
    assert "method vtw,k=2,position=keep" in said[0]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")]
)
def test_out_of_memory_halves_the_batch(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    requests = requests_of(None)
    said: list[str] = []
    made = runner("llava", k=1, batch_size=7, log=said.append)
    expected = made.answer(requests, progress=False)
    sizes = []
    generate = made.family.generate

    def scarce(encoded: Any, arguments: Any) -> Any:
        sizes.append(len(encoded.inputs["input_ids"]))
        if sizes[-1] > 2:
            raise error
        return generate(encoded, arguments)

    monkeypatch.setattr(made.family, "generate", scarce)
    answers = made.answer(requests, progress=False)
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert said[1:] == [f"out of memory: going on with batch size {size}" for size in (3, 1)]


def test_out_of_memory_for_one_document_is_raised(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runner("llava", k=1, batch_size=2)

    def never(encoded: Any, arguments: Any) -> Any:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(made.family, "generate", never)
    with pytest.raises(torch.OutOfMemoryError):
        made.answer(requests_of(None), progress=False)


@pytest.mark.parametrize("error", [KeyError("image"), SystemExit("video path does not exist")])
def test_other_errors_name_the_document(runner: Callable[..., Runner], error: BaseException) -> None:
    requests = requests_of(None)

    def broken(family: Family[Any]) -> DocumentPrompt:
        raise error

    requests[4] = Request("task t, split s, doc_id 4", 1, requests[4].generation, broken)
    with pytest.raises(DocumentError, match="task t, split s, doc_id 4: "):
        runner("llava", batch_size=3).answer(requests, progress=False)


def test_missing_image_file_names_the_document(runner: Callable[..., Runner]) -> None:
    messages = message("What is this?", {"type": "image", "url": "/nowhere/0.png"})
    request = Request("task t, split s, doc_id 0", 1, {}, lambda family: family.chat_prompt(messages))
    with pytest.raises(DocumentError, match=r"doc_id 0: FileNotFoundError: .*/nowhere/0.png"):
        runner("llava").answer([request], progress=False)


def test_llava_without_video_input_says_so(runner: Callable[..., Runner], video: str) -> None:
    with pytest.raises(DocumentError, match="llava checkpoints take no video"):
        runner("llava").answer(requests_of(video), progress=False)


def test_different_generation_arguments_are_not_mixed(runner: Callable[..., Runner]) -> None:
    short, long = requests_of(None, {"max_new_tokens": 2}), requests_of(None, {"max_new_tokens": 5})
    mixed = [request for pair in zip(short, long, strict=True) for request in pair]
    made = runner("llava", k=1, batch_size=4)
    answers = made.answer(mixed, progress=False)
    assert [answer.costs.output_tokens for answer in answers] == [2, 5] * 7
    assert [answer.text for answer in answers[::2]] == [a.text for a in made.answer(short, progress=False)]


def test_a_method_is_verified_before_its_first_answer(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    made = runner("llava", k=1, log=lines.append)
    assert made.verdict.verified
    assert lines[0].endswith(str(made.verdict))
    (answer, *_) = made.answer(requests_of(None), progress=False)
    assert answer.costs.verified == str(made.verdict)
    assert answer.costs.verified.startswith("verified with torch")

    def refuse(model: Any, method: Any) -> Any:
        raise VerificationError(f"{method} is wrong here")

    monkeypatch.setattr(core, "verify", refuse)
    with pytest.raises(VerificationError, match="fastv"):
        made.exchange(parse_method("fastv"))
    assert made.method == VTW(k=1), "the last method stays"
    with pytest.raises(VerificationError, match="vtw"):
        runner("llava", k=1)
    skipped = runner("llava", k=1, verify=False)
    (answer, *_) = skipped.answer(requests_of(None), progress=False)
    assert answer.costs.verified == "not verified (verify=False)"


def test_remote_code_is_not_verified_and_says_so(runner: Callable[..., Runner]) -> None:
    assert str(runner("internvl_remote", k=1).verdict).startswith("not verified (code that comes with a checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trace: setattr(trace, "prefills", 5), "a generation counts as 5 prompts"),
        (lambda trace: setattr(trace, "prefills", 0), "a generation counts as 0 prompts"),
        (lambda trace: trace.reduction.prompt.valid.__setitem__((0, -1), False), "tokens entered the decoder for"),
        (lambda trace: trace.reduction.prompt.vision.fill_(False), "has media, but no vision tokens"),
    ],
)
def test_a_trace_of_something_else_than_the_prompt_is_refused(
    change: Callable[[Any], Any], message: str, runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runner("llava", k=1)
    prompt = made.family.chat_prompt(message_of_a_picture())
    request = Request("task t, split s, doc_id 7", 1, {"max_new_tokens": 2}, lambda family: prompt)
    made.answer([request], progress=False)
    check = core.check_trace
    monkeypatch.setattr(core, "check_trace", lambda trace, *more: (change(trace), check(trace, *more)))
    with pytest.raises(
        DocumentError, match=rf"doc_id 7: UpstreamChangedError: .*{message}.*transformers .* is installed"
    ):
        made.answer([request], progress=False)


def message_of_a_picture() -> list[dict[str, Any]]:
    return message("Is there a disc?", {"type": "image", "url": picture(1)})


def test_beams_cost_once(runner: Callable[..., Runner]) -> None:
    requests = requests_of(None, {"max_new_tokens": 4, "num_beams": 3})
    made = runner("llava", k=1)
    single = made.answer(requests, progress=False)
    made.batch_size = 4
    batched = made.answer(requests, progress=False)
    assert [answer.text for answer in batched] == [answer.text for answer in single]
    greedy = made.answer(requests_of(None), progress=False)
    assert [a.costs.tokens_per_layer for a in batched] == [a.costs.tokens_per_layer for a in greedy]


@pytest.mark.parametrize("method", ["baseline", "vtw", "fastv", "pyramiddrop", "random_vision", "rand", "random_k"])
def test_log_likelihood_of_an_option_that_the_method_does_not_see(runner: Callable[..., Runner], method: str) -> None:
    made = runner("llava", simple=True, method=method)
    prompt = made.family.simple_prompt("Is there a disc?", [picture(1)])
    request = Request("task t, split s, doc_id 0", 1, {"max_new_tokens": 3}, lambda family: prompt)
    inputs = made.family.encode([prompt]).inputs
    length = inputs["input_ids"].shape[1]
    for text in (" yes", " no it is a red disc", " A"):
        option = made.family.encode([DocumentPrompt(prompt.text + text, prompt.images)]).inputs["input_ids"][0, length:]
        # the prompt alone under the method, then the option's tokens one by one in its cache
        total, mask = 0.0, inputs["attention_mask"]
        with torch.no_grad(), made.method(made.family.model):
            output = made.family.model(**inputs, use_cache=True)
            for token in option:
                total += float(output.logits[0, -1].log_softmax(-1)[token])
                mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
                step = {"input_ids": token.view(1, 1), "attention_mask": mask, "use_cache": True}
                output = made.family.model(**with_cache(made.family.model, step, cache_of_output(output)))
        value, greedy = made.log_likelihood(request, text)
        assert value == pytest.approx(total, rel=1e-4), text
        assert not greedy


def test_stop_strings_of_qwen(runner: Callable[..., Runner]) -> None:
    made = runner("qwen2_vl")
    tokens = made.family.tokenizer(" one. two\n\nthree", return_tensors="pt")["input_ids"]
    assert made.family.decode(tokens, {"until": ["\n\n"]}) == ["one. two"]
    assert made.family.decode(tokens, {"until": "."}) == ["one"]
    assert made.family.decode(tokens, {}) == ["one. two\n\nthree"]
    with pytest.raises(ValueError, match="must be a string or a list"):
        made.family.decode(tokens, {"until": 3})
    for family in ("qwen2_5_vl", "qwen3_vl"):
        assert runner(family, simple=True).family.decode(tokens, {"until": ["\n\n", "two"]}) == [" one. "]


def test_remote_code_answers_as_its_chat_method(runner: Callable[..., Runner]) -> None:
    made = runner("internvl_remote", simple=True, method="baseline")
    images = [picture(3), picture(1)]
    prompt = made.family.simple_prompt("Which is bigger?", images)
    request = Request("task t, split s, doc_id 0", 1, {"max_new_tokens": 6}, lambda family: prompt)
    (answer,) = made.answer([request], progress=False)
    cut = [to_tensor(tiles(image, 1, 6, 56, True)) for image in images]
    expected = made.family.model.chat(
        made.family.tokenizer,
        torch.cat(cut),
        "<image> <image>\nWhich is bigger?",
        {"max_new_tokens": 6, "do_sample": False},
        num_patches_list=[len(found) for found in cut],
    )
    assert answer.text == expected


@pytest.mark.parametrize("size", [(64, 64), (200, 60), (60, 200), (500, 480), (1000, 700), (33, 90)])
def test_tiles_are_those_of_lmms_eval(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "support" / "stubs"))
    from lmms_eval.models.simple.internvl2 import load_image

    image = picture(2).resize(size)
    expected = load_image(image, input_size=56, max_num=6)
    torch.testing.assert_close(to_tensor(tiles(image, 1, 6, 56, True)), expected)
    columns, rows = tile_grid(*size, 1, 6, 56)
    assert columns * rows + (columns * rows > 1) == len(expected)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mllama"}, "It is not supported: its vision features enter by cross-attention"),
        (
            {"model_type": "llavaonevision1_5", "auto_map": {"AutoConfig": "configuration.Config"}},
            "It runs code of its own, which is known for internvl_chat only: take one in transformers' format.",
        ),
        ({"model_type": "gpt2"}, r"but llava_vtw opens llava, llava_next, llava_onevision\.$"),
    ],
)
def test_why_a_checkpoint_is_not_opened(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = {"pretrained": str(tmp_path), "method": "baseline", "trust_remote_code": True}
    with pytest.raises(ValueError, match=reason):
        Runner("llava_vtw", arguments, simple=False, device=torch.device("cpu"), log=print)


def test_remote_code_cannot_score(runner: Callable[..., Runner]) -> None:
    request = Request("task t, split s, doc_id 0", 1, {}, lambda family: DocumentPrompt("Is it?"))
    with pytest.raises(NotImplementedError, match="internvl_chat checkpoints cannot score"):
        runner("internvl_remote", simple=True).log_likelihood(request, " yes")


def test_chat_template_option(runner: Callable[..., Runner]) -> None:
    made = runner("llava", chat_template="{{ messages[0]['content'] | length }} parts")
    assert made.family.chat_prompt(message("Is it?", {"type": "image", "url": picture(0)})).text == "2 parts"
    vicuna = runner("llava", simple=True)
    vicuna.family.tokenizer.chat_template = None
    text = vicuna.family.simple_prompt("Is it?", [picture(0)]).text
    assert text.startswith("A chat between a curious user")
    assert text.endswith("USER: <image>\nIs it? ASSISTANT:")


@pytest.mark.parametrize(
    ("family", "simple", "limit"),
    [
        ("llava", False, 1024),
        ("qwen2_vl", False, 128),
        ("qwen2_5_vl", False, 128),
        ("qwen2_5_vl", True, 32768),
        ("qwen3_vl", False, 128),
        ("qwen3_vl", True, 128),
        ("internvl", False, 1024),
        ("internvl_remote", True, 1024),
        ("video_llava", True, 1024),
    ],
)
def test_generation_arguments(runner: Callable[..., Runner], family: str, simple: bool, limit: int) -> None:
    made = runner(family, simple=simple)
    arguments = made.family.generation({"until": ["\n\n"], "do_sample": False})
    assert arguments["max_new_tokens"] == limit
    assert arguments["do_sample"] is False
    assert arguments["num_beams"] == 1
    assert made.family.generation({"max_new_tokens": 7, "num_beams": 2})["max_new_tokens"] == 7
    if family != "internvl_remote":  # lmms-eval's adapter for remote code drops the temperature
        sampling = made.family.generation({"temperature": 0.5, "top_p": 0.9, "top_k": 3})
        assert (sampling["do_sample"], sampling["temperature"], sampling["top_p"]) == (True, 0.5, 0.9)
        assert sampling["top_k"] == 3
