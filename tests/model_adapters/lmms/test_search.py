"""k=search: per task, on its first documents, printed and recorded."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.harness_data import picture, question
from vtw_eval import search_layer
from vtw_eval.model_adapters.lmms.search import search_task
from vtw_eval.models.runner import Request, Runner


def requests_of(task: str, numbers: range) -> list[Request]:
    """Make documents with one image each."""

    def build(i: int) -> Callable[[Any], Any]:
        content = [{"type": "image", "url": picture(i)}, {"type": "text", "text": question(i)}]
        return lambda family: family.chat_prompt([{"role": "user", "content": content}])

    return [Request(f"task {task}, doc_id {i}", i, {"max_new_tokens": 3}, build(i), task) for i in numbers]


def runner_of(checkpoint: Callable[[str], str], log: Callable[[str], None] = print, **arguments: Any) -> Runner:
    given = {"pretrained": checkpoint("llava"), **arguments}
    return Runner("llava_vtw", given, simple=False, device=torch.device("cpu"), log=log)


def test_each_task_gets_the_k_of_its_first_documents(checkpoint: Callable[[str], str]) -> None:
    messages: list[str] = []
    plain = runner_of(checkpoint, method="baseline")
    tasks = {"a": requests_of("a", range(9)), "b": requests_of("b", range(20, 29))}
    samples = {
        task: [plain.family.encode([request.build(plain.family)]).inputs for request in requests[:4]]
        for task, requests in tasks.items()
    }
    divergences = [search_layer(plain.family.model, prompts, start=0).divergence for prompts in samples.values()]
    eta = float((divergences[0] + divergences[1])[0] / 2)  # k=0 passes for one task only
    expected = {task: search_layer(plain.family.model, prompts, eta, 0).k for task, prompts in samples.items()}
    assert len(set(expected.values())) == 2
    made = runner_of(checkpoint, messages.append, k="search", samples=4, eta=eta, start=0, batch_size=4)
    mixed = [request for pair in zip(*tasks.values(), strict=True) for request in pair]
    answers = made.answer(mixed, progress=False)
    for request, answer in zip(mixed, answers, strict=True):
        k = expected[request.task]
        assert answer.costs.method == f"vtw,k={k},position=keep"
        fixed = runner_of(checkpoint, k=k).answer([request], progress=False)[0]
        assert fixed.text == answer.text
        assert fixed.costs.tokens_per_layer == answer.costs.tokens_per_layer
    for task, k in expected.items():
        assert any(m.startswith(f"{task}: vtw,k={k}") and "4 documents" in m for m in messages)
    count = len(messages)
    made.answer(tasks["a"], progress=False)
    assert len(messages) == count, "searched again"


def test_a_search_starts_where_it_is_told_and_reports_failure(checkpoint: Callable[[str], str]) -> None:
    made = runner_of(checkpoint, method="baseline")
    requests = requests_of("a", range(3))
    result = made.search(requests, 1e-30, start=1)
    assert (result.k, result.found, result.start) == (4, False, 1)
    assert "unchanged model" in result.advice()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": "serch"}, "search"),
        ({"k": 2, "eta": 0.1}, "belong to k=search"),
        ({"k": "search", "eta": -1}, "eta=-1"),
        ({"k": "search", "samples": 0}, "samples=0"),
        ({"k": "search", "start": 5}, "start=5"),
    ],
)
def test_wrong_search_options(checkpoint: Callable[[str], str], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runner_of(checkpoint, **arguments)


def test_where_a_search_cannot_be_right_it_is_refused(checkpoint: Callable[[str], str]) -> None:
    made = runner_of(checkpoint, k="search")
    with pytest.raises(ValueError, match="several processes"):
        made.refuse_search("several processes")
    runner_of(checkpoint, k=2).refuse_search("several processes")
    with pytest.raises(ValueError, match="search_layer"), made.method(made.family.model):
        pass


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("method=fastv", "what is searched is the k of vtw"),
        ("method=vtw,k=3", "what is searched is the k of vtw"),
        ("pretrained=a", "use --model"),
        ("dtype=float32,dtype=bfloat16", "'dtype' stands 2 times"),
        ("verify=False", "use --no-verify"),
        ("k=3", "unknown option 'k' of llava_vtw"),
    ],
)
def test_options_that_a_search_cannot_follow_are_refused(model_args: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_task("llava_vtw", "shapes", "shapes_vqa", 2, None, start=1, direction="vtw_full", model_args=model_args)


def test_command_line(
    run: Callable[..., subprocess.CompletedProcess[str]], script: str, checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    plot = tmp_path / "deep" / "kl.png"
    given = [f"{script}/vtw-eval", "search-k", "--model", checkpoint("llava"), "--device", "cpu", "--start", "1"]
    done = run(*given, "--task", "pope", "--samples", "3", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\d) ", done.stdout, re.MULTILINE)
    assert rows == ["1", "2", "3", "4"]
    assert re.search(r"k=[1-4] \(first mean KL below eta=0.003\)", done.stdout)
    assert plot.read_bytes().startswith(b"\x89PNG")
    wrong = run(*given, "--task", "pop")
    assert wrong.returncode == 2
    assert "unknown task 'pop'" in wrong.stderr
