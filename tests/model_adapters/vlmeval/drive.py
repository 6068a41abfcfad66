"""Run VLMEvalKit evaluations in one process: ``python -m tests.model_adapters.vlmeval.drive JOBS.json OUT.json``.

A process of its own, because the kit reads the environment; one for all, because importing it takes longer than a tiny
model does. With any other arguments it is ``vtw-vlmeval`` on tables that are not the official ones.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.kit_data import accept_any_sum


@contextlib.contextmanager
def cuda_is_cpu(tile: int) -> Iterator[None]:
    """Let the kit's own classes, which are written for a GPU, run without one.

    Parameters
    ----------
    tile
        Side of an image tile in pixels, for the class that takes 448 whatever the checkpoint says.
    """
    import torch
    from transformers import (
        AutoModelForImageTextToText,
        BatchFeature,
        LlavaNextProcessor,
        LlavaProcessor,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLForConditionalGeneration,
    )
    from vlmeval.vlm.internvl import internvl_chat
    from vlmeval.vlm.qwen2_vl import model as qwen2
    from vlmeval.vlm.qwen3_vl import model as qwen3

    def elsewhere(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: original(self, *("cpu" if a == "cuda" else a for a in args), **kwargs)

    def without_flash(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: original(*args, **{**kwargs, "attn_implementation": "sdpa"})

    def text_first(original: Callable[..., Any]) -> Callable[..., Any]:
        # transformers 5 no longer takes text and images in this order, in which the class LLaVA_Next has them
        return lambda self, text, images=None, **kwargs: original(self, images=images, text=text, **kwargs)

    with contextlib.ExitStack() as stack:
        change = lambda *given: stack.enter_context(mock.patch.object(*given))  # noqa: E731
        change(torch.nn.Module, "cuda", lambda self, *args: self)
        change(torch.Tensor, "cuda", lambda self, *args: self)
        for cls in (torch.Tensor, torch.nn.Module, BatchFeature):
            change(cls, "to", elsewhere(cls.to))
        for opener in (
            Qwen2VLForConditionalGeneration,
            Qwen2_5_VLForConditionalGeneration,
            AutoModelForImageTextToText,
        ):
            change(opener, "from_pretrained", without_flash(opener.from_pretrained))
        for processor in (LlavaProcessor, LlavaNextProcessor):
            change(processor, "__call__", text_first(processor.__call__))
        for module in (qwen2, qwen3):
            change(module, "get_gpu_memory", lambda: [80_000])
        change(internvl_chat, "load_image", functools.partial(internvl_chat.load_image, input_size=tile))
        yield


def prompts_of(model: Any, prompts: list[list[int]], longest: set[int]) -> Any:
    """Note the ids of every prompt that a transformers model is asked to continue, and for how long; make it short."""
    original = model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        prompts.append(kwargs["input_ids"][0].tolist())
        longest.add(kwargs["max_new_tokens"])
        return original(*args, **{**kwargs, "max_new_tokens": 12})

    return mock.patch.object(model, "generate", generate)


def ask(model: Any, transformers_model: Any, datasets: list[Any]) -> dict[str, Any]:
    """Return answers and prompts of a model of the kit by dataset."""
    from vtw_eval.model_adapters.vlmeval.evaluate import evaluate

    found: dict[str, Any] = {}
    for dataset in datasets:
        prompts: list[list[int]] = []
        longest: set[int] = set()
        name = dataset if isinstance(dataset, str) else dataset["dataset"]
        with prompts_of(transformers_model, prompts, longest), tempfile.TemporaryDirectory() as folder:
            result = evaluate(model, "model", dataset, work_dir=Path(folder))
        table = result.predictions
        found[name] = {"answers": list(table["prediction"]), "prompts": prompts, "longest": list(longest)}
        found[name]["metrics"] = result.metrics
        if "extra_records" in table:
            found[name]["costs"] = list(table["extra_records"])
    return found


def command(words: list[str], environment: dict[str, str], keep: str | None) -> dict[str, Any]:
    """Run our command line and return its exit status, what it wrote, and the answers in a table if one is named."""
    from vtw_eval.model_adapters.vlmeval import cli as vlmeval_cli
    from vtw_eval.model_adapters.vlmeval.files import read_predictions

    errors, output = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(output),
        mock.patch.object(sys, "argv", ["vtw-vlmeval", *words]),
        mock.patch.dict(os.environ, environment),
    ):
        try:
            vlmeval_cli.main()
        except SystemExit as error:
            code = error.code
    found = {"code": code, "stderr": errors.getvalue(), "stdout": output.getvalue()}
    if keep is not None and Path(keep).exists():
        table = read_predictions(Path(keep))
        found["answers"], found["costs"] = list(table["prediction"]), list(table["extra_records"])
    return found


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job."""
    import vlmeval.vlm

    if "command" in job:
        return command(job["command"], job.get("environment", {}), job.get("keep"))
    if job.get("ours"):
        model = getattr(vlmeval.vlm, job["class"])(**job["arguments"])
        return ask(model, model.runner.family.model, job["datasets"])
    with cuda_is_cpu(tile=56):
        model = getattr(vlmeval.vlm, job["class"])(**job["arguments"])
        return ask(model, model.model, job["datasets"])


def main() -> None:
    """Command line."""
    accept_any_sum()
    if len(sys.argv) != 3 or not sys.argv[1].endswith(".json"):
        from vtw_eval.model_adapters.vlmeval import cli as vlmeval_cli

        vlmeval_cli.main()
        return
    from vtw_eval.model_adapters.vlmeval.registry import register

    register()
    found: dict[str, Any] = {}
    for name, job in json.loads(Path(sys.argv[1]).read_text()).items():
        try:
            found[name] = run(job)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
