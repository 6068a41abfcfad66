"""Functions of the harnesses that are replaced by name, each with what would go wrong if it were no longer called.

A name that is gone fails at once; a function that upstream stops calling does not, and the run would go on with the
answers of an earlier one, or all questions in place of a few. So every replacement counts its calls.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from vtw_eval.versions import UpstreamChangedError

Make = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the replacement from the original."""


@dataclass(frozen=True)
class Patch:
    """One function of a harness that is replaced for a while."""

    package: str
    """Distribution."""
    module: str
    """Where the name is looked up by the harness's own code."""
    attribute: str
    """The function, or ``Class.method``."""
    parameters: tuple[str, ...]
    """What the replacement passes on or reads by name."""
    why: str
    """What happens without a word, or is lost, if it is not called."""

    @property
    def name(self) -> str:
        """Full name."""
        return f"{self.module}.{self.attribute}"

    def place(self) -> tuple[Any, str]:
        """Return the object that holds the function, and its name there.

        Raises
        ------
        UpstreamChangedError
            If there is no such function, or it does not take what is passed on.
        """
        owner: Any = importlib.import_module(self.module)
        *path, last = self.attribute.split(".")
        for name in (*path, last):
            found = getattr(owner, name, None)
            if found is None:
                raise UpstreamChangedError(f"{self.package} has no {self.name}, without which {self.why}", self.package)
            owner = owner if name == last else found
        given = inspect.signature(getattr(owner, last)).parameters
        if missing := [name for name in self.parameters if name not in given]:
            raise UpstreamChangedError(
                f"{self.name} takes {', '.join(given)}, and not {', '.join(missing)}", self.package
            )
        return owner, last


class Patches:
    """Replaces functions of a harness and knows which replacements have been called.

    Parameters
    ----------
    table
        The patches by a short name.
    """

    def __init__(self, table: Mapping[str, Patch]) -> None:
        self.table = table
        self.calls: Counter[str] = Counter()

    @contextmanager
    def replaced(self, name: str, make: Make) -> Iterator[None]:
        """Replace a function until the end of the block."""
        owner, attribute = self.table[name].place()
        original = getattr(owner, attribute)
        replacement = make(original)

        @functools.wraps(original)
        def counted(*args: Any, **given: Any) -> Any:
            self.calls[name] += 1
            return replacement(*args, **given)

        with mock.patch.object(owner, attribute, counted):
            yield

    def require(self, names: Sequence[str], since: Mapping[str, int] | None = None) -> None:
        """Check that replacements have been called.

        Parameters
        ----------
        names
            Their short names; of names joined by "|" one is enough.
        since
            An earlier state of :attr:`calls` from which to count.

        Raises
        ------
        UpstreamChangedError
            If one has not been called.
        """
        before = since or {}
        for name in names:
            choices = name.split("|")
            if all(self.calls[choice] <= before.get(choice, 0) for choice in choices):
                patches = [self.table[choice] for choice in choices]
                called = " or ".join(patch.name for patch in patches)
                raise UpstreamChangedError(
                    f"{patches[0].package} did not call {called}, without which {patches[0].why}", patches[0].package
                )


LMMS_EVAL = {
    "tasks": Patch(
        "lmms-eval",
        "lmms_eval.tasks",
        "TaskManager.__init__",
        ("verbosity", "include_path"),
        "vtw-eval's own tasks are not found",
    ),
    "evaluate": Patch(
        "lmms-eval",
        "lmms_eval.__main__",
        "cli_evaluate_single",
        ("args",),
        "a failed evaluation ends with exit status 0",
    ),
    "download": Patch(
        "lmms-eval",
        "lmms_eval.api.task",
        "ConfigurableTask.download",
        ("dataset_kwargs",),
        "a missing dataset is told as RetryError",
    ),
    "scores": Patch(
        "lmms-eval",
        "lmms_eval.api.task",
        "ConfigurableTask.process_results",
        ("doc", "results"),
        "equal answers that a task cannot read are right with one method and wrong with another",
    ),
}
"""Of lmms-eval; all but ``download``, which only words an error, must be called where they are replaced."""

_DATASET = ("dataset", "model_name")

VLMEVALKIT = {
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
}
"""Of VLMEvalKit; which of them an evaluation must call depends on its dataset."""
