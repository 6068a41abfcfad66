"""What a cell of a sweep is: one model with one method on one task, its samples, its costs."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vtw_eval.record.costs import SampleCosts
from vtw_eval.record.strict import Strict

VERSION: Literal[1] = 1
"""Of the files; a cell of another version is not believed."""

Aggregate = Literal["mean", "f1", "mme", "other"]
"""How a metric follows from the samples: the mean of their scores; F1 of the class "yes" from predictions and targets;
MME's sum over categories of 100 (accuracy + share of groups that are wholly right); or in another way, so that no
interval can be computed."""


LONGEST_QUESTION = 1000
"""Characters that a sample keeps of a question; a longer one is cut, and ends with three dots."""


def shortened(question: str) -> str:
    """Return a question as a sample keeps it."""
    return question if len(question) <= LONGEST_QUESTION else f"{question[: LONGEST_QUESTION - 3]}..."


class CellSpec(Strict):
    """What is evaluated. Equal specs are the same cell; how fast it runs (device, batch size) does not belong here."""

    model: str
    """Name of the model in tables."""
    adapter: str
    """Such as ``llava_vtw``."""
    pretrained: str
    """Hub id or folder of the checkpoint; ``shapes`` for the embedded one."""
    model_args: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Further options of the adapter that can change answers (dtype, attention, pixels)."""
    method: str
    """Method spec as it was asked for, ``vtw,k=16``."""
    task: str
    """Name of the task in its harness."""
    harness: str = Field(default="lmms-eval", min_length=1)
    """Name under which it plugs in."""
    limit: int | None = Field(default=None, ge=1)
    """First documents only."""
    seed: int = 0

    @property
    def key(self) -> str:
        """Hash of the spec, the name of the cell's folder."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Metric(Strict):
    """One number that a task reports."""

    value: float
    aggregate: Aggregate
    percent: bool
    """Whether the value is a share of 1, which tables show times 100."""
    higher_is_better: bool = True

    @property
    def scale(self) -> float:
        """How many times as large as the value tables show it: 100 for shares."""
        return 100.0 if self.percent else 1.0

    @property
    def shown(self) -> float:
        """The value as tables show it."""
        return self.scale * self.value


_UNKNOWN = "document "


def group_of_unknown(document: object) -> str:
    """Return the group of a document of which nobody knows what it shows: its own."""
    return f"{_UNKNOWN}{document}"


def media_of(group: str) -> str:
    """Return the digest that names a group of documents by what they show; empty where nobody knows that."""
    return "" if group.startswith(_UNKNOWN) else group


class Sample(Strict):
    """One document and its answer."""

    doc_id: str
    group: str
    """Documents that share an image are one group, the unit of resampling; for MME the pair of questions."""
    category: str = ""
    """Sub-task, such as MME's."""
    target: str
    answer: str
    """As the model gave it."""
    prediction: str = ""
    """As the task read it ("yes", "B"), where it tells."""
    question: str = ""
    """What was asked, at most :data:`LONGEST_QUESTION` characters; empty where the harness does not tell, and in
    samples of earlier versions."""
    media: str = ""
    """Digest of the pictures or the video as the harness holds them; empty where there are none, or none are known."""
    scores: dict[str, float]
    """By metric: what the document contributes; 1 or 0 for right or wrong."""
    costs: SampleCosts | None = None
    """None for a model without costs."""

    @field_validator("costs", mode="before")
    @classmethod
    def _none(cls, costs: Any) -> Any:
        return costs or None  # earlier versions wrote no costs as {}


class CellCosts(Strict):
    """Means over the samples of a cell."""

    prefill_flops: dict[str, float]
    """By convention of :mod:`vtw_eval.cost`: FLOPs of the prefill."""
    kv_bytes: float
    """Of the KV cache after the prefill."""
    input_tokens: float
    vision_tokens: float
    tokens_per_layer: list[float]
    vision_per_layer: list[float]
    latency_s: float | None
    """Seconds per document under a harness: a hint, not a measurement (that is what ``vtw-eval bench`` is for). None
    where documents shared what they have in common."""


class Cell(Strict):
    """One cell, as ``cell.json`` holds it; its samples are in ``samples.jsonl`` beside it."""

    version: Literal[1] = VERSION
    spec: CellSpec
    status: Literal["done", "failed"]
    methods: list[str] = Field(default_factory=list)
    """The methods that ran with all their parameters; more than one only where documents differ in a searched one."""
    metrics: dict[str, Metric] = Field(default_factory=dict)
    undefined: dict[str, str] = Field(default_factory=dict)
    """Metrics that the task should have and that are no finite number, each with what was reported instead."""
    documents: int = 0
    costs: CellCosts | None = None
    samples_sha256: str = ""
    """Of the bytes of ``samples.jsonl``."""
    seconds: float
    """Wall time of the evaluation."""
    finished: str
    """Time in ISO 8601, UTC."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Versions, device, batch size."""
    code: dict[str, str] = Field(default_factory=dict)
    """Of this project: version, hashes of the source by part, commit; see :mod:`vtw_eval.sweep.provenance`."""
    read: dict[str, str] = Field(default_factory=dict)
    """Digests of what was read: the checkpoint, gates, local data."""
    error: str = ""
    """Traceback of a failed cell."""

    @model_validator(mode="after")
    def _no_latency_of_shared(self) -> Cell:
        if "sharing" in self.environment and self.costs is not None and self.costs.latency_s is not None:
            raise ValueError("latency_s: answers that shared their passes have none of their own.")
        return self
