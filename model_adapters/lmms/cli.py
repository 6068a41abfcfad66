"""The console script ``lmms_eval``: lmms-eval's own command line, with our tasks and an honest exit status.

lmms-eval prints a traceback and exits with 0 when an evaluation fails. Here a failure is one line (the traceback with
``--verbosity DEBUG``) and exit status 1. Everything else is lmms-eval's: arguments, sub-commands, output.
For data parallelism: ``accelerate launch -m vtw_eval.model_adapters.lmms.cli --model llava_vtw ...``.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtw_eval.files import check_output
from vtw_eval.importing import HarnessImportError, importing
from vtw_eval.model_adapters.errors import describe_error
from vtw_eval.model_adapters.lmms.datasets import explain_dataset_errors
from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL
from vtw_eval.model_adapters.lmms.touch_points import TOUCH_POINTS
from vtw_eval.model_adapters.patches import Patches
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import check_unique_names
from vtw_eval.verify.touch_points import check_touch_points
from vtw_eval.versions import UpstreamChangedError

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
def include_our_tasks(patches: Patches) -> Iterator[None]:
    """Let lmms-eval's task managers search our tasks too."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def init(self: Any, *args: Any, **given: Any) -> None:
            bound = signature.bind(self, *args, **given)
            bound.arguments["include_path"] = include_paths(bound.arguments.get("include_path"))
            original(*bound.args, **bound.kwargs)

        return init

    with patches.replaced("tasks", make):
        yield


@contextmanager
def collect_failures(failures: list[str], patches: Patches) -> Iterator[None]:
    """Note a message for each evaluation of lmms-eval that fails.

    In a single process the evaluations of a ``--config`` list that follow still run. One process of several leaves at
    once, because the others wait for it; the launcher ends them.
    """

    def make(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def noting(args: argparse.Namespace) -> Any:
            since, calls = time.time(), patches.calls.copy()
            try:
                if args.tasks is None:
                    raise ValueError("name at least one task, for instance --tasks mme,pope; --tasks list shows all.")
                if getattr(args, "model", None) in ADAPTERS and isinstance(args.model_args, str):
                    _check_model_args(args)
                if args.output_path:
                    check_output(Path(args.output_path), folder=True)  # lmms-eval would find out at the end
                results, samples = evaluate(args)
                patches.require(["tasks"], calls)
                check_results(args, results, since)
            except Exception as error:
                if args.verbosity == "DEBUG":
                    raise
                if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                    sys.exit(f"lmms_eval: error: {describe_error(error)}")
                failures.append(describe_error(error))
                return None, None
            return results, samples

        return noting

    with patches.replaced("evaluate", make):
        yield


def _check_model_args(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` for an option of our models that is given twice, also where lmms-eval has its own for it."""
    check_unique_names(arguments.model_args)
    names = {entry.partition("=")[0].strip() for entry in arguments.model_args.split(",")}
    for name in ("batch_size", "max_batch_size", "device"):
        if name in names and getattr(arguments, name, None) is not None:
            raise ValueError(f"{name} stands in --model_args and is an option of lmms_eval: give --{name} alone.")


def evaluates(arguments: Sequence[str]) -> bool:
    """Whether lmms-eval evaluates something if it gets these arguments and ends well."""
    asked = any(word.split("=")[0] in ("--config", "--model", "--tasks") for word in arguments)
    planned = {"--help", "-h", "--power_analysis", "--power-analysis", "--tui"} & set(arguments)
    return asked and not planned and (arguments[0] == "eval" or arguments[0].startswith("-"))


def main() -> None:
    """Run lmms-eval's command line; exit with 1 if an evaluation failed."""
    try:
        failures = _run(sys.argv[1:])
    except (HarnessImportError, UpstreamChangedError) as error:
        failures = [str(error)]
    for failure in failures:
        print(f"lmms_eval: error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _run(arguments: Sequence[str]) -> list[str]:
    """Run lmms-eval's command line and return a message for each failure."""
    with importing("lmms-eval"):
        from lmms_eval.cli import dispatch

    if (arguments[0] if arguments else "--help") in _WITHOUT_TASKS:
        dispatch.main()
        return []
    with importing("lmms-eval"):
        import lmms_eval.__main__  # noqa: F401

        check_touch_points(TOUCH_POINTS)
    patches, failures = Patches(LMMS_EVAL), list[str]()
    with include_our_tasks(patches), explain_dataset_errors(patches), collect_failures(failures, patches):
        try:
            dispatch.main()
        except SystemExit as stop:
            if stop.code or not evaluates(arguments) or patches.calls["evaluate"]:
                raise
        except Exception as error:
            if _verbosity(arguments) == "DEBUG":
                raise
            return [*failures, describe_error(error)]
    if evaluates(arguments):
        patches.require(["evaluate"])
    return failures


def _verbosity(arguments: Sequence[str]) -> str | None:
    """Return what was given to ``--verbosity``, before lmms-eval has read it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--verbosity")
    return parser.parse_known_args(arguments)[0].verbosity


if __name__ == "__main__":
    main()
