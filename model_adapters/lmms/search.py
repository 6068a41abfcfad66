"""Search of k on the first documents of an lmms-eval task, without evaluating it."""

from __future__ import annotations

from typing import Any

from vtw_eval.importing import importing
from vtw_eval.methods.vtw.method import default_eta
from vtw_eval.methods.vtw.search import SearchResult
from vtw_eval.model_adapters.lmms.touch_points import TOUCH_POINTS
from vtw_eval.models.options import check_unique_names
from vtw_eval.verify.touch_points import check_touch_points

_ELSEWHERE = {
    "method": "what is searched is the k of vtw, on the unchanged model",
    "pretrained": "use --model",
    "device": "use --device",
    "verify": "use --no-verify",
}
"""Options of the adapters that a search has otherwise, and where."""


class _CollectedError(Exception):
    """Ends an evaluation as soon as its documents are known."""

    def __init__(self, requests: list[Any]) -> None:
        super().__init__("documents collected")
        self.requests = requests


def search_task(
    adapter: str,
    pretrained: str,
    task: str,
    samples: int,
    eta: float | None,
    *,
    start: int,
    direction: Any,
    model_args: str = "",
    device: str | None = None,
    verify: bool = True,
) -> SearchResult:
    """Search k on the first documents of a task.

    Parameters
    ----------
    adapter, pretrained, model_args, device
        As for ``lmms_eval --model ADAPTER --model_args pretrained=...,... --device ...``.
    task
        A task of lmms-eval or of ours.
    samples
        How many documents.
    eta
        Threshold; None takes the paper's for the checkpoint.
    start, direction
        See :func:`vtw_eval.methods.vtw.search.search_layer`.
    verify
        Whether the search is first compared with single runs on a tiny model.

    Raises
    ------
    ValueError
        If the adapter or the task is unknown, or the checkpoint unsuitable.
    DatasetError
        If the task's dataset cannot be loaded.
    """
    from vtw_eval.models.adapters import ADAPTERS

    with importing("lmms-eval"):
        from lmms_eval import evaluator
        from lmms_eval.tasks import TaskManager
        from lmms_eval.utils import simple_parse_args_string

        from vtw_eval.model_adapters.lmms.cli import tasks_folder
        from vtw_eval.model_adapters.lmms.datasets import explain_dataset_errors
        from vtw_eval.model_adapters.lmms.models import model_class

        check_touch_points(TOUCH_POINTS)
    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}. Valid: {', '.join(ADAPTERS)}.")
    manager = TaskManager("WARNING", include_path=[str(tasks_folder())], model_name=adapter)
    if task not in manager.all_tasks:
        raise ValueError(f"unknown task {task!r}: lmms_eval --tasks list shows all.")

    class Collector(model_class(adapter)):  # type: ignore[misc]
        def generate_until(self, requests: list[Any]) -> list[Any]:
            raise _CollectedError([self._request(request) for request in requests])

    check_unique_names(model_args)
    given = simple_parse_args_string(model_args)
    for name, better in _ELSEWHERE.items():
        if name in given:
            raise ValueError(f"{name} does not belong into --model-args of search-k: {better}.")
    named = {"pretrained": pretrained, "device": device, "method": "baseline", "verify": verify}
    model = Collector(**given, **{name: value for name, value in named.items() if value is not None})
    try:
        with explain_dataset_errors():
            evaluator.simple_evaluate(model=model, tasks=[task], limit=samples, task_manager=manager)
    except _CollectedError as collected:
        requests = collected.requests
    else:
        raise ValueError(f"{task} generates no answers: k is searched on prompts to be answered.")
    runner = model._runner
    threshold = default_eta(runner.anatomy.name) if eta is None else eta
    return runner.search(requests[:samples], threshold, start=start, direction=direction)
