"""The lmms-eval runs whose outcomes the tests look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.harness_data import picture_bytes


@dataclass(frozen=True)
class Pair:
    """A run of lmms-eval's own adapter and one of ours that must give the same answers."""

    stock: str
    ours: str
    family: str
    tasks: tuple[str, ...]
    simple: bool = False
    ours_simple: bool | None = None
    bfloat16: bool = False
    """lmms-eval's adapter loads in bfloat16 whatever the checkpoint holds; batches round differently there."""
    options: str = ""
    """Options of both."""

    @property
    def name(self) -> str:
        """Name of the pair."""
        protocol = " simple" if self.simple else ""
        return f"{self.stock}{protocol} on {self.family}{self.options}" + (
            "" if self.ours_simple is None else ", ours chat"
        )


PAIRS = (
    Pair("llava_hf", "llava_vtw", "llava", ("mme", "pope", "ai2d", "scienceqa_img", "mmmu_val")),
    Pair("llava_hf", "llava_vtw", "llava", ("mme", "mmmu_val"), simple=True),
    Pair("llava_hf", "llava_vtw", "llava_next", ("mme", "mmmu_val")),
    Pair("llava_hf", "llava_vtw", "llava_onevision", ("mme", "mmmu_val")),
    Pair("llava_hf", "llava_vtw", "llava_onevision", ("mme", "videomme"), simple=True),
    Pair(
        "qwen2_vl",
        "qwen2vl_vtw",
        "qwen2_vl",
        ("mme", "pope", "ai2d", "scienceqa", "mmmu_val", "videomme"),
        simple=True,
    ),
    Pair("qwen2_vl", "qwen2vl_vtw", "qwen2_vl", ("mme", "scienceqa", "videomme"), simple=True, ours_simple=False),
    Pair("qwen2_5_vl", "qwen2vl_vtw", "qwen2_5_vl", ("mme", "scienceqa", "mmmu_val", "videomme"), bfloat16=True),
    Pair("qwen2_5_vl", "qwen2vl_vtw", "qwen2_5_vl", ("mme", "videomme"), simple=True, bfloat16=True),
    # lmms-eval's adapter fails for videos of fewer frames than it is asked for
    Pair(
        "qwen3_vl",
        "qwen2vl_vtw",
        "qwen3_vl",
        ("mme", "scienceqa", "mmmu_val", "videomme"),
        bfloat16=True,
        options=",max_num_frames=7",
    ),
    Pair(
        "qwen3_vl",
        "qwen2vl_vtw",
        "qwen3_vl",
        ("mme", "mmmu_val", "videomme"),
        simple=True,
        bfloat16=True,
        options=",min_pixels=4096,max_pixels=16384,fps=4,max_num_frames=10",
    ),
    Pair(
        "qwen3_vl",
        "qwen2vl_vtw",
        "qwen3_vl-A1B",
        ("mme", "videomme"),
        bfloat16=True,
        options=",max_num_frames=8",
    ),
    Pair("internvl_hf", "internvl_vtw", "internvl", ("mme", "scienceqa", "mmmu_val"), bfloat16=True),
    Pair("internvl_hf", "internvl_vtw", "internvl3_5", ("mme", "mmmu_val"), bfloat16=True),
)

ERRORS = {
    "wrong option": ("llava_vtw", "llava", ",methd=vtw", "unknown option 'methd' of llava_vtw; did you mean 'method'?"),
    "k out of range": ("llava_vtw", "llava", ",k=99", "k=99 is out of range: this model has 4 decoder layers"),
    "other family": ("llava_vtw", "qwen2_vl", "", "Use --model qwen2vl_vtw for it."),
    "no checkpoint": ("llava_vtw", None, "", "no checkpoint at pretrained='/nowhere/at-all'"),
    "remote code": ("internvl_vtw", "internvl_remote", "", "add trust_remote_code=True"),
    "k twice": ("llava_vtw", "llava", ",k=1,k=2", "'k' stands 2 times in the model's arguments"),
    "batch size twice": ("llava_vtw", "llava", ",batch_size=2", "give --batch_size alone"),
    "bad batch size": ("llava_vtw", "llava", " --batch_size auto", "bad value batch_size='auto'"),
}
"""Adapter, family, rest of the command line, part of the message."""


MISSING = {
    "missing image": "task pope_without_files, split test, doc_id 1: FileNotFoundError: ",
    "missing video": "task videomme, split test, doc_id 3: ",
}
"""Part of the message."""


def write_task_without_files(folder: Path) -> None:
    """Write a task, POPE by its code, whose documents name image files that do not exist."""
    import lmms_eval.tasks
    import pyarrow.parquet
    from datasets import Features, Image, Value

    row = {"question_id": "0", "question": "Is it?", "answer": "yes", "category": "random"}
    features = Features({**dict.fromkeys(row, Value("string")), "image": Image()})
    # lmms-eval itself reads the first document
    rows = [{**row, "image": image} for image in (picture_bytes(0), {"bytes": None, "path": "/nowhere/1.png"})]
    (folder / "data").mkdir()
    # datasets itself would read the file when it writes the table
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / "data" / "test.parquet")
    stock = Path(lmms_eval.tasks.__path__[0]) / "pope" / "pope.yaml"
    text = f"include: {stock}\ntask: pope_without_files\ndataset_path: {folder / 'data'}\n"
    (folder / "pope_without_files.yaml").write_text(text)


def harness_jobs(checkpoint: Callable[[str], str], data: Path, scratch: Path) -> dict[str, Any]:
    """Return the jobs for :mod:`tests.model_adapters.lmms.drive` by name."""
    jobs: dict[str, Any] = {}
    for pair in PAIRS:
        source = f"pretrained={checkpoint(pair.family)}"
        ours_simple = pair.simple if pair.ours_simple is None else pair.ours_simple
        jobs[f"{pair.name}: stock"] = {
            "model": pair.stock,
            "args": f"{source},device_map=cpu{pair.options}",
            "tasks": pair.tasks,
            "simple": pair.simple,
        }
        jobs[f"{pair.name}: ours"] = {
            "model": pair.ours,
            "args": f"{source},method=baseline{',dtype=bfloat16' if pair.bfloat16 else ''}{pair.options}",
            "tasks": pair.tasks,
            "simple": ours_simple,
            "batch_size": 1 if pair.bfloat16 else 3,
        }
    for name, (adapter, family, rest, _) in ERRORS.items():
        source = checkpoint(family) if family else "/nowhere/at-all"
        line = f"--model {adapter} --tasks mme --device cpu --verbosity WARNING --model_args pretrained={source}{rest}"
        jobs[name] = {"command": line.split()}
    write_task_without_files(scratch)
    line = f"--model llava_vtw --tasks pope_without_files --device cpu --verbosity WARNING --include_path {scratch}"
    jobs["missing image"] = {"command": f"{line} --model_args pretrained={checkpoint('llava')}".split()}
    line = "--model video_llava_vtw --tasks videomme --device cpu --verbosity WARNING"
    jobs["missing video"] = {
        "command": f"{line} --model_args pretrained={checkpoint('video_llava')}".split(),
        "hide": str(data / "hf_home" / "videomme" / "data" / "video3.mp4"),
    }
    return jobs
