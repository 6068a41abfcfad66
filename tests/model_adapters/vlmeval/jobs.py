"""What the tests ask VLMEvalKit to do, in one process of its own (:mod:`tests.model_adapters.vlmeval.drive`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGES = ("MME", "POPE", "AI2D_TEST", "ScienceQA_TEST", "MMMU_DEV_VAL")
SIX = ("MME", "POPE", "AI2D_TEST", "ScienceQA_TEST", "MMBench_DEV_EN", "MMMU_DEV_VAL")
PIXELS = {"min_pixels": 28 * 28, "max_pixels": 8 * 28 * 28}
PIXELS_3 = {"min_pixels": 32 * 32, "max_pixels": 8 * 32 * 32}


def videomme(nframe: int) -> dict[str, Any]:
    """Return the entry of Video-MME in a ``--config`` file."""
    return {"class": "VideoMME", "dataset": "Video-MME", "nframe": nframe}


@dataclass(frozen=True)
class Pair:
    """A class of the kit and one of ours that must ask and answer the same."""

    stock: str
    ours: str
    family: str
    datasets: tuple[Any, ...]
    stock_options: dict[str, Any] = field(default_factory=dict)
    our_options: dict[str, Any] = field(default_factory=dict)
    how: str = ""
    """What tells it from another pair of the same class and family."""

    @property
    def name(self) -> str:
        """Name of the pair."""
        return f"{self.stock} on {self.family}{self.how}"


HALF = {"dtype": "float16"}
"""Several classes of the kit load in half precision whatever the checkpoint holds."""

PAIRS = (
    # The kit opens LLaVA checkpoints with this class where their name says "interleave".
    Pair("LLaVA_Next", "LlavaVTW", "llava-interleave", IMAGES, {}, HALF),
    Pair("LLaVA_Next", "LlavaVTW", "llava_next", IMAGES, {}, HALF),
    Pair("LLaVA_OneVision_HF", "LlavaVTW", "llava_onevision", ("MME", "AI2D_TEST", "MMMU_DEV_VAL"), {}, HALF),
    Pair("Qwen2VLChat", "Qwen2VLVTW", "qwen2_vl", (*IMAGES, videomme(4)), PIXELS, PIXELS),
    Pair(
        "Qwen2VLChat",
        "Qwen2VLVTW",
        "qwen2_5_vl",
        ("POPE", "MMMU_DEV_VAL", videomme(4)),
        {**PIXELS, "use_custom_prompt": False},
        PIXELS,
    ),
    Pair(
        "Qwen3VLChat",
        "Qwen2VLVTW",
        "qwen3_vl",
        ("MME", "AI2D_TEST", "MMMU_DEV_VAL", videomme(4)),
        PIXELS_3,
        {**PIXELS_3, "use_custom_prompt": True},
        ", its own words and bounds",
    ),
    Pair(
        "Qwen3VLChat",
        "Qwen2VLVTW",
        "qwen3_vl",
        ("POPE", "MMMU_DEV_VAL", videomme(4)),
        {"use_custom_prompt": False, "fps": None},
        {"fps": None},
    ),
    Pair(
        "InternVLChat",
        "InternVLVTW",
        "internvl_remote",
        (*IMAGES, videomme(4)),
        {"version": "V2.0"},
        {"dtype": "bfloat16", "trust_remote_code": True},
    ),
    Pair("VideoLLaVA_HF", "VideoLlavaVTW", "video_llava", (videomme(8),)),
)

ADAPTERS = {
    "llava_vtw": ("llava", ""),
    "qwen2vl_vtw": ("qwen2_vl", ",min_pixels=784,max_pixels=6272"),
    "internvl_vtw": ("internvl", ""),
    "video_llava_vtw": ("video_llava", ""),
}
"""Checkpoint and further options of each adapter."""

FAILURES = {
    "no words": ([], "name datasets and models: --data MME POPE --model LLaVA-1.5-7B-VTW"),
    "no checkpoint named": (["--data", "MME", "--model", "llava_vtw"], "llava_vtw needs a checkpoint: pretrained="),
    "wrong option": (
        ["--data", "MME", "--model", "llava_vtw", "--model-args", "pretrained=x,methd=vtw"],
        "unknown option 'methd' of llava_vtw; did you mean 'method'?",
    ),
    "search": (
        ["--data", "MME", "--model", "llava_vtw", "--model-args", "pretrained=x,k=search"],
        "k=search does not work with VLMEvalKit",
    ),
    "k out of range": (
        ["--data", "MME", "--model", "llava_vtw", "--model-args", "pretrained={llava},k=99"],
        "model llava_vtw: k=99 is out of range: this model has 4 decoder layers",
    ),
    "other family": (
        ["--data", "MME", "--model", "llava_vtw", "--model-args", "pretrained={qwen2_vl},k=1"],
        "but llava_vtw opens llava, llava_next, llava_onevision. Use --model qwen2vl_vtw for it.",
    ),
    "half a pair": (
        ["--data", "MME", "--model", "llava_vtw", "--model-args", "pretrained={llava}", "--limit", "3"],
        "would cut a pair of questions of MME",
    ),
    "options for another's model": (
        ["--data", "MME", "--model", "InternVL2-4B", "--model-args", "k=1"],
        "--model-args belongs to vtw-eval's models, but InternVL2-4B are the kit's.",
    ),
    "not a pair": (["--data", "MME", "--model", "llava_vtw", "--model-args", "k"], "'k' is not of the form name=value"),
    "config is not JSON": (["--config", "{bad}/AI2D_TEST.tsv"], "is not JSON"),
}
"""Words of the command line, and part of the only message."""


def kit_jobs(checkpoint: Callable[[str], str], data: Path, scratch: Path) -> dict[str, Any]:
    """Return the jobs by name; ``scratch`` gets the folders of results."""
    interleave = scratch / "llava-interleave"
    interleave.symlink_to(checkpoint("llava"))
    folders = {"llava-interleave": str(interleave)}

    def folder(family: str) -> str:
        return folders.get(family) or checkpoint(family)

    jobs: dict[str, Any] = {}
    for pair in PAIRS:
        shared = {"datasets": list(pair.datasets)}
        stock = {"model_path": folder(pair.family), **pair.stock_options}
        # Prompts are compared as they are asked, one by one.
        ours = {"pretrained": folder(pair.family), "method": "baseline", "device": "cpu", "sharing": "off"}
        ours |= pair.our_options
        jobs[f"{pair.name}: stock"] = {"class": pair.stock, "arguments": stock, **shared}
        jobs[f"{pair.name}: ours"] = {"class": pair.ours, "arguments": ours, "ours": True, **shared}
    jobs["as in lmms-eval"] = {
        "class": "LlavaVTW",
        "arguments": {"pretrained": checkpoint("llava"), "method": "baseline", "device": "cpu"},
        "ours": True,
        "datasets": ["AI2D_TEST"],
    }

    work = ["--work-dir", str(scratch / "out")]
    for adapter, (family, rest) in ADAPTERS.items():
        model = ["--model", adapter, "--model-args", f"pretrained={checkpoint(family)},k=2,max_new_tokens=4{rest}"]
        jobs[adapter] = {"command": ["--data", *SIX, *model, *work]}

    config = {
        "model": {
            "qwen": {
                "class": "Qwen2VLVTW",
                "pretrained": checkpoint("qwen2_vl"),
                "k": 2,
                "max_new_tokens": 4,
                **PIXELS,
            },
            "video": {"class": "VideoLlavaVTW", "pretrained": checkpoint("video_llava"), "k": 2, "max_new_tokens": 4},
            "internvl": {"class": "InternVLVTW", "pretrained": checkpoint("internvl"), "k": 2, "max_new_tokens": 4},
            "onevision": {
                "class": "LlavaVTW",
                "model_path": checkpoint("llava_onevision"),
                "k": 2,
                "max_new_tokens": 4,
            },
        },
        "data": {"Video-MME_8frame": {}},
    }
    (scratch / "videos.json").write_text(json.dumps(config))
    jobs["videos"] = {"command": ["--config", str(scratch / "videos.json"), "--limit", "3", *work]}
    one = {"video": config["model"]["video"], "misspelt": {"class": "LlavaVTV"}}
    datasets = {"four": videomme(4), "eight": videomme(8), "MME": {}}
    (scratch / "crash.json").write_text(json.dumps({"model": one, "data": datasets}))
    jobs["crash"] = {"command": ["--config", str(scratch / "crash.json"), "--work-dir", str(scratch / "crash")]}

    llava = ["--model", "llava_vtw", "--model-args", f"pretrained={checkpoint('llava')},max_new_tokens=4"]
    bad = data / "bad"
    bad.mkdir()
    (bad / "POPE.tsv").write_bytes((data / "LMUData" / "POPE.tsv").read_bytes())
    (bad / "AI2D_TEST.tsv").write_text('index\tquestion\timage\n1\t"unclosed')
    jobs["bad data"] = {
        "command": ["--data", "AI2D_TEST", "MME", "POPEE", "POPE", *llava, "--work-dir", str(scratch / "bad")],
        "environment": {"LMUData": str(bad)},
    }
    jobs["unknown model"] = {
        "command": ["--data", "POPE", *llava, "--work-dir", str(scratch / "unknown")],
    }
    jobs["unknown model"]["command"].insert(3, "LLaVA-1.5-7B-VTV")
    again = ["--work-dir", str(scratch / "again"), "--data", "POPE"]
    for name, k, more in (
        ("first", 0, []),
        ("afresh", 4, []),
        ("again, other", 1, ["--reuse"]),
        ("again, same", 4, ["--reuse"]),
    ):
        words = [*llava[:-1], f"{llava[-1]},k={k}", *again, *more]
        jobs[name] = {"command": words, "keep": str(scratch / "again" / "llava_vtw" / "llava_vtw_POPE.xlsx")}
    places = {"{llava}": checkpoint("llava"), "{qwen2_vl}": checkpoint("qwen2_vl"), "{bad}": str(bad)}
    for name, (words, _) in FAILURES.items():
        filled = list(words)
        for place, path in places.items():
            filled = [word.replace(place, path) for word in filled]
        jobs[name] = {"command": [*filled, *(["--work-dir", str(scratch / "failures")] if filled else [])]}
    for name, environment in {
        "errors as answers": {"SKIP_ERR": "1"},
        "no data folder": {"LMUData": str(scratch / "nowhere")},
    }.items():
        jobs[name] = {"command": ["--data", "POPE", *llava], "environment": environment}
    jobs["help"] = {"command": ["--help"]}
    return jobs
