"""The documents of an lmms-eval task as requests, without evaluating it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtw_eval.importing import importing
from vtw_eval.model_adapters.lmms.touch_points import TOUCH_POINTS
from vtw_eval.models.options import check_unique_names
from vtw_eval.models.requests import Request
from vtw_eval.models.runner import Runner
from vtw_eval.verify.touch_points import check_touch_points


class _CollectedError(Exception):
    """Ends an evaluation as soon as its documents are known."""

    def __init__(self, requests: list[Request]) -> None:
        super().__init__("documents collected")
        self.requests = requests


def parse_model_args(text: str) -> dict[str, Any]:
    """Return ``--model_args`` by name, as lmms-eval reads them.

    Raises
    ------
    ValueError
        If an entry is not of the form name=value, or a name stands twice.
    """
    with importing("lmms-eval"):
        from lmms_eval.utils import simple_parse_args_string
    check_unique_names(text)
    return simple_parse_args_string(text)


def collect(
    adapter: str, arguments: dict[str, Any], task: str | Sequence[str], limit: int, made_by: type[Runner] = Runner
) -> tuple[Runner, list[Request]]:
    """Open a model, and return it with the first documents of a task, or of each of several.

    Parameters
    ----------
    adapter
        As for ``lmms_eval --model ADAPTER``.
    arguments
        As for ``--model_args``.
    task
        A task of lmms-eval or of ours; several in a sequence.
    limit
        How many documents.
    made_by
        Kind of runner.

    Raises
    ------
    ValueError
        If the adapter or the task is unknown, the checkpoint unsuitable, or the task generates no answers.
    DatasetError
        If the task's dataset cannot be loaded.
    """
    from vtw_eval.models.adapters import ADAPTERS

    with importing("lmms-eval"):
        from lmms_eval import evaluator
        from lmms_eval.tasks import TaskManager

        from vtw_eval.model_adapters.lmms.cli import tasks_folder
        from vtw_eval.model_adapters.lmms.datasets import explain_dataset_errors
        from vtw_eval.model_adapters.lmms.models import model_class

        check_touch_points(TOUCH_POINTS)
    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}. Valid: {', '.join(ADAPTERS)}.")
    manager = TaskManager("WARNING", include_path=[str(tasks_folder())], model_name=adapter)
    tasks = [task] if isinstance(task, str) else list(task)
    for name in tasks:
        if name not in manager.all_tasks:
            raise ValueError(f"unknown task {name!r}: lmms_eval --tasks list shows all.")

    class Collector(model_class(adapter)):  # type: ignore[misc]
        runner_class = made_by

        def generate_until(self, requests: list[Any]) -> list[Any]:
            raise _CollectedError(self._with_media(requests))

    model = Collector(**arguments)
    try:
        with explain_dataset_errors():
            evaluator.simple_evaluate(model=model, tasks=tasks, limit=limit, task_manager=manager)
    except _CollectedError as collected:
        return model._runner, collected.requests
    raise ValueError(f"{', '.join(tasks)}: no answers are generated; these documents are no prompts to be answered.")
