"""Held-out accuracies of a trained checkpoint for boards or moves: ``python -m vtw_eval.shapes.check --help``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from vtw_eval.shapes.boards.making.check import print_by_layers
from vtw_eval.shapes.boards.making.families.check import accuracy
from vtw_eval.shapes.boards.making.families.family import Family
from vtw_eval.shapes.boards.making.families.internvl import InternVL
from vtw_eval.shapes.boards.making.families.qwen2_vl import Qwen2VL
from vtw_eval.shapes.moves.making.video_llava import VideoLlava

FAMILIES: dict[str, Callable[[], Family]] = {"qwen2_vl": Qwen2VL, "internvl": InternVL, "video_llava": VideoLlava}
"""By ``config.model_type``."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtw_eval.shapes.check",
        description="Print a table of held-out accuracies in %: by question type, and by the number of layers that "
        "see the image or video. For LLaVA: python -m vtw_eval.shapes.boards.making.check.",
        epilog="example: python -m vtw_eval.shapes.check checkpoint --shown 512",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a trained checkpoint")
    parser.add_argument("--shown", type=int, default=512, help="held-out images or videos, a multiple of 16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    config = options.checkpoint / "config.json"
    if not config.is_file():
        parser.error(f"{options.checkpoint} is no checkpoint: it has no config.json")
    kind = json.loads(config.read_text())["model_type"]
    if kind not in FAMILIES:
        parser.error(f"{options.checkpoint} is of type {kind!r}; known: {', '.join(FAMILIES)}")
    if options.shown < 16 or options.shown % 16:
        parser.error(f"--shown must be a multiple of 16, got {options.shown}")

    torch.set_num_threads(options.threads)
    family = FAMILIES[kind]()
    model = AutoModelForImageTextToText.from_pretrained(options.checkpoint, attn_implementation="eager")
    seen = partial(accuracy, family, model, options.shown, autocast=False)
    print_by_layers(family.types, len(model.model.language_model.layers), lambda layers: seen(layers=layers))


if __name__ == "__main__":
    main()
