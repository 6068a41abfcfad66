"""What of lmms-eval is replaced for a while, each with the reason."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from vtw_eval.errors import named
from vtw_eval.model_adapters.patches import Patch

LMMS_EVAL: Mapping[str, Patch] = {
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
"""All but ``download``, which only words an error, must be called where they are replaced."""


@contextmanager
def isolate_aggregations(task: Any, failures: dict[str, str]) -> Iterator[None]:
    """Let an aggregation that fails cost its metric only, not what all documents were answered.

    Parameters
    ----------
    task
        A task of lmms-eval; its ``aggregation`` is replaced until the end of the block.
    failures
        Gets the metrics that failed, each with its error; their values are not a number.
    """
    original = task.aggregation

    def guarded(metric: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def aggregated(*args: Any, **given: Any) -> Any:
            try:
                return function(*args, **given)
            except Exception as error:
                failures[metric] = named(error)
                return math.nan

        return aggregated

    def aggregation() -> dict[str, Callable[..., Any]]:
        return {metric: guarded(metric, function) for metric, function in original().items()}

    with mock.patch.object(task, "aggregation", aggregation):
        yield
