"""Documents a second under lmms-eval, ours against its own adapter: ``python -m tests.benchmarks.throughput``.

Loads have the shape of benchmarks: so many questions about each image, in rounds. In each round lmms-eval's
``llava_hf`` at batch 1, ``llava_vtw`` without sharing and ``llava_vtw`` with it answer the same documents one after the
other, so that what else the machine does falls on all three; CPU time is compared.
"""

from __future__ import annotations

import argparse
import io
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaProcessor

from tests.support.checkpoints import LLAVA_TEMPLATE, make_tokenizer, save

LAYERS, HIDDEN, TOWER_LAYERS, TOWER_HIDDEN, SIDE, PATCH = 12, 512, 6, 384, 336, 14


@dataclass(frozen=True)
class Load:
    """The shape of a benchmark."""

    questions: int
    """About each image."""
    images: int
    """Images of a round."""
    words: int
    """Of a question."""


LOADS = {"pope": Load(18, 1, 8), "gqa": Load(30, 1, 10), "ai2d": Load(4, 4, 40), "mme": Load(2, 8, 15)}


def make_checkpoint(folder: Path, small: bool) -> None:
    """Make a LLaVA-1.5 of random weights whose images are 576 vision tokens."""
    side = 4 * PATCH if small else SIDE
    tokenizer = make_tokenizer({"image_token": "<image>"})
    crop = {"height": side, "width": side}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    layers, hidden, tower_layers, tower_hidden = (
        (2, 64, 2, 64) if small else (LAYERS, HIDDEN, TOWER_LAYERS, TOWER_HIDDEN)
    )
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": 11 * hidden // 4, "num_attention_heads": hidden // 32, "max_position_embeddings": 4096,
        "num_key_value_heads": hidden // 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": tower_hidden, "intermediate_size": 4 * tower_hidden,
        "num_hidden_layers": tower_layers, "num_attention_heads": tower_hidden // 32, "image_size": side,
        "patch_size": PATCH, "projection_dim": 32,
    }  # fmt: skip
    config = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    save(config, processor, folder, 0, torch.float32)


def make_documents(load: Load, rounds: int) -> datasets.Dataset:
    """Make documents of JPEGs of 640x480 and questions of random words."""
    rng, pixels = random.Random(0), np.random.default_rng(0)
    words = [
        "red",
        "green",
        "blue",
        "round",
        "square",
        "small",
        "big",
        "bright",
        "dark",
        "left",
        "right",
        "near",
        "far",
    ]
    rows = []
    for _ in range(rounds * load.images):
        coarse = Image.fromarray(pixels.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
        for _ in range(load.questions):
            count = rng.randrange(load.words // 2, 3 * load.words // 2)
            text = " ".join(rng.choice(words) for _ in range(count))
            question = f"Is there a {text} disc? Answer yes or no."
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "question": question})
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def requests_of(documents: Sequence[int], new_tokens: int, texts: Sequence[str]) -> list[Any]:
    """Return lmms-eval's requests for documents."""
    from lmms_eval.api.instance import Instance

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        shown = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
        return [{"role": "user", "content": shown}]

    return [
        Instance(
            request_type="generate_until",
            arguments=(texts[i], messages, {"max_new_tokens": new_tokens, "temperature": 0}, i, "load", "test"),
            idx=0,
            metadata={"task": "load", "doc_id": i, "repeats": 1},
        )
        for i in documents
    ]


def interval(ratios: Sequence[float]) -> str:
    """Return the mean of ratios with a 95 % interval over rounds, by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(ratios)
    if len(ratios) < 2:
        return f"{mean:.2f}"
    half = t.ppf(0.975, len(ratios) - 1) * statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--methods", nargs="+", default=["baseline", "vtw,k=6"], help="of llava_vtw, each as a spec")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8, help="of llava_vtw")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see whether this runs")
    options = parser.parse_args()

    from lmms_eval.models.chat.llava_hf import LlavaHf

    from vtw_eval.methods import parse_method
    from vtw_eval.model_adapters.lmms.models import model_class

    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), options.small)
        ours = {"device": "cpu", "batch_size": options.batch_size, "method": "baseline", "verify": False}
        models: dict[str, Any] = {
            "llava_hf": LlavaHf(pretrained=name, device="cpu", device_map="cpu", batch_size=1),
            "alone": model_class("llava_vtw")(pretrained=name, sharing="off", **ours),
            "shared": model_class("llava_vtw")(pretrained=name, sharing="auto", **ours),
        }
        print("# Documents a second under lmms-eval: what sharing images is worth\n")
        print(
            "| load | method | ms/document, `llava_hf` | `llava_vtw`, `sharing=off`, x `llava_hf` | `sharing=auto`, x "
            "`llava_hf` | x `sharing=off` | answers that differ |\n|:---|:---|---:|---:|---:|---:|---:|"
        )
        for kind in options.loads:
            load = LOADS[kind]
            dataset = make_documents(load, options.rounds)
            texts = dataset["question"]
            for model in models.values():
                model.task_dict = {"load": {"test": dataset}}
            size = load.images * load.questions
            for spec in options.methods:
                for key in ("alone", "shared"):
                    models[key].runner.exchange(parse_method(spec))
                seconds: dict[str, list[float]] = {key: [] for key in models}
                answers: dict[str, list[str]] = {key: [] for key in models}
                for round_ in range(options.rounds):
                    documents = range(round_ * size, (round_ + 1) * size)
                    for key, model in models.items():
                        requests = requests_of(documents, options.new_tokens, texts)
                        begin = time.process_time()
                        results = model.generate_until(requests)
                        seconds[key].append(time.process_time() - begin)
                        answers[key] += [result.text for result in results]
                per = {key: statistics.fmean(values) / size for key, values in seconds.items()}
                ratios = [
                    [a / b for a, b in zip(seconds[x], seconds[y], strict=True)]
                    for x, y in (("llava_hf", "alone"), ("llava_hf", "shared"), ("alone", "shared"))
                ]
                right = "llava_hf" if spec == "baseline" else "alone"
                differ = sum(a != b for a, b in zip(answers["shared"], answers[right], strict=True))
                print(
                    f"| {kind} ({load.questions} about an image) | {spec} | {1000 * per['llava_hf']:.1f} | "
                    f"{' | '.join(map(interval, ratios))} | {differ} of {len(texts)} |",
                    flush=True,
                )
    print(
        f"\nCPU time, {options.rounds} rounds, interleaved; mean of the rounds' ratios with 95 % intervals. Answers "
        f"are compared with `llava_hf` for baseline, else with `sharing=off`. Random weights, {LAYERS} layers of "
        f"{HIDDEN}, {(SIDE // PATCH) ** 2} vision tokens, {options.new_tokens} new tokens, batch {options.batch_size}, "
        f"float32, {torch.get_num_threads()} threads of {platform.machine()}.\n"
    )
    print(f"Made by `python -m tests.benchmarks.throughput` with torch {torch.__version__}.")


if __name__ == "__main__":
    main()
