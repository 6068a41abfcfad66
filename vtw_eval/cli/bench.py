"""``vtw-eval bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtw_eval.cli.app import app, user_errors
from vtw_eval.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress
    from transformers import PreTrainedConfig

    from vtw_eval.cost.bench.run import BenchPlan
    from vtw_eval.verify.verdict import Verdict


@app.command(
    epilog="Examples: vtw-eval bench --geometry llava-0.5b --device cpu --method "
    "vtw --method fastv,k=2,r=0.5 -o results/bench; what choosing takes, of all methods: vtw-eval bench "
    "--geometry llava-0.5b --method all --output-tokens 2 --repeats 5 -o choice"
)
def bench(
    geometry: Annotated[
        str | None, typer.Option(help="Random weights of this shape: a preset, shapes, or a folder with a config.json.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead: a checkpoint, folder or Hub id; shapes is the embedded one.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method spec, such as vtw,k=16; several times for several; all for all methods that the model takes, "
            "with the defaults of those that are not named beside it. The baseline is always there."
        ),
    ] = None,
    text: Annotated[int, typer.Option(help="Text tokens of the prompt.")] = 66,
    vision: Annotated[int | None, typer.Option(help="Vision tokens. Default: of one image.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    output_tokens: Annotated[int, typer.Option(help="Tokens to make; nothing stops earlier.")] = 16,
    attn: Annotated[str, typer.Option(help="Attention implementations, such as sdpa,eager.")] = "sdpa",
    dtype: Annotated[str | None, typer.Option(help="Default: bfloat16 on a GPU, float32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed rounds; each runs every method once.")] = 7,
    warmup: Annotated[int, typer.Option(help="Rounds before them that do not count.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the decoder layers with torch.compile; hooks stay outside.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of weights, prompts and the order of runs.")] = 0,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare methods with masked attention first; the results say so."),
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for bench.json and bench.md.")] = None,
) -> None:
    """Measure latency and memory of methods beside their FLOPs, interleaved, as ratios to the unchanged model.

    The last table shows what choosing takes: time of each method's choices, and its share of the decoder prefill.
    """
    import torch

    from vtw_eval.cost.bench.choosing import every_method, without_repeats
    from vtw_eval.cost.bench.run import (
        BenchPlan,
        bench_of,
        compile_layers,
        measure,
        parse_methods,
    )
    from vtw_eval.cost.bench.subject import load_subject, random_subject
    from vtw_eval.cost.bench.table import bench_markdown
    from vtw_eval.cost.bench.timing import clock_for
    from vtw_eval.cost.presets import get_geometry
    from vtw_eval.files import write_atomically
    from vtw_eval.runtime import parse_dtype, pick_device
    from vtw_eval.verify.verdict import skipped

    with user_errors("bench", (ValueError, OSError, RuntimeError, ImportError)):
        if (geometry is None) == (model is None):
            raise ValueError("give one of --geometry NAME and --model CHECKPOINT.")
        named = [spec for spec in method or [] if spec != "all"]
        if threads is not None:
            torch.set_num_threads(threads)
        where = pick_device(device)
        clock_for(where)  # a device that cannot be timed is told before a model is made
        kind = parse_dtype(dtype or ("bfloat16" if where.type == "cuda" else "float32"))
        if geometry is not None:
            shape = get_geometry(geometry)
            chosen = parse_methods(named, shape.layers)  # a mistake is told before the weights are made
            subject = random_subject(shape, kind, where, seed)
        else:
            assert model is not None
            subject = load_subject(model, kind, where)
            chosen = parse_methods(named, subject.geometry.layers)
        left_out: dict[str, str] = {}
        if "all" in (method or []):
            every, left_out = every_method(subject.model)
            chosen = without_repeats(every, chosen)
            left_out = {key: why for key, why in left_out.items() if key not in {one.key for one in chosen.values()}}
        tokens = subject.geometry.vision_tokens if vision is None else vision
        if tokens is None:
            raise ValueError(f"{subject.geometry.name} has no fixed number of vision tokens: give --vision.")
        plan = BenchPlan(
            methods=chosen,
            text=text,
            vision=tokens,
            batches=_numbers(batch),
            attentions=[part.strip() for part in attn.split(",")],
            output_tokens=output_tokens,
            rounds=repeats,
            warmup=warmup,
            seed=seed,
        )
        with progress_bar() as progress:
            verdict = skipped("--no-verify") if no_verify else _verify(subject.model.config, plan, progress)
            if compiled:
                if not warmup:
                    raise ValueError("--compile needs --warmup 1 or more: the first run of each method compiles.")
                compile_layers(subject)
            task = progress.add_task("runs", total=plan.runs)
            settings = measure(subject, plan, advance=lambda: progress.advance(task))
        command = shlex.join(["vtw-eval", *sys.argv[1:]])
        found = bench_of(
            subject, plan, settings, compiled=compiled, command=command, verdict=str(verdict), left_out=left_out
        )
        document = bench_markdown(found)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / "bench.json", found.model_dump_json(indent=1) + "\n")
            write_atomically(output / "bench.md", document)
    typer.echo(document, nl=False)
    if any(row.status == "failed" for setting in settings for row in setting.rows):
        raise typer.Exit(1)


def _verify(config: PreTrainedConfig, plan: BenchPlan, progress: Progress) -> Verdict:
    """Compare each method of a plan with masked attention, under each of its attention implementations."""
    from vtw_eval.verify.verdict import verify_config

    pairs = [(attention, method) for attention in plan.attentions for method in plan.named.values()]
    task = progress.add_task("checks", total=len(pairs))
    for attention, method in pairs:
        verdict = verify_config(config, method, attention)
        progress.advance(task)
    return verdict


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--batch {text!r}: write numbers with commas between them, such as 1,8.") from None
