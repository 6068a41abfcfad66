"""What reading the attention of a prompt takes beside a plain forward: ``python -m tests.benchmarks.analyze``.

Random weights in the shape of a geometry. Peak: bytes of tensors above those that were there before (weights, prompt),
as ``vtw-eval bench`` measures them. Seconds: CPU time of this process, all threads together.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from vtw_eval import Baseline
from vtw_eval.analyze import read_answer
from vtw_eval.cost.bench.memory import peak_bytes
from vtw_eval.cost.bench.subject import make_prompt, random_subject
from vtw_eval.cost.presets import get_geometry
from vtw_eval.tables import Table, markdown

ANSWER = 8
"""Tokens of the answer."""


def measured(call: Callable[[], Any]) -> tuple[float, float]:
    """Return CPU seconds and the peak in MiB of a call, of two runs of it."""
    begin = time.process_time()
    call()
    seconds = time.process_time() - begin
    return seconds, peak_bytes(call, torch.device("cpu")) / 2**20


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", default="llava-0.5b")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--text", type=int, default=24)
    options = parser.parse_args()
    geometry = get_geometry(options.geometry)
    subject = random_subject(geometry, torch.float32, torch.device("cpu"), 0)
    model = subject.model.eval()
    weights = sum(each.numel() * each.element_size() for each in model.parameters()) / 2**20
    print(f"{geometry.name}: {geometry.layers} layers, float32, weights {weights:.0f} MiB; torch {torch.__version__}, ")
    print(f"{torch.get_num_threads()} thread, {platform.machine()}\n")
    lines = []
    for images in options.images:
        vision = images * geometry.vision_tokens
        prompt = make_prompt(subject, rows=1, text=options.text, vision=vision, seed=0)
        inputs = {"input_ids": prompt.ids, "attention_mask": prompt.mask, "pixel_values": prompt.pixels}
        answer = torch.randint(0, geometry.vocab - 1, (1, ANSWER), generator=torch.Generator().manual_seed(1))

        def plain(inputs: dict[str, Any] = inputs) -> None:
            model(**inputs, use_cache=False, logits_to_keep=1)

        def analysis(inputs: dict[str, Any] = inputs, answer: torch.Tensor = answer) -> None:
            read_answer(model, Baseline(), inputs, answer)

        tokens = prompt.ids.shape[1]
        eager = geometry.layers * geometry.heads * (tokens + ANSWER - 1) ** 2 * 4 / 2**20
        row = [str(tokens)]
        for call in (plain, analysis):
            seconds, peak = measured(call)
            row += [f"{peak:.0f}", f"{seconds:.1f}"]
        lines.append([*row, f"{eager:.0f}"])
        print(markdown(Table(HEADERS, lines)), flush=True)


HEADERS = ["tokens", "forward, MiB", "CPU s", "analysis, MiB", "CPU s", "all attention weights alone, MiB"]

if __name__ == "__main__":
    main()
