"""Latency and memory of methods, all interleaved in one run and compared with the unchanged model.

The design is that of VTW's Table 4 (https://arxiv.org/abs/2405.05803), but for one thing: methods are not timed one
after another, and each is divided by the baseline of the same round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import DynamicCache

from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.bench.choosing import TimedChoice
from vtw_eval.cost.bench.found import BASELINE, Bench, BenchRow, Ratios, Setting, Timings
from vtw_eval.cost.bench.memory import peak_bytes
from vtw_eval.cost.bench.subject import BenchPrompt, Subject, make_prompt
from vtw_eval.cost.bench.timing import Clock, Spread, clock_for, interleaved, paired_ratios, spread
from vtw_eval.cost.choice import choice_flops
from vtw_eval.cost.exact import exact_decode_flops, exact_prefill_flops
from vtw_eval.cost.geometry import Geometry
from vtw_eval.cost.kv import kv_cache_bytes
from vtw_eval.engine import Trace
from vtw_eval.engine.calls import with_cache
from vtw_eval.methods import Baseline, Method, parse_method
from vtw_eval.runtime import device_name, environment_line, free_memory, is_out_of_memory
from vtw_eval.versions import UpstreamChangedError


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to measure.

    Parameters
    ----------
    methods
        By the name that tables show; the baseline is always measured.
    text, vision
        Tokens of a prompt.
    batches, attentions
        Every pair is a setting.
    output_tokens
        Tokens to make, the first one by the prefill; end-of-text tokens do not stop it.
    rounds, warmup
        Runs of each method that count, and runs before them that do not.
    seed
        Of prompts and of the order within rounds.
    """

    methods: Mapping[str, Method]
    text: int
    vision: int
    batches: Sequence[int] = (1,)
    attentions: Sequence[str] = ("sdpa",)
    output_tokens: int = 16
    rounds: int = 7
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("output tokens", self.output_tokens, 2),
            ("repeats", self.rounds, 1),
            ("warm-up runs", self.warmup, 0),
            *(("batch size", batch, 1) for batch in self.batches),
        ):
            if value < least:
                raise ValueError(f"{value} is out of range: {name} must be {least} or more.")

    @property
    def named(self) -> dict[str, Method]:
        """All methods, the baseline first."""
        return {BASELINE: Baseline(), **{name: m for name, m in self.methods.items() if m != Baseline()}}

    @property
    def runs(self) -> int:
        """Number of runs, for a progress bar: warm-up, one for memory, and the timed rounds."""
        each = self.warmup + 1 + self.rounds
        return len(self.named) * len(self.batches) * len(self.attentions) * each


def parse_methods(specs: Sequence[str], layers: int) -> dict[str, Method]:
    """Make methods from their specs (:func:`vtw_eval.methods.parse_method`), before any model is made.

    Parameters
    ----------
    specs
        Such as ``vtw,k=16``.
    layers
        Decoder layers of the model.

    Returns
    -------
    dict
        Methods by their spec, in order, without repetition.

    Raises
    ------
    ValueError
        For a spec that means nothing, ``k=search``, or a k beyond the layers.
    """
    found: dict[str, Method] = {}
    for spec in specs:
        method = parse_method(spec)
        if method.search is not None:
            raise ValueError(f"{spec}: k=search has nothing to search on here; give k as a number.")
        for name, value in method.params().items():
            if name.rpartition(".")[2] in ("k", "low", "high") and isinstance(value, int) and value > layers:
                raise ValueError(f"{name}={value} is out of range: the model has {layers} decoder layers.")
        if method not in found.values():
            found["".join(spec.split())] = method
    return found


@dataclass(frozen=True)
class BenchOutcome:
    """What one run gave."""

    timings: Timings
    kv_bytes: int
    tokens_per_layer: torch.Tensor
    """Long ``[rows, layers]``, from the trace."""
    updated_per_layer: torch.Tensor
    """The same of tokens that the layers updated."""
    choice_flops: int = 0
    """Of the batch, see :func:`vtw_eval.cost.choice.choice_flops`."""


BenchRunner = Callable[[Subject, BenchPrompt, Method, int, Clock], BenchOutcome]


@torch.no_grad()
def run_once(subject: Subject, prompt: BenchPrompt, method: Method, output_tokens: int, clock: Clock) -> BenchOutcome:
    """Embed a batch of prompts, run the decoder on it, and make a fixed number of tokens greedily.

    Parameters
    ----------
    subject, prompt
        What runs on what.
    method
        Installed before the clock starts, as it is once for many prompts in use. The baseline is not installed: it
        is the model without any hook.
    output_tokens
        Tokens to make.
    clock
        Marks begin and end of each phase.
    """
    model, mask = subject.model, prompt.mask
    plain = method == Baseline()
    timed = TimedChoice(method=method, clock=clock)
    install = nullcontext() if plain else timed(model, vision_mask=prompt.vision, prompt_ids=prompt.ids)
    with install as trace:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        start = clock.mark()
        embedded = prompt.embed(model)
        seen = clock.mark()
        step = {"use_cache": True, "logits_to_keep": 1}
        output = model(**with_cache(model, {"inputs_embeds": embedded, "attention_mask": mask, **step}, cache))
        token = output.logits[:, -1:].argmax(dim=-1)
        marks = [clock.mark()]
        kv_bytes = sum(getattr(layer, kind).nbytes for layer in cache.layers for kind in ("keys", "values"))
        for _ in range(output_tokens - 1):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = model(**with_cache(model, {"input_ids": token, "attention_mask": mask, **step}, cache))
            token = output.logits[:, -1:].argmax(dim=-1)
            marks.append(clock.mark())
    tokens = torch.full((len(mask), subject.geometry.layers), prompt.ids.shape[1])
    return BenchOutcome(
        Timings(
            vision=clock.seconds(start, seen),
            prefill=clock.seconds(seen, marks[0]),
            steps=tuple(clock.seconds(a, b) for a, b in itertools.pairwise(marks)),
            choice=None if plain else timed.seconds(),
        ),
        kv_bytes,
        tokens if trace is None else trace.tokens_per_layer,
        tokens if trace is None else trace.updated_per_layer,
        0 if trace is None else _choice_flops(trace, subject.geometry),
    )


def _choice_flops(trace: Trace, geometry: Geometry) -> int:
    """Return the FLOPs of the choices of a method that was timed."""
    assert isinstance(trace.method, TimedChoice)
    return sum(choice_flops(replace(trace, method=trace.method.method), geometry).values())


@dataclass
class _Measured:
    """What is known of one method in one setting."""

    runs: dict[int, Timings] = field(default_factory=dict)
    outcome: BenchOutcome | None = None
    peak: int | None = None
    status: Literal["done", "out of memory", "failed"] = "done"
    error: str = ""


def measure(
    subject: Subject,
    plan: BenchPlan,
    *,
    clock: Clock | None = None,
    advance: Callable[[], None] = lambda: None,
    run: BenchRunner = run_once,
) -> list[Setting]:
    """Measure all methods of a plan in all its settings.

    Parameters
    ----------
    subject
        What to measure.
    plan
        How.
    clock
        By default that of the model's device.
    advance
        Called after each run, for a progress bar.
    run
        How a method runs once.

    Returns
    -------
    list of Setting
        A method that runs out of memory or fails is reported so in its row, and the others go on.
    """
    clock = clock or clock_for(subject.model.device)
    return [
        _setting(subject, plan, batch, attention, clock, advance, run)
        for attention in plan.attentions
        for batch in plan.batches
    ]


def bench_of(
    subject: Subject,
    plan: BenchPlan,
    settings: list[Setting],
    *,
    compiled: bool,
    command: str,
    verdict: str,
    left_out: Mapping[str, str] | None = None,
) -> Bench:
    """Put what was measured together with what it was measured on.

    Parameters
    ----------
    subject, plan, settings
        As in :func:`measure`, and what it returned.
    compiled
        Whether the decoder layers were (:func:`compile_layers`).
    command
        That asked for it.
    verdict
        Whether the methods were verified.
    left_out
        Methods that the model does not take, with the reason, where all were asked for.
    """
    return Bench(
        subject=subject.geometry.name,
        note=subject.note,
        model_bytes=sum(p.nbytes for p in subject.model.parameters()),
        device=device_name(subject.model.device),
        dtype=str(subject.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        rounds=plan.rounds,
        warmup=plan.warmup,
        seed=plan.seed,
        compiled=compiled,
        command=command,
        environment=f"{environment_line()}; methods {verdict}",
        settings=settings,
        left_out=dict(left_out or {}),
    )


def _setting(
    subject: Subject,
    plan: BenchPlan,
    batch: int,
    attention: str,
    clock: Clock,
    advance: Callable[[], None],
    run: BenchRunner,
) -> Setting:
    subject.model.set_attn_implementation(attention)
    prompt = make_prompt(subject, rows=batch, text=plan.text, vision=plan.vision, seed=plan.seed)
    found = {name: _Measured() for name in plan.named}

    def attempt(name: str, what: Callable[[Method], None]) -> None:
        measured = found[name]
        if measured.status == "done":
            try:
                what(plan.named[name])
            except (RuntimeError, MemoryError, ValueError) as error:
                short = is_out_of_memory(error)
                if not short and name == BASELINE:
                    raise
                measured.status = "out of memory" if short else "failed"
                measured.error = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if measured.status == "out of memory":  # outside the handler, whose traceback holds the tensors
                free_memory()
        advance()

    def once(name: str, i: int | None) -> None:
        def timed(method: Method) -> None:
            outcome = run(subject, prompt, method, plan.output_tokens, clock)
            found[name].outcome = outcome
            if i is not None:
                found[name].runs[i] = outcome.timings

        attempt(name, timed)

    def memory(name: str) -> None:
        def recorded(method: Method) -> None:
            found[name].peak = peak_bytes(
                lambda: run(subject, prompt, method, plan.output_tokens, clock), subject.model.device
            )

        attempt(name, recorded)

    for _, name in interleaved(list(found), plan.warmup, plan.seed + 1):
        once(name, None)
    for name in found:
        memory(name)
    for i, name in interleaved(list(found), plan.rounds, plan.seed):
        once(name, i)
    base, anatomy = found[BASELINE], find_anatomy(subject.model)

    def spec(name: str) -> str:
        method = plan.named[name]
        return str(method.bind(anatomy) if found[name].status == "done" else method)

    return Setting(
        batch=batch,
        attention=attention,
        text=plan.text,
        vision=plan.vision,
        output_tokens=plan.output_tokens,
        rows=[
            _row(name, measured, base, subject, batch, plan.output_tokens).model_copy(update={"spec": spec(name)})
            for name, measured in found.items()
        ],
    )


def _row(name: str, measured: _Measured, base: _Measured, subject: Subject, batch: int, output_tokens: int) -> BenchRow:
    outcome = measured.outcome
    if measured.status != "done" or outcome is None:
        return BenchRow(method=name, status=measured.status, error=measured.error)
    expected = int(kv_cache_bytes(outcome.tokens_per_layer, subject.geometry, subject.model.dtype.itemsize).sum())
    if outcome.kv_bytes != expected:
        return BenchRow(
            method=name,
            status="failed",
            error=f"the KV cache holds {outcome.kv_bytes} bytes where its trace says {expected}: the method did not do "
            "what it reports.",
        )
    prefill, decode = _flops(outcome, subject, output_tokens)
    runs, timed = measured.runs, subject.images is not None
    row = BenchRow(
        method=name,
        status="done",
        vision=spread([t.vision for t in runs.values()]) if timed else None,
        prefill=spread([t.prefill for t in runs.values()]),
        first_token=spread([t.first_token for t in runs.values()]) if timed else None,
        step=spread([t.step for t in runs.values()]),
        tokens_per_second=spread([batch * output_tokens / t.total for t in runs.values()]) if timed else None,
        choice=_spread([t.choice for t in runs.values()]),
        choice_share=_spread([None if t.choice is None else t.choice / t.prefill for t in runs.values()]),
        choice_flops=outcome.choice_flops,
        peak_bytes=measured.peak,
        kv_bytes=outcome.kv_bytes,
        prefill_flops=prefill,
        decode_flops=decode,
        tokens_per_layer=outcome.tokens_per_layer.double().mean(dim=0).tolist(),
        runs=runs,
    )
    if base.status != "done" or base.outcome is None:
        return row
    base_prefill, base_decode = _flops(base.outcome, subject, output_tokens)

    def ratio(phase: str) -> Spread:
        ours, theirs = ({i: getattr(t, phase) for i, t in of.items()} for of in (runs, base.runs))
        return spread(paired_ratios(ours, theirs))

    choices = {i: t.choice for i, t in runs.items() if t.choice is not None}
    prefills = {i: t.prefill for i, t in base.runs.items()}

    ratios = Ratios(
        vision=ratio("vision") if timed else None,
        prefill=ratio("prefill"),
        first_token=ratio("first_token") if timed else None,
        step=ratio("step"),
        choice=_spread(paired_ratios(choices, prefills)),
    )
    return row.model_copy(
        update={
            "ratios": ratios,
            "prefill_flops_ratio": prefill / base_prefill,
            "decode_flops_ratio": decode / base_decode,
            "prefill_over_flops": ratios.prefill.median / (prefill / base_prefill),
        }
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of what was measured, None if nothing was."""
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def _flops(outcome: BenchOutcome, subject: Subject, output_tokens: int) -> tuple[float, float]:
    tokens = outcome.tokens_per_layer
    prefill = exact_prefill_flops(tokens, subject.geometry, updated=outcome.updated_per_layer, head="last").sum()
    steps = [exact_decode_flops(tokens + j, subject.geometry).sum() for j in range(1, output_tokens)]
    return float(prefill), float(torch.stack(steps).mean())


def recompile_limit() -> str:
    """Return how this torch calls the limit of recompilations; its public name came after torch 2.6.

    Raises
    ------
    UpstreamChangedError
        If it has neither name, so that layers would silently run uncompiled.
    """
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            return name
    raise UpstreamChangedError("torch.compile has no limit of recompilations", "torch")


def compile_layers(subject: Subject) -> None:
    """Compile the forward of each decoder layer, with lengths that may change; hooks stay outside.

    A method that cannot run on compiled layers shows as failed in its row: its KV cache is compared with its trace.
    """
    layers = find_anatomy(subject.model).layers
    # Each layer is compiled for itself (it knows its index), and again for a prefill, a decode step and new masks.
    config: Any = torch._dynamo.config
    limit = recompile_limit()
    setattr(config, limit, max(getattr(config, limit), 8 * len(layers)))
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
