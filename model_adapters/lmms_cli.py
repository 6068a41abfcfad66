"""The console script ``lmms_eval``: lmms-eval's own command line, with our tasks and an honest exit status.

lmms-eval prints a traceback and exits with 0 when an evaluation fails. Here a failure is one line (the traceback with
``--verbosity DEBUG``) and exit status 1. Everything else is lmms-eval's: arguments, sub-commands, output.
For data parallelism: ``accelerate launch -m vtw_eval.model_adapters.lmms_cli --model llava_vtw ...``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from vtw_eval.tasks.loading import dataset_failures_told

_WITHOUT_TASKS = frozenset({"--help", "-h", "mcp", "models", "version"})
"""First arguments after which lmms-eval reads no task, so that its slow modules need not be loaded."""


def tasks_folder() -> Path:
    """Return the folder of our task definitions."""
    import vtw_eval.tasks

    return Path(vtw_eval.tasks.__path__[0])


def include_paths(given: str | Sequence[str] | None) -> list[str]:
    """Return the folders that lmms-eval searches for tasks: ours and those a user named.

    Raises
    ------
    ValueError
        If a named folder does not exist; lmms-eval itself would pass over it.
    """
    named = [given] if isinstance(given, str) else list(given or [])
    for folder in named:
        if not Path(folder).is_dir():
            raise ValueError(f"--include_path {folder} is not a folder.")
    return [str(tasks_folder()), *named]


def describe(error: BaseException) -> str:
    """Return an exception's message in one line, with its type unless it is written for users."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | NotImplementedError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}"


def check_results(arguments: argparse.Namespace, results: dict[str, Any] | None, since: float) -> None:
    """Raise ``RuntimeError`` if an evaluation on the main process gave no results, or wrote none where it was told to.

    Parameters
    ----------
    arguments
        lmms-eval's arguments.
    results
        What the evaluation returned; None on all processes but the main one.
    since
        Time when the evaluation began, seconds since the epoch.
    """
    if int(os.environ.get("RANK", 0)):
        return
    if results is None:
        raise RuntimeError("the evaluation returned no results.")
    if arguments.output_path:
        expected = ["*_results.json"]
        if arguments.log_samples:
            expected += [f"*_samples_{task}.jsonl" for task in results["configs"]]
        for pattern in expected:
            found = Path(arguments.output_path).rglob(pattern)
            if not any(file.stat().st_mtime >= since - 1 for file in found):
                raise RuntimeError(f"no {pattern} was written to {arguments.output_path}.")


@contextmanager
def our_tasks() -> Iterator[None]:
    """Let lmms-eval's task managers search our tasks too."""
    from lmms_eval.tasks import TaskManager

    original = TaskManager.__init__

    @functools.wraps(original)
    def init(self: Any, verbosity: str = "INFO", include_path: Any = None, *args: Any, **kwargs: Any) -> None:
        original(self, verbosity, include_paths(include_path), *args, **kwargs)

    with mock.patch.object(TaskManager, "__init__", init):
        yield


@contextmanager
def failures_noted(failures: list[str]) -> Iterator[None]:
    """Note a message for each evaluation of lmms-eval that fails.

    In a single process the evaluations of a ``--config`` list that follow still run. One process of several leaves at
    once, because the others wait for it; the launcher ends them.
    """
    from lmms_eval import __main__ as upstream

    evaluate: Callable[[argparse.Namespace], Any] = upstream.cli_evaluate_single

    @functools.wraps(evaluate)
    def noting(arguments: argparse.Namespace) -> Any:
        since = time.time()
        try:
            if arguments.tasks is None:
                raise ValueError("name at least one task, for instance --tasks mme,pope; --tasks list shows all.")
            results, samples = evaluate(arguments)
            check_results(arguments, results, since)
        except Exception as error:
            if arguments.verbosity == "DEBUG":
                raise
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                sys.exit(f"lmms_eval: error: {describe(error)}")
            failures.append(describe(error))
            return None, None
        return results, samples

    with mock.patch.object(upstream, "cli_evaluate_single", noting):
        yield


def main() -> None:
    """Run lmms-eval's command line; exit with 1 if an evaluation failed."""
    from lmms_eval.cli import dispatch

    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in _WITHOUT_TASKS:
        dispatch.main()
        return
    failures: list[str] = []
    debug = "DEBUG" in " ".join(sys.argv)
    with our_tasks(), dataset_failures_told(), failures_noted(failures):
        try:
            dispatch.main()
        except Exception as error:
            if debug:
                raise
            failures.append(describe(error))
    for failure in failures:
        print(f"lmms_eval: error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
