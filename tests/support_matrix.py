"""Print which method runs on which family of checkpoints through lmms-eval, and why the others are refused.

Run it as ``python -m tests.support_matrix > results/support.md``; it takes some minutes, or one with ``--skip-verify``,
which leaves out the comparison with masked attention before the first answer. ``--families`` and ``--methods`` take a
part of the table.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import torch
import transformers
from datasets import Dataset, Features, Image, List, Value
from lmms_eval import evaluator
from loguru import logger
from rich.console import Console
from rich.progress import Progress
from tabulate import tabulate

from tests.methods.examples import EXAMPLES
from tests.support.checkpoints import make_checkpoint
from tests.support.gates import fitted
from tests.support.harness_data import picture_bytes, question, write_video
from vtw_eval.methods import Composite, DyVTE, Method
from vtw_eval.methods.registry import METHODS
from vtw_eval.model_adapters.lmms.models import VTWModel, model_class
from vtw_eval.models.failures import DocumentError
from vtw_eval.verify.verdict import VerificationError


@dataclass(frozen=True)
class Checkpoint:
    """How a family's tiny checkpoint is opened."""

    adapter: str
    videos: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Checkpoint] = {
    "llava": Checkpoint("llava_vtw"),
    "llava_next": Checkpoint("llava_vtw"),
    "llava_onevision": Checkpoint("llava_vtw", True, {"max_frames_num": 4}),
    "qwen2_vl": Checkpoint("qwen2vl_vtw", True, {"max_num_frames": 4, "max_pixels": 16 * 28**2}),
    "qwen2_5_vl": Checkpoint(
        "qwen2vl_vtw", True, {"max_num_frames": 4, "min_pixels": 4 * 28**2, "max_pixels": 16 * 28**2}
    ),
    "qwen3_vl": Checkpoint(
        "qwen2vl_vtw", True, {"max_num_frames": 4, "min_pixels": 4 * 32**2, "max_pixels": 16 * 32**2}
    ),
    "internvl": Checkpoint("internvl_vtw", True, {"num_frames": 4}),
    "internvl_remote": Checkpoint("internvl_vtw", True, {"num_frames": 4, "trust_remote_code": True}),
    "video_llava": Checkpoint("video_llava_vtw", True),
}
"""By the names of :mod:`tests.support.checkpoints`."""

TASKS = {"images": "support_images", "videos": "support_videos"}
"""Name of the task of each kind of document."""

REFUSALS = (ValueError, TypeError, NotImplementedError, VerificationError)
"""What a refusal raises; everything else is a bug, which ends the table."""


@dataclass(frozen=True)
class Cell:
    """What came of a method on a family's checkpoint."""

    kept: int = 0
    """Vision tokens, or what is merged of them, that enter the last layer, over all documents."""
    total: int = 0
    """Vision tokens of the prompts."""
    refusal: str = ""
    """Why there are no answers."""


def examples(keys: Sequence[str] = tuple(METHODS)) -> dict[str, Method]:
    """Return one example of each method by its key.

    Parameters
    ----------
    keys
        Of methods of the registry; all by default.

    Raises
    ------
    LookupError
        For methods that have none in :mod:`tests.methods.examples`.
    """
    found: dict[str, Method] = {}
    for method in EXAMPLES.values():
        if not isinstance(method, Composite):
            found.setdefault(method.key, method)
    if missing := [key for key in keys if key not in found]:
        raise LookupError(f"tests/methods/examples.py has no example of {', '.join(missing)}.")
    return {key: found[key] for key in keys}


_CODE = '''"""Code of the tasks."""


def visuals(doc):
    return doc["visuals"]


def text(doc):
    return doc["question"]


def results(doc, answers):
    return {"answered": 1.0}
'''

_TASK = """task: {task}
dataset_path: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function code.visuals
doc_to_text: !function code.text
doc_to_target: question
process_results: !function code.results
generation_kwargs: {{max_new_tokens: 2}}
metric_list: [{{metric: answered, aggregation: mean, higher_is_better: true}}]
"""


def write_tasks(folder: Path) -> None:
    """Write two tasks of two documents each: one and two pictures, and a video each."""
    (folder / "code.py").write_text(_CODE)
    videos = [folder / f"{seed}.mp4" for seed in range(2)]
    for seed, path in enumerate(videos):
        write_video(path, seed)
    shown: Mapping[str, tuple[list[list[Any]], Any]] = {
        "images": ([[picture_bytes(0)], [picture_bytes(1), picture_bytes(2)]], Image()),
        "videos": ([[str(path)] for path in videos], Value("string")),
    }
    for kind, (visuals, feature) in shown.items():
        rows = {"question": [question(seed) for seed in range(2)], "visuals": visuals}
        table = Dataset.from_dict(rows, Features({"question": Value("string"), "visuals": List(feature)}))
        (folder / kind).mkdir()
        table.to_parquet(folder / kind / "test.parquet")
        (folder / f"{kind}.yaml").write_text(_TASK.format(task=TASKS[kind], data=folder / kind))


def matrix(
    families: Sequence[str],
    methods: Mapping[str, Method],
    folder: Path,
    *,
    verify: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> dict[tuple[str, str, str], Cell]:
    """Evaluate methods on the tiny checkpoints of families, each opened once, with lmms-eval's evaluator.

    Parameters
    ----------
    families
        Keys of :data:`FAMILIES`.
    methods
        By key.
    folder
        Empty; gets the checkpoints and the tasks.
    verify
        Compare each method with masked attention first, as a user's evaluation does.
    advance
        Called after each method on a family.

    Returns
    -------
    dict
        By kind of document, family and method.
    """
    write_tasks(folder)
    manager = lmms_eval.tasks.TaskManager("ERROR", include_path=[str(folder)], include_defaults=False)
    tasks = lmms_eval.tasks.get_task_dict(list(TASKS.values()), manager, "chat")
    found: dict[tuple[str, str, str], Cell] = {}
    for family in families:
        checkpoint = FAMILIES[family]
        source = make_checkpoint(family, folder / family)
        given = {"method": "baseline", "device": "cpu", "batch_size": 2, "verify": verify, **checkpoint.options}
        model: Any = model_class(checkpoint.adapter)(pretrained=str(source), **given)
        model.clean = lambda: None  # the evaluator would free the model, which goes on with the next method
        for name, method in methods.items():
            refusal = _exchanged(model, method)
            for kind in ("images", "videos") if checkpoint.videos else ("images",):
                task = tasks[TASKS[kind]]
                found[kind, family, name] = (
                    Cell(refusal=refusal) if refusal else _evaluated(model, task, manager, folder)
                )
            advance()
    return found


def _exchanged(model: VTWModel, method: Method) -> str:
    """Go on with a method; return why it is refused, or nothing."""
    runner = model._runner
    try:
        method = fitted(method, runner.family.model)
        if isinstance(method, DyVTE):  # random gates are no checkpoint's own
            method = replace(method, check_name=False)
        runner.exchange(method)
    except REFUSALS as error:
        return _reason(error, method)
    return ""


def _evaluated(model: VTWModel, task: Any, manager: Any, folder: Path) -> Cell:
    try:
        results = evaluator.simple_evaluate(
            model=model,
            tasks=[task],
            bootstrap_iters=0,
            task_manager=manager,  # without one it reads all tasks of lmms-eval
            cli_args=argparse.Namespace(output_path=str(folder), process_with_media=False),
        )
    except DocumentError as error:
        cause: BaseException | None = error
        while isinstance(cause, DocumentError):
            cause = cause.__cause__
        if not isinstance(cause, REFUSALS):
            raise
        return Cell(refusal=_reason(cause, model._runner.method))
    assert results is not None
    costs = [row["token_counts"][0] for row in results["samples"][task.config.task]]
    assert len(costs) == 2, "two documents"
    return Cell(sum(cost["vision_per_layer"][-1] for cost in costs), sum(cost["vision_tokens"] for cost in costs))


def _reason(error: BaseException, method: Method) -> str:
    """Return why a method is refused, in words that are the same for all methods that are refused for it."""
    return re.sub(rf"^{re.escape(method.name)}(,\S*)?(?= )", "it", " ".join(str(error).split()))


def document(found: Mapping[tuple[str, str, str], Cell], methods: Mapping[str, Method]) -> str:
    """Return the tables and the reasons of refusals in Markdown.

    Parameters
    ----------
    found
        See :func:`matrix`.
    methods
        By key.
    """
    reasons: dict[str, int] = {}
    tables = []
    for kind in TASKS:
        families = list(dict.fromkeys(family for of, family, _ in found if of == kind))
        if not families:
            continue
        rows = [
            [f"`{method}`", *(_shown(found[kind, family, name], reasons) for family in families)]
            for name, method in methods.items()
        ]
        table = tabulate(rows, headers=["method", *families], tablefmt="github", disable_numparse=True)
        tables.append(f"## {kind.capitalize()}\n\n{table}")
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    refused = f"\n\n## Why the others are refused\n\n{notes}" if notes else ""
    return "\n\n".join(tables) + refused


def _shown(cell: Cell, reasons: dict[str, int]) -> str:
    if cell.refusal:
        return f"no ({reasons.setdefault(cell.refusal, len(reasons) + 1)})"
    return f"{cell.kept} of {cell.total}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--skip-verify", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logger.remove()
    methods = examples(arguments.methods)
    with (
        contextlib.redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("methods on families", total=len(methods) * len(arguments.families))
        found = matrix(
            arguments.families,
            methods,
            Path(folder),
            verify=not arguments.skip_verify,
            advance=lambda: progress.advance(bar),
        )
    verified = f"{'Not c' if arguments.skip_verify else 'C'}ompared with masked attention before the first answer."
    print(
        "# Methods on families, through lmms-eval\n\n"
        "Each method on a tiny random checkpoint of each family, evaluated by lmms-eval's evaluator with our adapter\n"
        "on two documents of a local task: one and two pictures, or a video each. A cell tells how many of the vision\n"
        "tokens, or of what is merged of them, enter the last of four layers, or the number of the reason why the\n"
        f"method is refused there. {verified}\n\n"
        f"Made by `python -m tests.support_matrix{' --skip-verify' * arguments.skip_verify}` with lmms-eval "
        f"{version('lmms-eval')},\ntorch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()} CPU.\n"
    )
    print(document(found, methods))


if __name__ == "__main__":
    main()
