"""What a sweep wants of a harness: open a checkpoint once, evaluate any number of its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vtw_eval.importing import importing
from vtw_eval.record.cell import CellCosts, CellSpec, Metric, Sample
from vtw_eval.verify.touch_points import check_touch_points


@dataclass(frozen=True)
class Settings:
    """How cells are run; nothing here belongs to what a cell is."""

    device: str | None = None
    """``None``: a GPU if there is one."""
    batch_size: int = 1
    verify: bool = True
    """Whether methods are first compared with masked attention, see :func:`vtw_eval.verify.verdict.verify`."""


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


def open_model(spec: CellSpec, settings: Settings) -> OpenModel:
    """Load the checkpoint of a cell in its harness.

    Raises
    ------
    ValueError
        If the checkpoint, or the harness, cannot be used.
    HarnessImportError, UpstreamChangedError
        If the harness cannot be imported, or is not what it was, with the package that is to blame.
    """
    if spec.harness == "lmms-eval":
        with importing("lmms-eval"):
            from vtw_eval.model_adapters.lmms.harness import LmmsModel

            check_touch_points(["lmms-eval"])
        return LmmsModel(spec, settings)
    with importing("ms-vlmeval"):
        from vtw_eval.model_adapters.vlmeval.harness import KitModel

        check_touch_points(["ms-vlmeval"])
    return KitModel(spec, settings)
