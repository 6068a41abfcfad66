"""One-pass search against one run per k, in one process: ``python -m tests.benchmarks.search``."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtw_eval import VTW
from vtw_eval.methods.vtw.search import search_layer

SYSTEM, VISION, QUESTION, START = 35, 576, 30, 5


def make_model(layers: int, hidden: int) -> LlavaForConditionalGeneration:
    """Make a random LLaVA whose prompts have the lengths of LLaVA-1.5's."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=999)
    ).eval()


def prompt() -> dict[str, Tensor]:
    """Make a prompt of 35 + 576 + 30 tokens."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 999, (1, SYSTEM + QUESTION), generator=generator)
    image = torch.full((1, VISION), 999)
    return {
        "input_ids": torch.cat([words[:, :SYSTEM], image, words[:, SYSTEM:]], dim=1),
        "attention_mask": torch.ones(1, SYSTEM + VISION + QUESTION, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 336, 336, generator=generator),
    }


@torch.no_grad()
def naive(model: Any, inputs: dict[str, Tensor], layers: int) -> Tensor:
    """One full run and one VTW run per k."""
    full = model(**inputs, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
    found = []
    for k in range(START, layers):
        with VTW(k=k)(model):
            log_p = model(**inputs, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
        found.append((log_p.exp() * (log_p - full)).sum())
    return torch.stack(found)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and its result."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    model, inputs = make_model(options.layers, options.hidden), prompt()
    calls: dict[str, Callable[[], Any]] = {
        "full": lambda: model(**inputs, logits_to_keep=1),
        "search": lambda: search_layer(model, [inputs], start=START).divergence[START:],
        "naive": lambda: naive(model, inputs, options.layers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    with torch.no_grad():
        calls["full"]()
        for _ in track(range(options.repeats), description="runs", console=Console(stderr=True)):
            for name, call in calls.items():
                taken, results[name] = timed(call)
                seconds[name].append(taken)
    over_full = [s / f for s, f in zip(seconds["search"], seconds["full"], strict=True)]
    over_search = [n / s for n, s in zip(seconds["naive"], seconds["search"], strict=True)]
    difference = float((results["search"] - results["naive"]).abs().max())
    shape = f"{options.layers} layers, hidden {options.hidden}, {SYSTEM}+{VISION}+{QUESTION} tokens"
    print("# One-pass search for k against one run per k\n")
    print(f"{shape}, float32, candidates from {START}, {torch.get_num_threads()} threads of {platform.machine()}.\n")
    print(f"- search / full forward: {statistics.median(over_full):.3f} (median of {options.repeats} interleaved runs)")
    print(f"- naive loop / search: {statistics.median(over_search):.2f}")
    print(f"- max |difference| of KL: {difference:.1e} (largest KL {float(results['naive'].max()):.1e})\n")
    print(f"Made by `python -m tests.benchmarks.search` with torch {torch.__version__}.")


if __name__ == "__main__":
    main()
