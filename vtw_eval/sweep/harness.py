"""The socket of harnesses: what a sweep wants of one, and finding those that are installed by their entry points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from vtw_eval.errors import suggest
from vtw_eval.importing import importing
from vtw_eval.record.book import Together
from vtw_eval.record.cell import CellCosts, CellSpec, Metric, Sample

if TYPE_CHECKING:
    from vtw_eval.methods import Method
    from vtw_eval.models.adapters import Adapter
    from vtw_eval.verify.touch_points import TouchPoint

GROUP = "vtw_eval.harnesses"
"""Entry points of harnesses: a name for plans, and a class without parameters that is a :class:`Harness`."""


@dataclass(frozen=True)
class Settings:
    """How cells are run; nothing here belongs to what a cell is."""

    device: str | None = None
    """``None``: a GPU if there is one."""
    batch_size: int = 1
    verify: bool = True
    """Whether methods are first compared with masked attention, see :func:`vtw_eval.verify.verdict.verify`."""
    sharing: Literal["auto", "off"] = "auto"
    """"off": each method for itself, and each prompt."""


@dataclass(frozen=True)
class ModelKey:
    """Cells of equal key share a loaded checkpoint."""

    harness: str
    adapter: str
    pretrained: str
    args: tuple[tuple[str, object], ...]

    @classmethod
    def of(cls, spec: CellSpec) -> ModelKey:
        """Return the key of a cell."""
        return cls(spec.harness, spec.adapter, spec.pretrained, tuple(sorted(spec.model_args.items())))


@dataclass(frozen=True)
class Evaluation:
    """What a harness found out about a cell."""

    metrics: dict[str, Metric]
    samples: Sequence[Sample]
    costs: CellCosts | None
    environment: dict[str, str] = field(default_factory=dict)
    """Of the harness: its version, the device, the batch size that memory allowed."""
    read: dict[str, str] = field(default_factory=dict)
    """Digests of local data that were read, by path."""
    undefined: dict[str, str] = field(default_factory=dict)
    """Metrics without a finite value, each with what was reported instead."""


class PartialError(RuntimeError):
    """An evaluation that failed after some documents were answered.

    Parameters
    ----------
    message
        Which failed, and why.
    samples
        The others, without scores.
    """

    def __init__(self, message: str, samples: Sequence[Sample]) -> None:
        super().__init__(message)
        self.samples = list(samples)


class SampleError(RuntimeError):
    """Results of a harness that do not hold together."""


Progress = Callable[[int, int], None]
"""Told how many documents of how many are answered."""


class OpenModel(Protocol):
    """A checkpoint that a harness has loaded."""

    def evaluate(self, spec: CellSpec, progress: Progress) -> Evaluation:
        """Evaluate a cell of this checkpoint.

        Raises
        ------
        Exception
            Whatever goes wrong; nothing is turned into an empty answer.
        """


@runtime_checkable
class BookModel(Protocol):
    """An open model that answers for several methods while it has an image at hand."""

    def evaluate_together(self, spec: CellSpec, progress: Progress, together: Together) -> Evaluation:
        """Evaluate a cell with an answer book: what is in it is not computed, what is not is computed for all methods.

        Raises
        ------
        Exception
            Whatever goes wrong with the cell's own method; what goes wrong with others is told by their own cells.
        """


class Harness(Protocol):
    """What plugs a harness into sweeps. Making one, and its module, import nothing of the harness itself."""

    @property
    def name(self) -> str:
        """What plans call it; that of the entry point."""

    @property
    def package(self) -> str:
        """Distribution of the harness, whose version results depend on."""

    @property
    def apart(self) -> str:
        """Why its models are no :class:`BookModel`, so that cells are evaluated one by one; empty if they are.

        A plug without it is taken to have a reason.
        """

    def adapters(self) -> Mapping[str, Adapter]:
        """Return the options and model families of each adapter, with which plans are checked.

        Raises
        ------
        vtw_eval.importing.HarnessImportError
            If it takes the harness to know them, and that cannot be imported.
        """

    def refusal(self, method: Method) -> str:
        """Return why a method cannot work under the harness, whatever the model; empty if it can."""

    def expand(self, tasks: Sequence[str]) -> list[str]:
        """Return single tasks for names of tasks, groups of them and benchmarks, each once.

        Raises
        ------
        vtw_eval.sweep.plan.PlanError
            For a name that the harness does not know.
        """

    def open(self, spec: CellSpec, settings: Settings) -> OpenModel:
        """Load the checkpoint of a cell.

        Raises
        ------
        ValueError
            If the checkpoint, or the harness, cannot be used.
        vtw_eval.importing.HarnessImportError, vtw_eval.versions.UpstreamChangedError
            If the harness cannot be imported, or is not what it was, with the package that is to blame.
        """

    def code(self, spec: CellSpec) -> Mapping[str, str]:
        """Return hashes of the source on the harness's side that evaluates a cell, by part.

        See :func:`vtw_eval.versions.source_hash`; parts that all harnesses share are not the harness's to name.
        """

    def touch_points(self) -> Sequence[TouchPoint]:
        """Return what is relied on in the harness without its promise; ``vtw-eval verify`` checks it."""


def harness_names() -> list[str]:
    """Return the names of the harnesses that plug in, whether or not they can be imported themselves."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


@functools.cache
def find_harness(name: str) -> Harness:
    """Return a harness by its name.

    Raises
    ------
    ValueError
        For a name that no installed package plugs in, or that several do.
    vtw_eval.importing.HarnessImportError
        If the plug itself cannot be imported.
    """
    # An editable installation may be listed twice.
    found: dict[str, EntryPoint] = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        known = harness_names()
        raise ValueError(f"unknown harness {name!r}{suggest(name, known)} Installed: {', '.join(known)}.")
    if len(found) > 1:
        raise ValueError(f"several packages plug in a harness {name!r}: {', '.join(found)}. Uninstall one of them.")
    (entry,) = found.values()
    with importing(entry.dist.name if entry.dist is not None else name):
        plug: Callable[[], Harness] = entry.load()
    return plug()
