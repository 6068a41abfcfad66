"""Every k at once against one evaluation and against one run per k: ``python -m tests.benchmarks.curve``.

CPU seconds of this process, interleaved; the documents are those of the tasks under lmms-eval.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from tests.benchmarks.search import SYSTEM, VISION, make_model
from vtw_eval.anatomy import find_anatomy
from vtw_eval.methods import VTW, Baseline
from vtw_eval.methods.vtw.curve import answer_curve, begin
from vtw_eval.model_adapters.lmms.collect import collect
from vtw_eval.models.curve import CurveRunner
from vtw_eval.models.runner import Answer, Request, Runner
from vtw_eval.tables import Table, markdown

ADAPTER = "llava_vtw"


def make(kind: type[Runner], pretrained: str, batch_size: int, sharing: str) -> Any:
    """Open the checkpoint."""
    given = {"pretrained": pretrained, "method": "baseline", "batch_size": batch_size, "sharing": sharing}
    return kind(ADAPTER, {**given, "verify": False}, simple=False, device=torch.device("cpu"), log=lambda line: None)


def timed(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def at(runner: Runner, k: int | None, requests: Sequence[Request]) -> list[Answer]:
    """Return the answers at k; None is the unchanged model."""
    runner.exchange(Baseline() if k is None else VTW(k=k))
    return runner.answer(requests, progress=False)


def random_geometry(layers: int, questions: Sequence[int], repeats: int) -> None:
    """Print the same for a random model of width 512 whose prompts have the lengths of LLaVA-1.5's, engine alone."""
    model = make_model(layers, 512)
    model.generation_config.pad_token_id = 0
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(0, 999, (count,), generator=generator).tolist()

    before = torch.tensor([words(SYSTEM) + [999] * VISION + words(1)])
    pixels = torch.randn(1, 3, 336, 336, generator=generator)
    own = [words(24 + i % 12) for i in range(max(questions))]
    anatomy, ks = find_anatomy(model), list(range(layers))

    def inputs(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def one(asked: list[int]) -> torch.Tensor:
        ids = torch.cat([before, torch.tensor([asked])], dim=1)
        return model.generate(**inputs(ids), max_new_tokens=4, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]

    def every(count: int) -> torch.Tensor:
        beginnings = begin(anatomy, inputs(before), ks)
        given: dict[str, Any] = {"kind": "boolean", "max_new_tokens": 4, "eos": [], "pad": 0}
        return answer_curve(anatomy, beginnings, [own[:count]], ks, **given)[0].tokens

    one(own[0])
    lines = []
    for count in questions:
        ratios = []
        for _ in range(repeats):
            alone = timed(partial(list, map(one, own[: min(count, 4)]))) / min(count, 4)
            ratios.append(timed(partial(every, count)) / count / alone)
        tokens, differ = every(count), 0
        for place, asked in enumerate(own[: min(count, 2)]):
            for k in (0, layers // 2, layers):
                with VTW(k=k)(model):
                    differ += int(not torch.equal(one(asked), tokens[k, place]))
        lines.append([str(count), str(differ), f"{statistics.median(ratios):.2f}", str(layers + 1)])
    print(f"\n{layers} layers, hidden 512, {SYSTEM} + {VISION} + 1 tokens and 24 to 35 of each question, batch 1:\n")
    print(markdown(Table(["questions", "answers that differ", "all k", "one run per k"], lines)))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", default="shapes")
    parser.add_argument("--tasks", default="shapes_mme,shapes_pope,shapes_ai2d,shapes_vqa,shapes_caption")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    size, pretrained = options.batch_size, options.pretrained
    alone, shared = (make(Runner, pretrained, size, sharing) for sharing in ("off", "auto"))
    ks = tuple(range(alone.anatomy.num_layers))
    lines = []
    for task in track(options.tasks.split(","), description="tasks", console=Console(stderr=True)):
        _, requests = collect(ADAPTER, {"pretrained": pretrained, "device": "cpu"}, task, options.limit)
        ratios: dict[str, list[float]] = {"curve": [], "shared": []}
        for _ in range(options.repeats):
            curve = make(CurveRunner, pretrained, size, "auto")
            curve.ks = ks
            one, together, every = (timed(partial(at, each, None, requests)) for each in (alone, shared, curve))
            ratios["shared"].append(together / one)
            ratios["curve"].append(every / one)
        differ = 0
        for k in (*ks, None):
            texts = [[answer.text for answer in at(each, k, requests)] for each in (curve, alone)]
            differ += sum(a != b for a, b in zip(*texts, strict=True))
        images = len({request.media for request in requests})
        row = [task, str(len(requests)), str(images), f"{differ} of {(len(ks) + 1) * len(requests)}"]
        lines.append(
            [*row, *(f"{statistics.median(ratios[name]):.2f}" for name in ("curve", "shared")), str(len(ks) + 1)]
        )
    print(f"# {len(ks)} k and the unchanged model at once\n")
    print(
        f"{pretrained}, batches of {size}, float32, {torch.get_num_threads()} threads of {platform.machine()}. In "
        f"evaluations of the unchanged model, each prompt for itself; medians of {options.repeats} interleaved runs.\n"
    )
    headers = ["task", "documents", "images", "answers that differ", "all k", "one k, shared", "one run per k"]
    print(markdown(Table(headers, lines)))
    random_geometry(12, (1, 2, 4, 18), options.repeats)
    print(f"\nMade by `python -m tests.benchmarks.curve` with torch {torch.__version__}.")


if __name__ == "__main__":
    main()
