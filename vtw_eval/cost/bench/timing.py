"""Clocks that wait for the device, the order of interleaved runs, and what repeated timings say."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from vtw_eval.record.strict import Strict


class Clock(Protocol):
    """Tells the time between two marks."""

    def mark(self) -> Any:
        """Wait until the device has done everything that was asked of it, and note the time."""

    def note(self) -> Any:
        """Note the time at which the device gets here, without waiting for it: nothing is slowed down."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two marks."""


class HostClock:
    """For a CPU, where a call returns when its work is done."""

    def mark(self) -> float:
        """Note the time."""
        return time.perf_counter()

    note = mark

    def seconds(self, begin: float, end: float) -> float:
        """Seconds between two marks."""
        return end - begin


class CudaClock:
    """CUDA events; each mark waits for its event, so that no phase hides behind the one before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """Record an event and wait for it."""
        event = self.note()
        event.synchronize()
        return event

    def note(self) -> torch.cuda.Event:
        """Record an event; its time is known once a later one has been waited for."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Seconds between two marks."""
        return begin.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device.

    Raises
    ------
    ValueError
        For a device other than a CPU or an NVIDIA GPU.
    """
    if device.type == "cpu":
        return HostClock()
    if device.type == "cuda":
        return CudaClock(device)
    raise ValueError(f"no synchronised clock for device {str(device)!r}: choose cpu or cuda.")


def interleaved(names: Sequence[str], rounds: int, seed: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name): in every round each name once, in an order drawn anew for each round.

    What disturbs a machine for a while then hits all of them alike, and no name always runs after the same other one.
    """
    order, rng = list(names), random.Random(seed)
    for i in range(rounds):
        rng.shuffle(order)
        for name in order:
            yield i, name


class Spread(Strict):
    """Median and quartiles of repeated measurements."""

    median: float
    q1: float
    q3: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles (linear interpolation between measurements).

    Raises
    ------
    ValueError
        Without a measurement.
    """
    if not values:
        raise ValueError("no measurement to take a median of.")
    if len(values) == 1:
        return Spread(median=values[0], q1=values[0], q3=values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, q1=q1, q3=q3)


def paired_ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Return value / base of each round that has both, in the order of rounds.

    Dividing within a round, before the median is taken, cancels what slowed that whole round down.
    """
    return [values[i] / base[i] for i in sorted(values) if i in base]
