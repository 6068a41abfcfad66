"""Compare the closed form ``exact`` with what fvcore and torch's counter find, and KV bytes with the real cache.

Run it as ``python -m tests.agreement_table > results/flops_agreement.md``; it takes about seven minutes.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fvcore
import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from tabulate import tabulate
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2VLConfig

from tests.methods.examples import EXAMPLES, REFUSED
from tests.support.families import DENSE, make_inputs, make_model
from tests.support.gates import fitted
from tests.support.oracle import KINDS
from vtw_eval import VTW, Composite, Downsample, FastV, Method, PyramidDrop, Rand, RandomK, RandomVision, ToMe
from vtw_eval.cost import PRESETS, Geometry, exact_decode_flops, exact_prefill_flops, kv_cache_bytes
from vtw_eval.cost.choice import choice_flops, slots_per_layer, updated_slots_per_layer
from vtw_eval.cost.measure.counted import CountedCosts, counted_costs
from vtw_eval.cost.measure.flops import MeasuredFlops, cache_bytes, fvcore_flops, torch_flops
from vtw_eval.engine.calls import cache_of_output, with_cache
from vtw_eval.methods import Baseline

PARTS = ("vision", "projector", "layers", "head", "method")


@dataclass(frozen=True)
class Agreement:
    """Everything that should be equal, in FLOPs and bytes of one batch."""

    exact: float
    """Closed form over the tokens of the trace: decoder layers, head on each row's last token."""
    padding: float
    """What the closed form says of the padding of shorter rows."""
    choice: dict[str, int]
    """What the method computes of its own, by closed form."""
    fvcore: MeasuredFlops
    torch: MeasuredFlops
    decode: float
    """Closed form of the next decode step."""
    fvcore_decode: MeasuredFlops
    torch_decode: MeasuredFlops
    kv: list[int]
    """Bytes per layer by closed form."""
    cache: list[int]
    """Bytes per layer of the real cache."""

    @property
    def differences(self) -> list[str]:
        """What is not equal."""
        counted = (self.fvcore, self.torch)
        found = [
            f"{part}: fvcore {x} torch {y}"
            for part in PARTS
            if (x := getattr(counted[0], part)) != (y := getattr(counted[1], part))
        ]
        expected = self.exact + self.padding
        found += [f"decoder: exact {expected}, {c.counter} {c.decoder}" for c in counted if c.decoder != expected]
        own = sum(self.choice.values())
        found += [f"choice: closed {own}, {c.counter} {c.method}" for c in counted if c.method != own]
        steps = (self.fvcore_decode, self.torch_decode)
        found += [f"decode: exact {self.decode}, {c.counter} {c.decoder}" for c in steps if c.total != self.decode]
        found += [f"outside the parts: {c.other}" for c in (*counted, *steps) if c.other]
        return found + ([f"KV: closed {self.kv}, cache {self.cache}"] if self.kv != self.cache else [])


def next_step(model: PreTrainedModel, inputs: dict[str, Tensor], cache: Any) -> dict[str, Any]:
    """Make the keywords of a decode step after a prefill."""
    rows, length = inputs["input_ids"].shape
    step = with_cache(model, {"input_ids": torch.full((rows, 1), 20)}, cache)
    step["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(rows, 1, dtype=torch.long)], dim=1)
    if "mm_token_type_ids" in inputs:  # positions of three axes, which generate() would make
        step["position_ids"] = torch.full((3, rows, 1), length)
    return step


@torch.no_grad()
def agree(name: str, label: str, kind: str, attention: str = "sdpa") -> Agreement:
    """Measure a tiny model of a family with a method of ``EXAMPLES`` on a kind of input of ``KINDS``."""
    model = make_model(name, attn=attention)
    geometry = Geometry.from_config(model.config)
    inputs = make_inputs(name, model, KINDS[kind])
    prefill = {**inputs, "logits_to_keep": 1}
    with fitted(EXAMPLES[label], model)(model) as trace:
        cache = cache_of_output(model(**prefill, use_cache=True))
        tokens, slots, choice = trace.tokens_per_layer, slots_per_layer(trace), choice_flops(trace, geometry)
        updated, run = trace.updated_per_layer, updated_slots_per_layer(trace)
        step = next_step(model, inputs, cache)
        exact = float(exact_prefill_flops(tokens, geometry, updated=updated).sum())
        return Agreement(
            exact=exact,
            padding=float(exact_prefill_flops(slots, geometry, updated=run).sum()) - exact,
            choice=choice,
            fvcore=fvcore_flops(model, {**prefill, "use_cache": False}),
            torch=torch_flops(model, {**prefill, "use_cache": True}),
            decode=float(exact_decode_flops(slots + 1, geometry).sum()),
            fvcore_decode=fvcore_flops(model, step),
            torch_decode=torch_flops(model, step),
            kv=kv_cache_bytes(slots, geometry, 8).long().tolist(),
            cache=cache_bytes(cache),
        )


QWEN2_VL_7B = Qwen2VLConfig(
    text_config={
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    vision_config={"hidden_size": 3584},
)
"""https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct"""

LARGE: dict[str, Geometry | PreTrainedConfig] = {
    "llava-1.5-7b": PRESETS["llava-1.5-7b"],
    "llava-1.5-13b": PRESETS["llava-1.5-13b"],
    "qwen2-vl-7b": QWEN2_VL_7B,
}
LARGE_METHODS: Sequence[Method] = (
    Baseline(),
    VTW(),
    Rand(),
    RandomK(),
    FastV(),
    RandomVision(),
    PyramidDrop(),
    ToMe(),
    Downsample(),
    Composite(parts=(FastV(), VTW())),
)


def agree_large(name: str, methods: Sequence[Method], advance: Callable[[], None] = lambda: None) -> list[CountedCosts]:
    """Count a model of :data:`LARGE` on 66 text and 576 vision tokens, one row, bfloat16; the baseline comes first."""
    return counted_costs(LARGE[name], methods, text=66, vision=576, advance=advance)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("tiny models", total=len(DENSE) * len(EXAMPLES))
        tiny: dict[tuple[str, str], Agreement] = {}
        for name in DENSE:
            for label in EXAMPLES:
                if (name, EXAMPLES[label].key) not in REFUSED:
                    tiny[name, label] = agree(name, label, "mixed")
                progress.advance(task)
        task = progress.add_task("large models", total=len(LARGE) * len(LARGE_METHODS))
        large: dict[tuple[str, str], CountedCosts] = {}
        for name in LARGE:
            for found in agree_large(name, LARGE_METHODS, lambda: progress.advance(task)):
                large[name, found.method] = found
    differing = {key: found.differences for key, found in tiny.items() if found.differences}
    differing |= {key: found.unexplained for key, found in large.items() if found.unexplained}
    print(_document(tiny, large, differing))


def _document(
    tiny: dict[tuple[str, str], Agreement],
    large: dict[tuple[str, str], CountedCosts],
    differing: dict[tuple[str, str], list[str]],
) -> str:
    unequal = "\n".join(f"- {name}, {method}: {'; '.join(what)}" for (name, method), what in differing.items())
    total = len(tiny) + len(large)
    refused = len(DENSE) * len(EXAMPLES) - len(tiny)
    small = f"{len(DENSE)} tiny models x {len(EXAMPLES)} methods" + (f" but {refused} refused" if refused else "")
    big = f"{len(LARGE)} geometries x {len(LARGE_METHODS)} methods"
    uncounted = sorted({op for found in tiny.values() for op in found.fvcore.uncounted})
    return f"""# FLOPs: closed form, fvcore and torch's counter

Prefill of the decoder layers and of the head on each row's last token, in FLOPs (two per multiply-add), and the next
decode step with the KV cache. *tokens* is `exact` over the trace, *padding* what `exact` adds for rows that are shorter
than the longest of the batch, *choice* the closed form of what the method computes of its own
(`vtw_eval/cost/choice.py`); each counter must find their sum. KV bytes are those of the real cache tensors.

**{total - len(differing)} of {total} measurements agree to the FLOP and to the byte**:
{small} (three rows of different lengths, one without image; SDPA; float64),
and {big} without weights (meta device, 66 text and 576 vision tokens, bfloat16).
{unequal}

Made by `python -m tests.agreement_table` with torch {torch.__version__}, fvcore {fvcore.__version__}, transformers
{transformers.__version__}, {platform.machine()} CPU.

## Families

{_tiny_table([(name, label) for name in DENSE for label in ("baseline", "vtw")], tiny)}

## Methods, tiny LLaVA

{_tiny_table([("llava", label) for label in EXAMPLES], tiny)}

Scores: q, k and v of one layer once more and one row of attention. Keys: the same without the row. Similarities: even
by odd vision tokens. Gates: two small matrices per layer and row.

## Large geometries, meta device

{_large_table(large)}

GFLOPs are rounded for print, compared whole. Qwen2-VL-7B is that architecture, the others are LLaVA; its 576 vision
tokens are an example. ToMe's similarities are the one thing that is not run without values, and not in its sum.

## What neither counts

Norms, activations, softmax, rotary embedding, masks, sorting, moving of tokens and additions. fvcore names these
operators in the models above: {", ".join(f"`{op.removeprefix('aten::')}`" for op in uncounted)}.
Attention counts all pairs of queries and keys, masked or not, and a sliding window in the prefill too."""


def _tiny_table(keys: Sequence[tuple[str, str]], tiny: dict[tuple[str, str], Agreement]) -> str:
    rows = []
    for name, label in keys:
        found = tiny[name, label]
        rows.append(
            [
                name,
                label,
                f"{found.exact:,.0f}",
                f"{found.padding:,.0f}",
                _named(found.choice),
                f"{found.fvcore.decoder + found.fvcore.method:,}",
                f"{found.torch.decoder + found.torch.method:,}",
                f"{found.decode:,.0f}",
                _same(found.decode, found.fvcore_decode.total, found.torch_decode.total),
                f"{sum(found.cache):,}",
                _same(sum(found.kv), sum(found.cache)),
            ]
        )
    headers = ["model", "method", "tokens", "padding", "choice", "fvcore", "torch", "decode", "", "KV bytes", ""]
    return _table(rows, headers)


def _large_table(large: dict[tuple[str, str], CountedCosts]) -> str:
    rows = []
    for (name, method), found in large.items():
        rows.append(
            [
                name,
                method,
                f"{found.exact / 1e9:,.3f}",
                _named({**found.read, **found.own}, 1e9),
                f"{(found.fvcore.decoder + found.fvcore.method) / 1e9:,.3f}",
                f"{(found.torch.decoder + found.torch.method) / 1e9:,.3f}",
                "=" if not found.unexplained else "differs",
                f"{found.kv_bytes:,}",
            ]
        )
    return _table(rows, ["model", "method", "exact, GFLOPs", "choice", "fvcore", "torch", "", "KV bytes"])


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _named(flops: dict[str, int], unit: float = 1) -> str:
    digits = 0 if unit == 1 else 3
    return ", ".join(f"{kind} {number / unit:,.{digits}f}" for kind, number in flops.items()) or "-"


def _same(*numbers: float) -> str:
    return "=" if len(set(numbers)) == 1 else "differs"


if __name__ == "__main__":
    main()
