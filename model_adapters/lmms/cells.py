"""Cells in lmms-eval, in process through its Python API."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from lmms_eval import evaluator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.tasks import TaskManager, get_task_dict

from vtw_eval.checkpoints import checkpoint
from vtw_eval.media import summary
from vtw_eval.methods import parse_method
from vtw_eval.methods.base import MetricSearch
from vtw_eval.model_adapters.lmms import samples
from vtw_eval.model_adapters.lmms.cli import tasks_folder
from vtw_eval.model_adapters.lmms.datasets import explain_dataset_errors
from vtw_eval.model_adapters.lmms.guesses import reproducible_guesses
from vtw_eval.model_adapters.lmms.metric_search import evaluate_by_metric
from vtw_eval.model_adapters.lmms.models import VTWModel, model_class
from vtw_eval.model_adapters.lmms.names import own_tasks
from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL, isolate_aggregations
from vtw_eval.model_adapters.patches import Patches
from vtw_eval.models.book import BookRunner
from vtw_eval.models.failures import DocumentError
from vtw_eval.models.requests import Answer
from vtw_eval.models.runner import Runner
from vtw_eval.models.weights import told_of
from vtw_eval.record.book import Together
from vtw_eval.record.cell import CellSpec
from vtw_eval.sweep.costs import CostModel
from vtw_eval.sweep.harness import Evaluation, PartialError, Progress, Settings
from vtw_eval.sweep.provenance import data_read
from vtw_eval.tasks.tgif.data import read_by

_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234}
"""lmms-eval's own, to which the seed of a cell is added."""


class LmmsModel:
    """A checkpoint behind one of our adapters, under the chat protocol.

    Parameters
    ----------
    spec
        A cell of the checkpoint.
    settings
        Device and batch size.
    runner
        What answers.
    """

    def __init__(self, spec: CellSpec, settings: Settings, runner: type[Runner] = BookRunner) -> None:
        own = dict(spec.model_args)
        if settings.sharing == "off":
            own["sharing"] = "off"
        self.model = _kept(model_class(spec.adapter), runner)(
            **own,
            pretrained=checkpoint(spec.pretrained),
            method="baseline",
            batch_size=settings.batch_size,
            verify=settings.verify,
            **({"device": settings.device} if settings.device else {}),
        )
        self.adapter = spec.adapter
        self.costs = CostModel(self.model._runner.family.model.config, self.model._runner.family.model.dtype)
        self._managers: dict[bool, TaskManager] = {}
        self._tasks: dict[str, Any] = {}
        self._groups: dict[tuple[str, int], list[str]] = {}

    def evaluate(self, spec: CellSpec, progress: Progress) -> Evaluation:
        """Evaluate a cell, see :class:`vtw_eval.sweep.harness.OpenModel`."""
        method = parse_method(spec.method)
        if isinstance(method.search, MetricSearch):
            return evaluate_by_metric(self, spec, method, progress)
        self.model._runner.exchange(method)
        return self.run(spec, progress)

    def evaluate_together(self, spec: CellSpec, progress: Progress, together: Together) -> Evaluation:
        """Evaluate a cell with an answer book, see :class:`vtw_eval.sweep.harness.BookModel`."""
        self.model.together = together
        try:
            return self.evaluate(spec, progress)
        finally:
            self.model.together = None

    def run(self, spec: CellSpec, progress: Progress) -> Evaluation:
        """Evaluate the task of a cell with the method that is installed."""
        runner = self.model._runner
        runner.on_answer = progress
        task = self._task(spec.task)
        self.model.seconds, self.model.kept = [], {}
        failures: dict[str, str] = {}
        patches = Patches(LMMS_EVAL)
        with (
            self._partial(task),
            reproducible_guesses(patches) as guessed,
            isolate_aggregations(task, failures),
            tempfile.TemporaryDirectory() as folder,  # some tasks write submission files
        ):
            results = evaluator.simple_evaluate(
                model=self.model,
                tasks=[task],
                limit=spec.limit,
                bootstrap_iters=0,
                task_manager=self._manager(spec.task),
                # As on lmms-eval's command line: scoring sees documents without their images.
                cli_args=argparse.Namespace(output_path=folder, process_with_media=False),
                **{name: seed + spec.seed for name, seed in _SEEDS.items()},
            )
        if results is None:
            raise RuntimeError("lmms-eval returned no results.")
        patches.require(["scores"])
        logged = results["samples"][spec.task]
        filters = list(task.instances[0].filtered_resps)
        facts = samples.Task(task.aggregation(), filters, self._shown(task, 1 + max(row["doc_id"] for row in logged)))
        metrics, rows = samples.convert(
            facts, results["results"][spec.task], results["higher_is_better"][spec.task], logged
        )
        expected = results["n-samples"][spec.task]["effective"]
        if len(rows) != expected:
            raise RuntimeError(f"lmms-eval answered {len(rows)} of {expected} documents.")
        environment = {
            "lmms-eval": version("lmms-eval"),
            "device": str(self.model.device),
            "batch_size": str(runner.batch_size),
            "dtype": str(runner.family.model.dtype).removeprefix("torch."),
            **told_of(runner.family.model),
            "methods": str(runner.verdict),
        }
        if None in self.model.seconds:
            environment["sharing"] = "methods" if isinstance(runner, BookRunner) and runner.by_book else "images"
        if guessed:
            (environment["guessed"],) = summary({"the answer could not be read, and an option was drawn": guessed})
        costs = self.costs.of(rows, self.model.seconds)
        read = data_read([task.DATASET_PATH, task.config.dataset_kwargs, read_by(spec.task)])
        lost = {**samples.undefined_metrics(facts, results["results"][spec.task]), **failures}
        return Evaluation(metrics, rows, costs, environment, read, lost)

    def _manager(self, name: str) -> TaskManager:
        """Return a manager that knows the task; the index of lmms-eval's own tasks takes seconds to make."""
        ours = name in own_tasks()
        if ours not in self._managers:
            self._managers[ours] = TaskManager(
                "WARNING", include_path=[str(tasks_folder())], include_defaults=not ours, model_name=self.adapter
            )
        return self._managers[ours]

    def _task(self, name: str) -> Any:
        """Return a task with its documents, made once for all methods."""
        if name not in self._tasks:
            with explain_dataset_errors():
                found = get_task_dict([name], self._manager(name), "chat")
            if list(found) != [name]:
                raise ValueError(f"{name} is no single task: it stands for {', '.join(map(str, found))}.")
            self._tasks[name] = found[name]
        return self._tasks[name]

    @contextmanager
    def _partial(self, task: Any) -> Iterator[None]:
        """Hand on what was answered where a document fails."""
        try:
            yield
        except DocumentError as error:
            kept = self.model.kept
            groups = self._shown(task, 1 + max(kept, default=-1))
            found = [samples.unscored_sample(doc, groups[doc], answer) for doc, answer in sorted(kept.items())]
            raise PartialError(str(error), found) from error

    def _shown(self, task: Any, count: int) -> list[str]:
        name = task.config.task
        if (name, count) not in self._groups:
            self._groups[name, count] = samples.media_groups(task.dataset[_split(task)], count)
        return self._groups[name, count]

    def name_of(self, name: str) -> tuple[str, str]:
        """Return how requests call a task and its documents: by the name and by the split."""
        task = self._task(name)
        return task.config.task, _split(task)


def _split(task: Any) -> str:
    return task.config.test_split if task.has_test_docs() else task.config.validation_split


def _kept(adapter: type[VTWModel], runner: type[Runner]) -> Any:
    """Return the adapter's class with a model that outlives an evaluation, and that notes how long answers took."""

    class Kept(adapter):  # type: ignore[valid-type, misc]  # a class known at run time only
        runner_class = runner
        together: Together | None = None
        """The answer book of the cell, and the methods that it is for."""
        seconds: list[float | None]
        kept: dict[int, Answer]
        """By document: what was answered of a task one of whose documents failed."""

        def clean(self) -> None:
            """Keep the model for the next cell."""

        def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
            # Not for tasks in rounds, where a question depends on the method's answer to the last one.
            if isinstance(self._runner, BookRunner):
                self._runner.together = self.together
            try:
                answers: Sequence[GenerationResult] = super().generate_until(requests)
            except DocumentError as error:
                self.kept = {requests[place].doc_id: answer for place, answer in error.answers.items()}
                raise
            finally:
                if isinstance(self._runner, BookRunner):
                    self._runner.together = None
            self.seconds = [answer.token_counts.costs.latency_s for answer in answers]
            return list(answers)

    return Kept
