"""Runs of one method that differ in its seed only: one row with mean and spread, and one comparison."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from vtw_eval.names import but_for_seeds
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Outcome, Result
from vtw_eval.report.stats.evidence import repeated


def seed_groups(methods: Iterable[str]) -> list[tuple[str, ...]]:
    """Return specs of methods in groups that differ in seeds only, in the order of their first ones."""
    found: dict[Hashable, list[str]] = {}
    for spec in methods:
        found.setdefault(but_for_seeds(spec), []).append(spec)
    return [tuple(group) for group in found.values()]


def pool(runs: Sequence[Result]) -> Result:
    """Return one result for runs on the same task with different seeds.

    Its scores and FLOPs are means over the runs that are done; it is in the state of the first run if none is.

    Raises
    ------
    ReportError
        If the documents of the runs differ.
    """
    done = [run for run in runs if run.state == "done"]
    if not done:
        return runs[0]
    common = [title for title in done[0].outcomes if all(title in run.outcomes for run in done)]
    conventions = [name for name in done[0].flops if all(name in run.flops for run in done)]
    try:
        outcomes = {title: _mean([run.outcomes[title] for run in done]) for title in common}
    except ReportError as error:
        spec = done[0].spec
        raise ReportError(f"{spec.model} / {spec.task}: seeds of {spec.method} cover {error}.") from error
    return replace(
        done[0],
        methods=tuple(dict.fromkeys(method for run in done for method in run.methods)),
        flops={name: statistics.fmean(run.flops[name] for run in done) for name in conventions},
        outcomes=outcomes,
        answers_sha256="",
        samples=(),
    )


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    first = outcomes[0]
    values = tuple(outcome.value for outcome in outcomes)
    runs = [outcome.evidence for outcome in outcomes if outcome.evidence is not None]
    whole = len(runs) == len(outcomes) and len({(o.scale, o.higher_is_better) for o in outcomes}) == 1
    note = next((outcome.note for outcome in outcomes if outcome.note), "")
    return replace(
        first,
        value=statistics.fmean(values),
        evidence=repeated(runs) if whole else None,
        note="" if whole else note or "the runs with different seeds are scored in different ways",
        seeds=values,
    )
