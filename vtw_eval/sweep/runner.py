"""Evaluating one cell: the checkpoint is loaded when it is another one, the outcome goes to the store."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from vtw_eval.media import summary
from vtw_eval.record.book import Book
from vtw_eval.record.cell import Cell, CellSpec, Sample
from vtw_eval.record.store import Store
from vtw_eval.runtime import free_memory
from vtw_eval.sweep.bundles import Job, together
from vtw_eval.sweep.harness import (
    BookModel,
    Evaluation,
    ModelKey,
    OpenModel,
    PartialError,
    Progress,
    Settings,
    find_harness,
)
from vtw_eval.sweep.provenance import checkpoint_read, code_of, method_read
from vtw_eval.versions import environment

Load = Callable[[CellSpec, Settings], OpenModel]


class CellRunner:
    """Evaluates cells one after another and keeps the last checkpoint.

    Parameters
    ----------
    store
        Where cells go.
    settings
        Device and batch size.
    load
        Opens the checkpoint of a cell; its harness does by default.
    """

    def __init__(self, store: Store, settings: Settings, load: Load | None = None) -> None:
        self.store = store
        self.settings = settings
        self._load: Load = load or (lambda spec, settings: find_harness(spec.harness).open(spec, settings))
        self._key: ModelKey | None = None
        self._model: OpenModel | None = None
        self._read: dict[str, str] = {}
        """Digest of the checkpoint as it was opened."""
        self._book: Book | None = None
        """Of the last bundle."""
        self._refused = ""
        """Why the checkpoint of the key cannot be opened, so that its other cells need not try."""

    def run(self, job: Job | CellSpec, progress: Progress = lambda answered, of: None) -> Cell:
        """Evaluate a cell and keep it; a failure is a cell, too, with its traceback.

        Parameters
        ----------
        job
            The cell, and those that it may answer for by the way; or a cell that is evaluated for itself.
        progress
            Told how many documents are answered.
        """
        job = job if isinstance(job, Job) else Job(job)
        spec, start = job.spec, time.perf_counter()
        try:
            code, gates = code_of(spec), method_read(spec)
            found = self._evaluate(job, progress)
        # Task code of a harness leaves the process when a file is missing; that fails the cell only.
        except (Exception, SystemExit) as error:
            kept = error.samples if isinstance(error, PartialError) else []
            return self.store.save(failed_cell(spec, traceback.format_exc(), time.perf_counter() - start), kept)
        methods = sorted({sample.costs.method for sample in found.samples if sample.costs is not None})
        cell = Cell(
            spec=spec,
            status="done",
            methods=methods,
            metrics=found.metrics,
            undefined=found.undefined,
            code=code,
            read={**self._read, **gates, **found.read},
            documents=len(found.samples),
            costs=found.costs,
            seconds=time.perf_counter() - start,
            finished=_now(),
            environment={**environment(), **found.environment, **noted_media(found.samples)},
        )
        return self.store.save(cell, found.samples)

    def _evaluate(self, job: Job, progress: Progress) -> Evaluation:
        model = self._open(job.spec)
        told = together(job, self.store, self._read, self._book)
        if told is None or not isinstance(model, BookModel):
            return model.evaluate(job.spec, progress)
        self._book = told.book
        return model.evaluate_together(job.spec, progress, told)

    def _open(self, spec: CellSpec) -> OpenModel:
        key = ModelKey.of(spec)
        if key != self._key:
            self._key, self._model, self._refused = key, None, ""
            free_memory()
            try:
                self._model = self._load(spec, self.settings)
                self._read = checkpoint_read(spec)
            except (Exception, SystemExit) as error:
                self._refused = f"{type(error).__name__}: {error}"
                raise
        if self._model is None:
            raise RuntimeError(f"{spec.pretrained} could not be opened for an earlier cell: {self._refused}")
        return self._model


def noted_media(samples: Sequence[Sample]) -> dict[str, str]:
    """Return an entry ``media`` that names the documents whose media the model was shown otherwise than a viewer."""
    noted: dict[str, list[str]] = {}
    for sample in samples:
        for note in sample.costs.media if sample.costs is not None else ():
            noted.setdefault(note, []).append(sample.doc_id)
    return {"media": "; ".join(summary(noted))} if noted else {}


def failed_cell(spec: CellSpec, error: str, seconds: float = 0.0) -> Cell:
    """Return the cell of an evaluation that did not finish.

    Parameters
    ----------
    spec
        The cell.
    error
        Traceback or message.
    seconds
        How long it took.
    """
    return Cell(spec=spec, status="failed", error=error, seconds=seconds, finished=_now(), environment=environment())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
