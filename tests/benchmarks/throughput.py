"""Documents a second under lmms-eval, ours against its own adapters: ``python -m tests.benchmarks.throughput``.

Loads have the shape of benchmarks: so many questions about each image, in rounds. In each round lmms-eval's own adapter
at batch 1, ours without sharing and ours with it answer the same documents one after the other, so that what else the
machine does falls on all three. On a CPU, CPU time is compared; on a GPU, wall time.

Before the rounds all of them answer about one more image, ours twice: the first time holds what happens once for each
run and method (the check in the run, of the first images that share), which the table shows apart from the rounds.

With its defaults it takes about 10 minutes of an idle core; ``--adapters llava_vtw qwen2vl_vtw internvl_vtw --loads
pope mme --methods baseline`` about as long, and everything about 40. ``-o`` writes what is known after each load.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.checkpoints import SIZES, make_checkpoint
from tests.benchmarks.loads import LOADS, Load, make_documents, requests_of
from vtw_eval.files import write_atomically
from vtw_eval.tables import Table, markdown


@dataclass(frozen=True)
class Stock:
    """lmms-eval's own adapter beside one of ours."""

    name: str
    module: str
    class_name: str
    family: str
    """Of the checkpoint."""
    simple: bool = False
    """Whether it knows lmms-eval's simple protocol only."""


STOCK = {
    "llava_vtw": Stock("llava_hf", "lmms_eval.models.chat.llava_hf", "LlavaHf", "llava"),
    "qwen2vl_vtw": Stock("qwen2_vl", "lmms_eval.models.simple.qwen2_vl", "Qwen2_VL", "qwen2_vl", simple=True),
    "internvl_vtw": Stock("internvl_hf", "lmms_eval.models.chat.internvl_hf", "InternVLHf", "internvl"),
}

OURS = ("alone", "shared")


@dataclass
class Contest:
    """lmms-eval's own adapter and ours on one checkpoint."""

    adapter: str
    options: argparse.Namespace
    models: dict[str, Any] = field(default_factory=dict)

    def open(self, folder: Path) -> None:
        """Make the checkpoint and open it three times."""
        from vtw_eval.model_adapters.lmms.models import model_class

        stock, device = STOCK[self.adapter], self.options.device
        dtype = getattr(torch, self.options.dtype)
        make_checkpoint(stock.family, folder, SIZES[self.options.size], dtype)
        own: Any = getattr(import_module(stock.module), stock.class_name)
        self.models["stock"] = own(pretrained=str(folder), device=device, device_map=device, batch_size=1)
        self.models["stock"].model.to(dtype)  # internvl_hf opens everything in bfloat16, which is slow on CPUs
        given = {"device": device, "batch_size": self.options.batch_size, "method": "baseline", "verify": False}
        for name, sharing in zip(OURS, ("off", "auto"), strict=True):
            cls = model_class(self.adapter, simple=stock.simple)
            self.models[name] = cls(pretrained=str(folder), sharing=sharing, **given)

    def show(self, dataset: Any) -> None:
        """Let all of them see documents."""
        for model in self.models.values():
            model.task_dict = {"load": {"test": dataset}}

    def answer(self, name: str, documents: Sequence[int], texts: Sequence[str]) -> tuple[float, list[str]]:
        """Return seconds and answers."""
        requests = requests_of(documents, self.options.new_tokens, texts, simple=STOCK[self.adapter].simple)
        begin = self._now()
        results = self.models[name].generate_until(requests)
        seconds = self._now() - begin
        return seconds, [result if isinstance(result, str) else result.text for result in results]

    def _now(self) -> float:
        if torch.device(self.options.device).type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def interval(ratios: Sequence[float]) -> str:
    """Return the mean of ratios with a 95 % interval over rounds, by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(ratios)
    if len(ratios) < 2:
        return f"{mean:.2f}"
    half = t.ppf(0.975, len(ratios) - 1) * statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def measure(contest: Contest, kind: str, tell: Progress) -> list[list[str]]:
    """Return a line of the table for each method on a load."""
    load: Load = LOADS[kind]
    options = contest.options
    size = load.images * load.questions
    dataset = make_documents(load, options.rounds * load.images + 1)
    texts = dataset["question"]
    tokenizer = contest.models["shared"].runner.family.tokenizer
    words = statistics.fmean(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))
    warm = range(options.rounds * size, options.rounds * size + load.questions)
    contest.show(dataset)
    bar = tell.add_task(f"{contest.adapter}, {kind}", total=options.rounds * (1 + 2 * len(options.methods)))
    contest.answer("stock", warm[:1], texts)
    columns = [("stock", ""), *((name, spec) for spec in options.methods for name in OURS)]
    once: dict[str, float] = {}
    for name, spec in columns[1:]:
        _install(contest, name, spec)
        first, _ = contest.answer(name, warm, texts)
        again, _ = contest.answer(name, warm, texts)
        if name == "shared":
            once[spec] = first - again
    seconds: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
    answers: dict[tuple[str, str], list[str]] = {column: [] for column in columns}
    for number in range(options.rounds):
        for name, spec in columns:
            if spec:
                _install(contest, name, spec)
            taken, found = contest.answer(name, range(number * size, (number + 1) * size), texts)
            seconds[name, spec].append(taken)
            answers[name, spec] += found
            tell.advance(bar)
    stock = seconds["stock", ""]
    lines = []
    for spec in options.methods:
        alone, shared = (seconds[name, spec] for name in OURS)
        pairs = ((stock, alone), (stock, shared), (alone, shared))
        ratios = [interval([a / b for a, b in zip(x, y, strict=True)]) for x, y in pairs]
        right = answers["stock", ""] if spec == "baseline" else answers["alone", spec]
        differ = sum(a != b for a, b in zip(answers["shared", spec], right, strict=True))
        lines.append(
            [
                contest.adapter,
                f"{kind} ({load.questions} about an image, {words:.0f} tokens each)",
                spec,
                f"{1000 * statistics.fmean(stock) / size:.1f}",
                *ratios,
                f"{1000 * once[spec]:.0f}",
                f"{differ} of {len(right)}",
            ]
        )
    return lines


def _install(contest: Contest, name: str, spec: str) -> None:
    """Install a method on one of our models, if it is not there."""
    from vtw_eval.methods import parse_method

    runner = contest.models[name].runner
    method = parse_method(spec).bind(runner.anatomy)
    if runner.method != method:
        runner.exchange(method)


def report(lines: Sequence[Sequence[str]], options: argparse.Namespace) -> str:
    """Return the page."""
    headers = [
        "adapter", "load", "method", "ms/document, lmms-eval's own", "`sharing=off`, x its own",
        "`sharing=auto`, x its own", "x `sharing=off`", "once, ms", "answers that differ",
    ]  # fmt: skip
    size = SIZES[options.size]
    cpu = torch.device(options.device).type == "cpu"
    machine = f"{torch.get_num_threads()} threads of {platform.machine()}" if cpu else torch.cuda.get_device_name()
    own = ", ".join(f"`{STOCK[name].name}` for `{name}`" for name in options.adapters)
    about = (
        f"lmms-eval's own adapters, at batch 1: {own}. {'CPU' if cpu else 'Wall'} time, {options.rounds} rounds, "
        "interleaved; means of the rounds' ratios with 95 % intervals by Student's t. Once: what the first image that "
        "is shared takes longer than the same again, mostly the check in the run that the method keeps the same of an "
        "image alone as of a whole prompt; it happens once in a run for each method and is in none of the ratios. "
        "Answers are compared with lmms-eval's own for the baseline, else with `sharing=off`. Pictures of 640x480, "
        f"random weights, {size.layers} layers of {size.hidden}, {options.new_tokens} new tokens, batch "
        f"{options.batch_size}, {options.dtype}, {machine}."
    )
    command = " ".join(["python -m tests.benchmarks.throughput", *sys.argv[1:]])
    title = "# Documents a second under lmms-eval: what sharing images is worth"
    made = f"Made by `{command}` with torch {torch.__version__}."
    return "\n\n".join([title, markdown(Table(headers, list(map(list, lines)), words=3)), about, made]) + "\n"


def main() -> None:
    """Measure, and print or write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", choices=STOCK, default=["llava_vtw"])
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--methods", nargs="+", default=["baseline", "vtw,k=6"], help="of our adapters, each as a spec")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8, help="of our adapters")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model; tiny shows whether this runs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, help="file for the table (Markdown); printed in any case")
    options = parser.parse_args()
    lines: list[list[str]] = []
    with Progress(console=Console(stderr=True)) as tell:
        for adapter in options.adapters:
            with tempfile.TemporaryDirectory() as name:
                contest = Contest(adapter, options)
                contest.open(Path(name))
                for kind in options.loads:
                    lines += measure(contest, kind, tell)
                    if options.output is not None:
                        write_atomically(options.output, report(lines, options))
    print(report(lines, options))


if __name__ == "__main__":
    main()
