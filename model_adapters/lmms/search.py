"""Search of k on the first documents of an lmms-eval task, without evaluating it."""

from __future__ import annotations

from typing import Any

from vtw_eval.methods.vtw.method import default_eta
from vtw_eval.methods.vtw.search import SearchResult
from vtw_eval.model_adapters.lmms.collect import collect, parse_model_args

_ELSEWHERE = {
    "method": "what is searched is the k of vtw, on the unchanged model",
    "pretrained": "use --model",
    "device": "use --device",
    "verify": "use --no-verify",
}
"""Options of the adapters that a search has otherwise, and where."""


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
    given = parse_model_args(model_args)
    for name, better in _ELSEWHERE.items():
        if name in given:
            raise ValueError(f"{name} does not belong into --model-args of search-k: {better}.")
    named = {"pretrained": pretrained, "device": device, "method": "baseline", "verify": verify}
    arguments = {**given, **{name: value for name, value in named.items() if value is not None}}
    runner, requests = collect(adapter, arguments, task, samples)
    threshold = default_eta(runner.anatomy.name) if eta is None else eta
    return runner.search(requests[:samples], threshold, start=start, direction=direction)
