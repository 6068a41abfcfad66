"""The peak of what one run allocates."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vtw_eval.runtime import free_memory
from vtw_eval.versions import UpstreamChangedError

_EVENT = "[memory]"
"""How the profiler calls an allocation or a release."""

_SLACK = 4096
"""Bytes by which the allocator may round up."""


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Run something once and return the peak of the bytes that tensors took above what was there before.

    On a GPU this is the allocator's own peak. On a CPU it is summed from the allocations that torch's profiler
    records; working memory that a math library takes for itself is not in it. The run is slowed down: do not time it.

    Parameters
    ----------
    run
        What to run.
    device
        Where it runs.

    Raises
    ------
    UpstreamChangedError
        If the profiler of this torch does not tell of allocations as it should.
    """
    free_memory()  # what earlier runs left would be released in this one, and counted as less than nothing
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    check_profiler()
    return _peak_of(run)


def _peak_of(run: Callable[[], object]) -> int:
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    level = peak = 0
    for change in _changes(recorded):
        level += change
        peak = max(peak, level)
    return peak


def _changes(recorded: profile) -> list[int]:
    """Return the bytes of each allocation and, negative, of each release, in their order.

    The public list of events has what an operator allocated on the whole, and not when.
    """
    results: Any = recorded.profiler
    events = [event for event in results.kineto_results.events() if event.name() == _EVENT]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@functools.cache
def check_profiler() -> None:
    """Look at allocations whose peak is known: without the profiler's private events it would be 0, without a word.

    Raises
    ------
    UpstreamChangedError
        If it is another one.
    """

    def run() -> None:
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(500_000, dtype=torch.uint8)
        del second, third

    try:
        peak = _peak_of(run)
    except (AttributeError, TypeError) as error:
        raise UpstreamChangedError(f"torch's profiler does not tell of allocations ({error})", "torch") from error
    if not 3_000_000 <= peak < 3_000_000 + _SLACK:
        raise UpstreamChangedError(f"torch's profiler saw a peak of {peak} bytes where 3000000 were allocated", "torch")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the profiler's library writes to the standard error stream; exceptions are not affected."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
