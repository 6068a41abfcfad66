"""Print the largest difference between VTW and masked attention, per family, attention and kind of input.

Run it as ``python -m tests.oracle_table > results/oracle.md``; it takes about two minutes.
"""

from __future__ import annotations

import platform

import torch
import transformers
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from tests.support.families import VIDEO
from tests.support.oracle import CASES, FLASH, KINDS, compare, models

ATTENTIONS = {"eager": "eager", "sdpa": "sdpa", FLASH: "flash-style"}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for name, attention in track(CASES, description="families", console=Console(stderr=True)):
        layers = models(name, attention)[0].config.get_text_config(decoder=True).num_hidden_layers
        ks = (0, 1, layers // 2, layers - 1, layers)
        cells = []
        for kind in KINDS:
            if kind == "video" and name not in VIDEO:
                cells.append("-")
                continue
            found = [compare(name, attention, kind, k) for k in ks]
            cells.append(f"{max(d.prefill for d in found):.0e} / {max(d.decode for d in found):.0e}")
        label = ATTENTIONS[attention]
        rows.append([name if attention == "eager" else "", label, ",".join(map(str, ks)), *cells])
    print("# VTW against masked attention\n")
    print(
        "Largest absolute difference of logits, prefill over all text tokens / five generated tokens with KV cache,\n"
        "over all k of the row. Tiny random models in float64; logits are of order 1 to 10. Rotary tables are float32\n"
        "in all of these models, and so is the softmax of eager attention, which is where 1e-6 comes from.\n"
        "PaliGemma and Gemma 3 are refused under FlashAttention, which would lose their bidirectional image blocks.\n"
        "Made by `python -m tests.oracle_table` with "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()} CPU.\n"
    )
    print(tabulate(rows, headers=["family", "attention", "k", *KINDS], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
