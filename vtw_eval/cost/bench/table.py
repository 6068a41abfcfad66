"""A benchmark in Markdown: per setting a table laid out like Table 4 of the VTW paper, and what choosing takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from vtw_eval.cost.bench.found import BASELINE, Bench, BenchRow, Setting
from vtw_eval.cost.bench.timing import Spread
from vtw_eval.cost.units import bytes_text, flops_unit
from vtw_eval.tables import Table, markdown

_SIDE_BY_SIDE = 8
"""Methods that fit side by side; more stand one below the other."""

_NOTES = """\
Times are medians over rounds with quartiles in brackets, `(0.63x)` is the median of the ratios to the baseline within
a round: all methods run in every round, in an order drawn anew. Each phase ends with a synchronisation of the device.
{first}Decode step: median over the steps of a run, with
a growing KV cache; nothing stops at an end-of-text token. FLOPs: `exact`, decoder with the head on the last token.
The baseline is the model without hooks. Prefill and decode time / FLOPs: the time ratio over the FLOPs ratio; 1.00 is
the limit.
"""

_CHOICE_NOTES = """\
Choice: all that a method does in the prefill when it is asked which tokens go on, that is what runs once more for it to
read, similarities and ranks, states that it merges; not the moving of tokens. It is part of the decoder prefill of the
same run. FLOPs of the choice: its matrix products, which `Prefill FLOPs` leave out, over the unchanged prefill's.
"""


def bench_markdown(bench: Bench) -> str:
    """Return a benchmark as a Markdown document."""
    lines = [
        f"# Latency and memory: {bench.subject}",
        "",
        f"{bench.device}, {bench.dtype}, {bench.threads} CPU threads, {bench.rounds} rounds after {bench.warmup} for "
        f"warm-up, seed {bench.seed}{', decoder layers compiled' if bench.compiled else ''}.",
        *([bench.note] if bench.note else []),
        "",
    ]
    for setting in bench.settings:
        lines += [
            f"## Batch {setting.batch}, {setting.attention}",
            "",
            f"{setting.text} text and {setting.vision} vision tokens, {setting.output_tokens} new tokens.",
            "",
            setting_table(setting, bench.model_bytes),
            "",
            *(f"- {row.method}: {row.status}: {row.error}" for row in setting.rows if row.status != "done"),
            *([""] if any(row.status != "done" for row in setting.rows) else []),
            *([choice_table(setting), ""] if any(row.choice is not None for row in setting.rows) else []),
        ]
    if bench.left_out:
        lines += [
            "Methods that this model does not take:",
            "",
            *(f"- {name}: {reason}" for name, reason in bench.left_out.items()),
            "",
        ]
    timed = any(row.first_token is not None for setting in bench.settings for row in setting.rows)
    chosen = any(row.choice is not None for setting in bench.settings for row in setting.rows)
    first = "First token: vision tower, projector, embedding and decoder prefill. " if timed else ""
    lines += [
        _NOTES.format(first=first) + _memory_note(bench) + (_CHOICE_NOTES if chosen else ""),
        f"Made by `{bench.command}`.",
        "",
        f"Environment: {bench.environment}.",
        "",
    ]
    return "\n".join(lines)


def setting_table(setting: Setting, model_bytes: int) -> str:
    """Return the table of a setting: methods are columns and quantities rows, the other way round if there are many.

    Parameters
    ----------
    setting
        What was measured.
    model_bytes
        Of the weights.
    """
    base = next((row for row in setting.rows if row.method == BASELINE and row.status == "done"), None)
    prefill, prefill_unit = flops_unit(max((row.prefill_flops or 0 for row in setting.rows), default=0))
    step, step_unit = flops_unit(max((row.decode_flops or 0 for row in setting.rows), default=0))
    columns: list[tuple[str, Callable[[BenchRow], str]]] = [
        ("(a) Model memory", lambda row: bytes_text(model_bytes)),
        ("(b) Peak memory", lambda row: _share(row, base, lambda r: _plus(model_bytes, r.peak_bytes), bytes_text)),
        ("(b)-(a) per batch", lambda row: _share(row, base, lambda r: r.peak_bytes, bytes_text)),
        ("KV cache after prefill", lambda row: _share(row, base, lambda r: r.kv_bytes, bytes_text)),
        (
            f"Prefill {prefill_unit}",
            lambda row: _share(row, base, lambda r: r.prefill_flops, _in(prefill)),
        ),
        (
            f"Decode step {step_unit}",
            lambda row: _share(row, base, lambda r: r.decode_flops, _in(step)),
        ),
        ("Vision part", lambda row: _time(row.vision, _of(row, "vision"))),
        ("Decoder prefill", lambda row: _time(row.prefill, _of(row, "prefill"))),
        ("First token", lambda row: _time(row.first_token, _of(row, "first_token"))),
        ("Decode step", lambda row: _time(row.step, _of(row, "step"))),
        ("Tokens/s", lambda row: "" if row.tokens_per_second is None else f"{row.tokens_per_second.median:.2f}"),
        ("Prefill time / FLOPs", lambda row: _over(_of(row, "prefill"), row.prefill_flops_ratio)),
        ("Decode time / FLOPs", lambda row: _over(_of(row, "step"), row.decode_flops_ratio)),
    ]
    done = [row for row in setting.rows if row.status == "done"]
    rows = [
        [label, *(cell(row) if row.status == "done" else row.status for row in setting.rows)]
        for label, cell in columns
        if not done or any(cell(row) for row in done)  # what was not measured claims no row
    ]
    table = [["", *(row.method for row in setting.rows)], *rows]
    if len(setting.rows) > _SIDE_BY_SIDE:
        table = [list(column) for column in zip(*table, strict=True)]
    return markdown(Table(table[0], table[1:]))


def choice_table(setting: Setting) -> str:
    """Return what choosing takes, a row for each method that was measured, as they were asked for.

    Parameters
    ----------
    setting
        What was measured.
    """
    base = next((row for row in setting.rows if row.method == BASELINE and row.status == "done"), None)
    whole = None if base is None else base.prefill_flops
    headers = [
        *("method", "tokens/layer", "Prefill FLOPs", "Decoder prefill", "Choice"),
        *("of its prefill", "of the unchanged prefill", "FLOPs of the choice"),
    ]
    rows = [
        [
            row.method,
            f"{statistics.fmean(row.tokens_per_layer):.1f}",
            _percent(row.prefill_flops_ratio),
            _time(row.prefill, _of(row, "prefill")),
            _time(row.choice, None),
            _percents(row.choice_share),
            _percents(_of(row, "choice")),
            _percent(row.choice_flops / whole if row.choice_flops is not None and whole else None, 2),
        ]
        for row in setting.rows
        if row.status == "done"
    ]
    return markdown(Table(headers, rows))


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _percents(share: Spread | None) -> str:
    if share is None:
        return ""
    low, middle, high = (f"{100 * value:.2f}" for value in (share.q1, share.median, share.q3))
    return f"{middle} % [{low}, {high}]"


def _share(
    row: BenchRow, base: BenchRow | None, value: Callable[[BenchRow], float | None], show: Callable[[float], str]
) -> str:
    own = value(row)
    if own is None:
        return ""
    whole = None if base is None else value(base)
    return f"{show(own)} ({own / whole:.2f}x)" if whole else show(own)


def _of(row: BenchRow, phase: str) -> Spread | None:
    return None if row.ratios is None else getattr(row.ratios, phase)


def _plus(a: float, b: float | None) -> float | None:
    return None if b is None else a + b


def _in(unit: float) -> Callable[[float], str]:
    return lambda value: f"{value / unit:.3f}"


def _time(time: Spread | None, ratio: Spread | None) -> str:
    if time is None:
        return ""
    factor, unit = (1.0, "s") if time.median >= 1 else (1e3, "ms")
    low, middle, high = (f"{value * factor:.4g}" for value in (time.q1, time.median, time.q3))
    return f"{middle} {unit} [{low}, {high}]" + ("" if ratio is None else f" ({ratio.median:.3f}x)")


def _over(time: Spread | None, flops: float | None) -> str:
    return "" if time is None or flops is None else f"{time.median:.3f} / {flops:.3f} = {time.median / flops:.3f}"


def _memory_note(bench: Bench) -> str:
    if bench.device.startswith("cuda"):
        return "Peak memory: `torch.cuda.max_memory_allocated` of a run of its own.\n"
    return (
        "Peak memory: allocations of tensors in an untimed run of its own, as torch's profiler records them; what a\n"
        "math library takes for itself is not in it.\n"
    )
