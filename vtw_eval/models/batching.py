"""Grouping, sorting and splitting of work into batches, and going on with smaller ones when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from vtw_eval.runtime import free_memory, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_batches(
    items: Sequence[Item],
    batch_size: int,
    process: Callable[[Sequence[Item]], Sequence[Result]],
    on_smaller: Callable[[int], None],
    ahead: Callable[[Sequence[Item]], None] | None = None,
    depth: int = 0,
) -> Iterator[Result]:
    """Process items in batches, in order, halving the batch size for good each time memory runs out.

    Parameters
    ----------
    items
        The work.
    batch_size
        Items per batch at the start.
    process
        Turns a batch into one result per item.
    on_smaller
        Told the new batch size after each halving.
    ahead
        Told which batches come, before they do; the next one to be processed too.
    depth
        How many are told of beside that one.

    Yields
    ------
    Result
        One per item, in order.

    Raises
    ------
    Exception
        What ``process`` raised, when it is not a lack of memory or the batch holds a single item.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + batch_size]
        if ahead is not None:
            last = min(start + (1 + depth) * batch_size, len(items))
            for first in range(start, last, batch_size):
                ahead(items[first : first + batch_size])
        try:
            results: Sequence[Result] | None = process(batch)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            results = None
        if results is None:  # outside of the handler: its traceback would keep the tensors alive
            free_memory()
            batch_size = max(1, len(batch) // 2)
            on_smaller(batch_size)
            continue
        yield from results
        start += len(batch)


def groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Split items into groups of equal key, groups and members in the order of appearance."""
    found: dict[Hashable, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())
