"""What a benchmark finds, as it is kept in ``bench.json``."""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import Field

from vtw_eval.cost.bench.timing import Spread
from vtw_eval.record.strict import Strict

BASELINE = "baseline"


class Timings(Strict):
    """Seconds of one run."""

    vision: float
    """Vision tower, projector and embedding of the prompt."""
    prefill: float
    """Decoder on the prompt, head on its last token."""
    steps: tuple[float, ...]
    """Each decode step."""
    choice: float | None = None
    """All choices of the method, part of the prefill; None of the unchanged model, and in older files."""

    @property
    def first_token(self) -> float:
        """Time to the first token."""
        return self.vision + self.prefill

    @property
    def step(self) -> float:
        """Median over the decode steps."""
        return statistics.median(self.steps)

    @property
    def total(self) -> float:
        """From the images to the last token."""
        return self.first_token + sum(self.steps)


class Ratios(Strict):
    """A method over the baseline of the same round; median and quartiles over rounds."""

    vision: Spread | None
    """None where the vision tower is not timed, as for the first token."""
    prefill: Spread
    first_token: Spread | None
    step: Spread
    choice: Spread | None = None
    """The method's choices over the baseline's decoder prefill."""


class BenchRow(Strict):
    """One method in one setting."""

    method: str
    """As it was asked for."""
    status: Literal["done", "out of memory", "failed"]
    error: str = ""
    spec: str = ""
    """The method as sweeps spell it, with all parameters. Empty in older files."""
    vision: Spread | None = None
    """Seconds, as the three that follow; None where the vision tower is not timed, as for the first token and the
    tokens per second, which begin at the image."""
    prefill: Spread | None = None
    first_token: Spread | None = None
    step: Spread | None = None
    tokens_per_second: Spread | None = None
    choice: Spread | None = None
    """Seconds that the method's choices took, see :class:`~vtw_eval.cost.bench.choosing.TimedChoice`."""
    choice_share: Spread | None = None
    """Share of the method's own decoder prefill of the same run."""
    peak_bytes: int | None = None
    """Peak of what a run allocates on top of the weights."""
    kv_bytes: int | None = None
    """Of the real cache after the prefill."""
    prefill_flops: float | None = None
    """Exact FLOPs of the decoder on the batch, head on the last token."""
    choice_flops: float | None = None
    """FLOPs of the matrix products by which the method chooses in the batch; not in ``prefill_flops``."""
    decode_flops: float | None = None
    """Exact FLOPs of a decode step of the batch, mean over steps."""
    tokens_per_layer: list[float] = Field(default_factory=list)
    """Mean over the rows of the batch."""
    ratios: Ratios | None = None
    prefill_flops_ratio: float | None = None
    decode_flops_ratio: float | None = None
    prefill_over_flops: float | None = None
    """Prefill time ratio over FLOPs ratio: 1 is the limit of what removing tokens can give."""
    runs: dict[int, Timings] = Field(default_factory=dict)
    """Timings by round."""


class Setting(Strict):
    """A batch size and an attention implementation."""

    batch: int
    attention: str
    text: int
    vision: int
    output_tokens: int
    rows: list[BenchRow]


class Bench(Strict):
    """Everything that a benchmark found, and on what."""

    version: Literal[1] = 1
    subject: str
    note: str
    model_bytes: int
    device: str
    dtype: str
    threads: int
    rounds: int
    warmup: int
    seed: int
    compiled: bool
    command: str
    environment: str
    settings: list[Setting]
    left_out: dict[str, str] = Field(default_factory=dict)
    """Where all methods were asked for: those that the model does not take, with the reason."""
