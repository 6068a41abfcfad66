"""What of VLMEvalKit is replaced for a while, each with the reason.

Beside it, its functions that read tables are replaced in :mod:`vtw_eval.tasks.kit_tables`, for our datasets too, and
the pictures of a dataset are seen on their way to a model in :mod:`vtw_eval.model_adapters.vlmeval.pictures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from vtw_eval.model_adapters.patches import Patch

_DATASET = ("dataset", "model_name")
_CHOICES = "vlmeval.dataset.utils.multiple_choice"
_VMCBENCH = "vlmeval.dataset.utils.vmcbench"
_DRAWN = "the same answer is right in one run and wrong in the next"

VLMEVALKIT: Mapping[str, Patch] = {
    "fresh": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "prepare_reuse_files",
        ("result_file", "reuse", *_DATASET),
        "answers of an earlier run, perhaps of another method, are taken for this one's",
    ),
    "build": Patch(
        "ms-vlmeval", "vlmeval.run", "build_dataset", ("dataset_name",), "the limit of questions cannot be checked"
    ),
    "configured": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "build_dataset_from_config",
        ("dataset_name",),
        "the limit of questions cannot be checked",
    ),
    "judge": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "get_judge_kwargs",
        ("dataset_name", "dataset_type", "args"),
        "a judge is asked where exact matching was promised",
    ),
    "images": Patch(
        "ms-vlmeval",
        "vlmeval.inference",
        "infer_data",
        ("out_file", "work_dir", *_DATASET),
        "the costs of answers about images are lost",
    ),
    "image table": Patch(
        "ms-vlmeval",
        "vlmeval.inference",
        "dump",
        ("data", "f"),
        "answers about images are known only as a spreadsheet changes them",
    ),
    "video table": Patch(
        "ms-vlmeval",
        "vlmeval.inference_video",
        "dump",
        ("data", "f"),
        "answers about videos are known only as a spreadsheet changes them",
    ),
    "videos": Patch(
        "ms-vlmeval",
        "vlmeval.inference_video",
        "infer_data",
        ("out_file", "work_dir", *_DATASET),
        "the costs of answers about videos are lost",
    ),
    "video job": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "infer_data_job_video",
        ("model", "dataset", "result_file", "limit"),
        "--limit does not hold for videos, and the frames of one dataset are those of the one before",
    ),
    "status": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "upsert_dataset_status",
        ("dataset_name", "status", "skip_reason", "error_message", "metrics_source"),
        "a failed dataset ends with exit status 0",
    ),
    "config": Patch(
        "ms-vlmeval", "vlmeval.run", "load", (), "the models of a --config file are evaluated once for each of them"
    ),
    "image job": Patch(
        "ms-vlmeval",
        "vlmeval.run",
        "infer_data_job",
        ("model", "limit", "work_dir", *_DATASET),
        "one process that fails leaves the others waiting",
    ),
    "process group": Patch(
        "torch",
        "torch.distributed",
        "init_process_group",
        ("backend",),
        "several processes cannot start without GPUs: the kit asks for NCCL",
    ),
    "choice reader": Patch(
        "ms-vlmeval",
        _CHOICES,
        "extract_answer_from_item",
        ("model", "item", "dataset_name"),
        "it is not known for which answer an option is drawn, and MMMU's open questions are scored as a choice",
    ),
    "choice draw": Patch("ms-vlmeval", _CHOICES, "rd", (), _DRAWN),
    "vmcbench reader": Patch(
        "ms-vlmeval",
        _VMCBENCH,
        "parse_multi_choice_response",
        (),
        "it is not known for which answer an option is drawn",
    ),
    "vmcbench draw": Patch("ms-vlmeval", _VMCBENCH, "random", (), _DRAWN),
}
"""Which of them an evaluation must call depends on its dataset; "draw" are modules that random options come from."""


@contextmanager
def replace_scoring(cls: type, evaluate: Callable[..., Any]) -> Iterator[None]:
    """Replace the function by which a class of datasets scores a table of answers.

    Here the kit's tables have changed answers, and options are drawn for those that it cannot read.
    """
    with mock.patch.object(cls, "evaluate", evaluate):
        yield


@contextmanager
def replace_argv(program: str, words: Sequence[str]) -> Iterator[None]:
    """Replace the words of the command line, from which alone the kit's parser reads."""
    with mock.patch("sys.argv", [program, *words]):
        yield


@contextmanager
def replace_model(name: str, maker: Callable[..., Any]) -> Iterator[None]:
    """Replace what the kit makes the model of a name with, which takes no arguments of a user's."""
    from vlmeval.config import supported_VLM

    with mock.patch.dict(supported_VLM, {name: maker}):
        yield
