"""The console script ``vtw-vlmeval``: VLMEvalKit's command line, with our models, our datasets, an honest exit status.

VLMEvalKit exits with 0 when a dataset failed. Here each failure is a line at the end and the exit status is 1; the
other datasets and models are still evaluated. ``--model-args`` is the only argument that the kit does not have.
For data parallelism: ``torchrun --nproc-per-node 2 -m vtw_eval.model_adapters.vlmeval.cli --model ...``; there the
first failure ends the run, because the processes wait for each other.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vtw_eval.errors import suggest
from vtw_eval.importing import HarnessImportError, importing
from vtw_eval.model_adapters.errors import describe_error
from vtw_eval.model_adapters.patches import Patches
from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT, replace_model
from vtw_eval.model_adapters.vlmeval.touch_points import TOUCH_POINTS
from vtw_eval.models.options import check_unique_names
from vtw_eval.verify.touch_points import check_touch_points
from vtw_eval.versions import UpstreamChangedError

if TYPE_CHECKING:
    from vtw_eval.model_adapters.vlmeval.session import Session

PROGRAM = "vtw-vlmeval"

EPILOG = """\
vtw-eval's own models: {adapters}, which need --model-args, and
the checkpoints of the papers with a method, such as LLaVA-1.5-7B-VTW, LLaVA-1.5-7B-FastV, LLaVA-1.5-7B-baseline:

  vtw-vlmeval --data MME POPE AI2D_TEST --model LLaVA-1.5-7B-VTW LLaVA-1.5-7B-baseline --work-dir out
  vtw-vlmeval --data MME --model llava_vtw --model-args pretrained=llava-hf/llava-1.5-7b-hf,method=vtw,k=8

  --model-args A=B,C=D  options of our models and parameters of the method, as lmms_eval's --model_args

In a --config file: {{"model": {{"NAME": {{"class": "LlavaVTW", "pretrained": "...", "method": "vtw", "k": 16}}}}, ...}}
with the classes {classes}.

Answers to multiple-choice and yes-or-no questions are scored by exact matching unless --judge names a judge.
VLMEvalKit keeps answers in spreadsheets, which change texts such as "=5", "NA" and "007", and reads options such as
"None" as missing. What it changes is counted and named, also in status.json under "noted"; with media=upright among
--model-args it reads and scores what stands there. *_answers.jsonl holds the answers as the model gave them.
Questions about one image share one pass over it and have no latency then; sharing=off among --model-args answers each
for itself. batch_size=8 takes eight images at a time; without it, half precision shares nothing, to round as the kit
does.
The exit status is 1 when a dataset failed.
"""

SCORED_ELSEWHERE = frozenset(
    {
        "mode_infer",
        "official_submission_only_mmmu_test",
        "official_submission_only_mmt_bench",
        "external_submission_required",
        "test_split_without_ground_truth",
        "mmbench_evaluation_requires_official_server",
        "evaluation_not_supported_for_dataset",
    }
)
"""Reasons of the kit's for not scoring a dataset that are no failure."""

COLLECTIVE = ("build", "configured", "image job", "video job")
"""Functions that all processes call together, by their names among the patches."""


def parse_model_args(text: str | None) -> dict[str, str]:
    """Return the options in ``name=value,name=value``.

    Raises
    ------
    ValueError
        For an entry without ``=``, and for a name that stands twice.
    """
    check_unique_names(text or "")
    pairs = [entry.partition("=") for entry in (text or "").split(",") if entry.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs}


class Outcomes:
    """What became of each dataset of a model, as the kit reports it while it runs.

    Parameters
    ----------
    kit
        What is replaced in the kit.
    args
        The kit's arguments.
    """

    def __init__(self, kit: Session, args: argparse.Namespace) -> None:
        self.kit = kit
        self.args = args
        self.calls = kit.patches.calls.copy()
        """Calls of what is replaced, before the dataset that the kit is at."""
        self.started = self.calls
        self.failures: dict[str, str] = {}
        """A message for each dataset that failed."""
        self.finished: set[str] = set()
        """Datasets that the kit is done with."""

    def noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kit's function that writes ``status.json``, noting what it is told."""

        def upsert_dataset_status(**given: Any) -> Any:
            name = given["dataset_name"]
            if given.get("status") == "done":
                self.finished.add(name)
                if problem := self._problem(given) or self._passed_over(name):
                    self.failures[name] = problem
                self.calls = self.kit.patches.calls.copy()
            status = original(**given)
            if given.get("status") == "done" and (folder := given.get("run_dir")) is not None:
                self._keep_notes(folder)
            return status

        return upsert_dataset_status

    def _keep_notes(self, folder: Any) -> None:
        """Write into ``status.json`` which questions were shown or scored otherwise than they are, with their number.

        The indices are those of at most ten.
        """
        from vlmeval.smp.status_report import load_run_status, upsert_run_status

        noted = {
            name: {reason: {"count": len(indices), "index": indices[:10]} for reason, indices in reasons.items()}
            for name, reasons in self.kit.noted.items()
            if reasons
        }
        if noted:
            upsert_run_status(folder, noted={**load_run_status(folder).get("noted", {}), **noted})

    def _problem(self, given: Mapping[str, Any]) -> str | None:
        if "error_message" in given:
            error = sys.exc_info()[1]
            return describe_error(error) if error is not None else str(given["error_message"])
        reason = given.get("skip_reason")
        if reason is None:
            return None if self._has_score(given.get("metrics_source")) else "the kit computed no score."
        if reason in SCORED_ELSEWHERE:
            return None
        return "the kit computed no score." if reason == "evaluate_returned_none" else f"{reason}."

    def _passed_over(self, name: str) -> str | None:
        """Return what the kit did without our replacements, so that the answers cannot be trusted."""
        try:
            self.kit.check(name, self.args, self.calls)
        except UpstreamChangedError as error:
            return str(error)
        return None

    @staticmethod
    def _has_score(scores: Any) -> bool:
        from vlmeval.smp.status_report import flatten_summary_metrics

        return scores is not None and bool(flatten_summary_metrics(scores))


def run_model(
    run: Any, args: argparse.Namespace, name: str, config: Mapping[str, Any] | None, kit: Session
) -> list[str]:
    """Evaluate one model on all datasets and return a message for each failure.

    Parameters
    ----------
    run
        The kit's module ``run``.
    args
        Its arguments.
    name
        The model.
    config
        The content of the ``--config`` file, if there is one.
    kit
        What is replaced in the kit.
    """
    one = argparse.Namespace(**{**vars(args), "model": [name]})
    outcomes = Outcomes(kit, args)
    with ExitStack() as stack:
        stack.enter_context(kit.patches.replaced("status", outcomes.noting))
        if config is None:
            datasets = list(args.data)
        else:
            datasets = list(config["data"])
            only = {"model": {name: config["model"][name]}, "data": config["data"]}
            stack.enter_context(kit.patches.replaced("config", lambda original: lambda *args, **given: only))
            one.data = one.model = None
        try:
            run.run_task(one)
            if config is not None:
                kit.patches.require(["config"], outcomes.started)
        except Exception as error:
            return [f"model {name}: {describe_error(error)}"]
    if run.RANK:
        return []
    missing = {data: "the kit did not finish it." for data in datasets if data not in outcomes.finished}
    found = {**missing, **outcomes.failures}
    return [
        f"model {name}, dataset {data}: {found[data]}{_where(data)}"
        for data in dict.fromkeys(datasets)
        if data in found
    ]


def _where(data: str) -> str:
    """Tell which file a dataset was read from, in case it is damaged, or where its files belong."""
    from vlmeval.smp import LMUDataRoot

    table = Path(LMUDataRoot(), f"{data}.tsv")
    return f" (its table: {table})" if table.is_file() else f" (files of datasets belong in {table.parent})"


@contextmanager
def distributed_run(run: Any) -> Iterator[None]:
    """Where there are several processes, let the one that fails leave at once, and do without GPUs if there are none.

    The kit goes on with the next dataset in the process that failed, while the others wait for it for good.
    """
    if run.WORLD_SIZE == 1:
        yield
        return
    import torch

    def leaving(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            try:
                return function(*args, **given)
            except Exception as error:
                sys.exit(f"{PROGRAM}: error: {describe_error(error)}")

        return call

    with ExitStack() as stack:
        patches = Patches(VLMEVALKIT)
        for name in COLLECTIVE:
            stack.enter_context(patches.replaced(name, leaving))
        if not torch.cuda.is_available():
            stack.enter_context(patches.replaced("process group", _over_gloo))
        yield


def _over_gloo(start: Callable[..., Any]) -> Callable[..., Any]:
    return lambda backend, **given: start("gloo", **given)


def evaluate_all(run: Any, args: argparse.Namespace, model_args: Mapping[str, str]) -> list[str]:
    """Evaluate all models and return a message for each failure.

    Raises
    ------
    ValueError
        For arguments with which nothing can be evaluated.
    """
    from vlmeval.config import supported_VLM

    from vtw_eval.model_adapters.vlmeval import registry
    from vtw_eval.model_adapters.vlmeval.models import check_arguments
    from vtw_eval.model_adapters.vlmeval.session import session

    config = _check(args, model_args)
    failures: list[str] = []
    models = list(args.model if config is None else config["model"])
    makers: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name in models:
        entry = (config["model"][name] if config else {}) or {}
        cls = registry.class_of(entry)
        maker = supported_VLM.get(name)
        if cls is None and registry.is_ours(maker) and "class" not in entry:
            cls = maker.func
            maker = functools.partial(maker, **model_args)
            entry = {**maker.keywords, **entry}
            makers[name] = maker
        if cls is not None:
            given[name] = {"class": cls.__name__, **{key: value for key, value in entry.items() if key != "class"}}
    if model_args and not makers:
        raise ValueError(f"--model-args belongs to vtw-eval's models, but {', '.join(models)} are the kit's.")
    with session(given) as kit, distributed_run(run):
        for name in models:
            made = None  # the one before is freed before the next one is made
            try:
                _check_model(name, config, supported_VLM, args)
                if cls := registry.class_of(given.get(name, {})):
                    check_arguments(cls.adapter, {key: value for key, value in given[name].items() if key != "class"})
                if name in makers and args.mode != "eval" and config is None:
                    made = _Made(_alone(makers[name]))
            except Exception as error:
                failures.append(f"model {name}: {describe_error(error)}")
                continue
            kit.media = given.get(name, {}).get("media", "harness")
            kit.noted.clear()
            with replace_model(name, made or makers[name]) if name in makers else nullcontext():
                found = run_model(run, args, name, config, kit)
            if made is not None and not found and not args.reuse:
                found = _unused(name, made)
            failures += found
    return failures


class _Made:
    """Gives the kit one model whenever it makes the model of that name, and counts how often."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, **given: Any) -> Any:
        if given.get("use_vllm"):
            raise ValueError("--use-vllm is not possible: methods hook the layers of transformers models.")
        self.calls += 1
        return self.model


def _unused(name: str, made: _Made) -> list[str]:
    """Return a message if the kit has answered questions without the model that we made for it."""
    if made.calls:
        return []
    what = "VLMEvalKit has answered without the model that its table supported_VLM holds for this run"
    return [f"model {name}: {UpstreamChangedError(what, 'ms-vlmeval')}"]


def _alone(maker: Callable[[], Any]) -> Any:
    """Make a model without the variable by which transformers would spread it over the processes, as the kit does."""
    processes = os.environ.pop("WORLD_SIZE", None)
    try:
        return maker()
    finally:
        if processes is not None:
            os.environ["WORLD_SIZE"] = processes


def _check(args: argparse.Namespace, model_args: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the content of the ``--config`` file, if there is one, after checking the arguments."""
    from vtw_eval.model_adapters.vlmeval.evaluate import check_limit

    if args.api_mode:
        raise ValueError("--api-mode is for models behind an API: use the kit's own command.")
    if args.config is None:
        if not args.data or not args.model:
            raise ValueError("name datasets and models: --data MME POPE --model LLaVA-1.5-7B-VTW, or give --config.")
        check_limit(args.limit, args.data)
        return None
    if args.data or args.model:
        raise ValueError("--config names datasets and models itself: leave out --data and --model.")
    if model_args:
        raise ValueError("--model-args does not go with --config: write the options into the file.")
    try:
        config = json.loads(Path(args.config).read_text(), object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        raise ValueError(f"--config {args.config} is not JSON: {error}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data")):
        raise ValueError(f"--config {args.config} needs the objects 'model' and 'data'.")
    check_limit(args.limit, [entry.get("dataset", name) for name, entry in config["data"].items()])
    return config


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, whose names must differ."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} stands {names.count(twice[0])} times in one object of --config: once only.")
    return dict(pairs)


def _check_model(name: str, config: Mapping[str, Any] | None, known: Mapping[str, Any], args: Any) -> None:
    entry = (config["model"][name] if config else {}) or {}
    if "class" in entry:
        import vlmeval.api
        import vlmeval.vlm

        if not hasattr(vlmeval.vlm, entry["class"]) and not hasattr(vlmeval.api, entry["class"]):
            names = [n for n in (*dir(vlmeval.vlm), *dir(vlmeval.api)) if n[0].isupper()]
            raise ValueError(f"unknown class {entry['class']!r}{suggest(entry['class'], names)}")
    elif name not in known and not args.base_url:
        raise ValueError(f"unknown model{suggest(name, list(known))} vtw-vlmeval --help names ours.")


def _exit(failures: Sequence[str], rank: int) -> NoReturn:
    if rank == 0:
        for failure in failures:
            print(f"{PROGRAM}: error: {failure}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """Run VLMEvalKit's command line; exit with 1 if a dataset failed."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--model-args")
    mine, words = own.parse_known_args()
    try:
        with importing("ms-vlmeval"):
            # First of all, because it chooses the process's GPUs.
            from vlmeval import run

            from vtw_eval.model_adapters.vlmeval.evaluate import kit_arguments
            from vtw_eval.model_adapters.vlmeval.models import CLASSES
            from vtw_eval.model_adapters.vlmeval.registry import register
            from vtw_eval.tasks.kit import register_kit_datasets

            register()
            register_kit_datasets()
            check_touch_points(TOUCH_POINTS)
    except (HarnessImportError, UpstreamChangedError) as error:
        _exit([str(error)], int(os.environ.get("RANK", 0)))
    try:
        args = kit_arguments(run, words, PROGRAM)
    except SystemExit as stop:
        if stop.code == 0:
            print(EPILOG.format(adapters=", ".join(CLASSES), classes=", ".join(c.__name__ for c in CLASSES.values())))
        raise
    try:
        failures = evaluate_all(run, args, parse_model_args(mine.model_args))
    except (ValueError, OSError, UpstreamChangedError) as error:
        _exit([describe_error(error)], run.RANK)
    if failures:
        _exit(failures, run.RANK)


if __name__ == "__main__":
    main()
