"""What a sweep of ten methods costs, in evaluations of the unchanged model: ``python -m tests.benchmarks.sweep``.

A load has the shape of a benchmark: so many questions about each image. In each round the same documents are answered
by all methods in three ways, one after the other, so that what else the machine does falls on all of them: each prompt
for itself (``sharing=off``), method after method with questions sharing their image, and all methods together while an
image is at hand, the later ones being served from the answer book. One evaluation is that of the unchanged model with
``sharing=off``. On a CPU, CPU time is compared; on a GPU, wall time.

Before the rounds all of them answer about one more image, which holds what happens once for each run and method.

With its defaults it takes about 15 minutes of an idle core.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.checkpoints import SIZES, make_checkpoint
from tests.benchmarks.loads import LOADS, make_documents, requests_of
from tests.benchmarks.throughput import interval
from vtw_eval.files import write_atomically
from vtw_eval.tables import Table, markdown

METHODS = (
    "baseline",
    *(f"vtw,k={k}" for k in (2, 4, 6, 8, 10)),
    *("fastv,k=2,r=0.5", "random_vision,k=2,r=0.5", "downsample,r=0.5", "tome"),
)
OFF, APART, TOGETHER = "`sharing=off`", "method after method", "together"


class Arms:
    """The ways of answering, on one loaded model.

    Parameters
    ----------
    pretrained
        Folder of the checkpoint.
    options
        Of the command line.
    """

    def __init__(self, pretrained: str, options: argparse.Namespace) -> None:
        from vtw_eval.model_adapters.lmms.models import model_class
        from vtw_eval.models.book import BookRunner

        class Booked(model_class("llava_vtw")):  # type: ignore[misc]
            runner_class = BookRunner

        given = {"device": options.device, "batch_size": options.batch_size, "method": "baseline", "verify": False}
        self.model = Booked(pretrained=pretrained, **given)
        self.options = options

    def show(self, dataset: Any) -> None:
        """Let the model see documents."""
        self.model.task_dict = {"load": {"test": dataset}}
        self.texts = dataset["question"]

    def off(self, spec: str, documents: Sequence[int]) -> list[str]:
        """Answer each prompt for itself."""
        object.__setattr__(self.model.runner.options, "sharing", "off")
        try:
            return self.apart(spec, documents)
        finally:
            object.__setattr__(self.model.runner.options, "sharing", "auto")

    def apart(self, spec: str, documents: Sequence[int]) -> list[str]:
        """Answer with questions sharing their image."""
        from vtw_eval.methods import parse_method

        self.model.runner.exchange(parse_method(spec))
        requests = requests_of(documents, self.options.new_tokens, self.texts, simple=False)
        return [result.text for result in self.model.generate_until(requests)]

    def together(self, specs: Sequence[str], documents: Sequence[int], folder: Path) -> list[list[str]]:
        """Answer with all methods, one cell after the other as a sweep does."""
        from vtw_eval.record.book import Book, Together

        book, found = Book(folder), []
        for number, spec in enumerate(specs):
            self.model.runner.together = Together(book, {spec: spec for spec in specs[number:]})
            found.append(self.apart(spec, documents))
        self.model.runner.together = None
        return found

    def seconds(self, work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
        """Return how long work takes, and what it gives."""
        begin = self._now()
        found = work(*given)
        return self._now() - begin, found

    def _now(self) -> float:
        if torch.device(self.options.device).type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(arms: Arms, kind: str, options: argparse.Namespace, tell: Progress, scratch: Path) -> list[list[str]]:
    """Return the lines of the table for a load."""
    load, methods = LOADS[kind], options.methods
    size = load.images * load.questions
    arms.show(make_documents(load, options.rounds * load.images + 1))
    warm = range(options.rounds * size, options.rounds * size + load.questions)
    bar = tell.add_task(kind, total=(options.rounds + 1) * (2 * len(methods) + 1))
    one: list[float] = []
    taken: dict[str, list[float]] = {OFF: [], APART: [], TOGETHER: []}
    differ = {APART: 0, TOGETHER: 0}
    for number in (-1, *range(options.rounds)):
        documents = warm if number < 0 else range(number * size, (number + 1) * size)
        found: dict[str, list[list[str]]] = {OFF: [], APART: []}
        spent = {OFF: 0.0, APART: 0.0}
        for spec in methods:
            for name, answer in ((OFF, arms.off), (APART, arms.apart)):
                seconds, answers = arms.seconds(answer, spec, documents)
                found[name].append(answers)
                spent[name] += seconds
                if number >= 0 and (name, spec) == (OFF, methods[0]):
                    one.append(seconds)
                tell.advance(bar)
        folder = scratch / f"{kind} {number}"
        spent[TOGETHER], found[TOGETHER] = arms.seconds(arms.together, methods, documents, folder)
        tell.advance(bar)
        if number >= 0:
            for name, seconds in spent.items():
                taken[name].append(seconds)
            for name in differ:
                pairs = zip(found[name], found[OFF], strict=True)
                differ[name] += sum(a != b for mine, right in pairs for a, b in zip(mine, right, strict=True))
    of = options.rounds * size * len(methods)
    shape = f"{kind} ({load.questions} about an image)"
    return [
        [
            shape,
            name,
            interval([a / b for a, b in zip(values, one, strict=True)]),
            f"{1000 * statistics.fmean(values) / size / len(methods):.1f}",
            "" if name == OFF else f"{differ[name]} of {of}",
        ]
        for name, values in taken.items()
    ]


def report(lines: Sequence[Sequence[str]], options: argparse.Namespace) -> str:
    """Return the page."""
    size = SIZES[options.size]
    cpu = torch.device(options.device).type == "cpu"
    machine = f"{torch.get_num_threads()} threads of {platform.machine()}" if cpu else torch.cuda.get_device_name()
    headers = ["load", "how", "evaluations", "ms/answer", "answers that differ from `sharing=off`"]
    about = (
        f"{len(options.methods)} methods: {', '.join(options.methods)}. One evaluation is that of the first of them "
        f"with `sharing=off`. {'CPU' if cpu else 'Wall'} time, {options.rounds} rounds, interleaved; means of the "
        "rounds' ratios with 95 % intervals by Student's t, without what happens once for each run and method. "
        f"Pictures of 640x480, random weights, {size.layers} layers of {size.hidden}, {options.new_tokens} new tokens, "
        f"batch {options.batch_size}, {options.dtype}, {machine}."
    )
    made = f"Made by `{' '.join(['python -m tests.benchmarks.sweep', *sys.argv[1:]])}` with torch {torch.__version__}."
    title = "# What a sweep costs, in evaluations of the unchanged model"
    return "\n\n".join([title, markdown(Table(headers, list(map(list, lines)), words=2)), about, made]) + "\n"


def main() -> None:
    """Measure, and print or write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["pope", "mme"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="specs; the first one is the evaluation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model; tiny shows whether this runs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, help="file for the table (Markdown); printed in any case")
    options = parser.parse_args()
    if options.size == "tiny" and options.methods == list(METHODS):
        options.methods = ["baseline", "vtw,k=1", "fastv,k=1,r=0.5", "downsample,r=0.5", "tome"]
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name, Progress(console=Console(stderr=True)) as tell:
        checkpoint = Path(name) / "checkpoint"
        make_checkpoint("llava", checkpoint, SIZES[options.size], getattr(torch, options.dtype))
        arms = Arms(str(checkpoint), options)
        for kind in options.loads:
            lines += measure(arms, kind, options, tell, Path(name))
            if options.output is not None:
                write_atomically(options.output, report(lines, options))
    print(report(lines, options))


if __name__ == "__main__":
    main()
