"""Which setting to take: the cheapest one whose loss is shown to be small on every task.

A setting i loses L(i, t) on task t against the method of reference, on the same documents. U(i, t) is the upper end of
its paired one-sided interval at the error 0.05 / m, for m settings. *Loses less than d on every task* is said of the
settings whose largest U(i, t) is below d.

- Over tasks nothing is adjusted: the claim of one setting is false only if its loss on its worst task is d or more, and
  that task alone refuses it but for the error (intersection-union test; Berger 1982,
  https://doi.org/10.1080/00401706.1982.10487790).
- Over settings the error is divided by their number (Bonferroni; Dunn 1961,
  https://doi.org/10.1080/01621459.1961.10482090), since the cheapest of those accepted is looked for.
- For one setting the claims of all d follow from the same bounds, so all claims of all settings and every d hold
  together with a chance of 95 %.

The draws are those of the report's paired differences (:mod:`vtw_eval.report.stats.statistics`). That a difference is
not significant is no such claim: with few documents nothing is significant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vtw_eval.report.analysis import BASELINE, SIGNIFICANT, ModelTable, Row, Score, analyse
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Results
from vtw_eval.report.stats.statistics import compare
from vtw_eval.report.tables import percent_margin


@dataclass(frozen=True)
class Loss:
    """What a setting loses on one column, in percent of the metric's range: points, of MME 2 per category."""

    observed: float
    """Negative if it gains."""
    bound: float
    """The true loss is below it, see the module."""


@dataclass(frozen=True)
class Candidate:
    """A setting that costs less than the method of reference."""

    row: Row
    flops: float
    losses: Mapping[str, Loss | None]
    """By column; None where there is no score or no evidence."""

    @property
    def bound(self) -> float:
        """Percent of the range below which the loss lies on every column; infinite if one of them is lacking."""
        return max((loss.bound if loss is not None else math.inf for loss in self.losses.values()), default=math.inf)

    @property
    def worst(self) -> str:
        """The column that decides."""
        return max(self.losses, key=lambda title: loss.bound if (loss := self.losses[title]) is not None else math.inf)


@dataclass(frozen=True)
class Choice:
    """What can be said of the settings of one model."""

    table: ModelTable
    candidates: tuple[Candidate, ...]
    """The cheapest first."""
    floors: Mapping[str, float]
    """By column: the bound of a setting that changes no answer at all. No smaller loss can be shown with these
    documents and so many settings."""

    def within(self, loss: float) -> list[Candidate]:
        """Return the settings that lose less than some percent of the range on every column, the cheapest first."""
        return [candidate for candidate in self.candidates if candidate.bound < loss]

    @property
    def floor(self) -> float:
        """The largest of the floors."""
        return max(self.floors.values(), default=math.inf)


def choice_of(table: ModelTable, titles: Sequence[str] = ()) -> Choice:
    """Return what can be said of the settings of a model that cost less than its method of reference.

    Parameters
    ----------
    table
        Of :func:`vtw_eval.report.analysis.analyse`.
    titles
        Columns on which the loss counts; none are all of them.

    Raises
    ------
    ReportError
        If there is no method of reference, or its FLOPs or its scores are not known.
    """
    reference = table.reference
    if reference is None:
        raise ReportError(f"{table.model}: there is no method to compare with.")
    if reference.flops is None:
        raise ReportError(f"{table.model}: {table.withheld or 'no FLOPs are known, so none is the cheapest.'}")
    cheaper = sorted(
        (row.flops, place)
        for place, row in enumerate(table.rows)
        if row.flops is not None and row.flops < reference.flops
    )
    error = SIGNIFICANT / max(len(cheaper), 1)
    floors = {title: _floor(table, reference, title, error) for title in table.columns if title in titles or not titles}
    candidates = []
    for flops, place in cheaper:
        scores = table.rows[place].scores
        candidates.append(
            Candidate(table.rows[place], flops, {title: _loss(scores.get(title), error) for title in floors})
        )
    return Choice(table, tuple(candidates), floors)


def choices(
    results: Results, on: Sequence[str] = (), convention: str | None = None, reference: str = BASELINE
) -> tuple[Choice, ...]:
    """Return what can be said of the settings of each model, by its costs on the tasks that count.

    Parameters
    ----------
    results
        All cells.
    on
        Tasks, titles of columns or the first words of these (``mme`` for "mme (of 600)"), in small letters or capitals;
        none are all.
    convention, reference
        See :func:`~vtw_eval.report.analysis.analyse`.

    Raises
    ------
    ReportError
        If a name is of no column; the message names what there is. See also :func:`choice_of` and
        :func:`~vtw_eval.report.analysis.analyse`.
    """
    columns = {(title, cell.spec.task): None for cell in results.cells for title in cell.outcomes}
    chosen = [column for name in on for column in _called(name, list(columns), results.source)]
    tasks = {task for _, task in chosen}
    part = replace(results, cells=tuple(cell for cell in results.cells if cell.spec.task in tasks or not chosen))
    titles = [title for title, _ in chosen]
    return tuple(choice_of(table, titles) for table in analyse(part, convention, reference))


def _called(name: str, columns: Sequence[tuple[str, str]], source: str) -> list[tuple[str, str]]:
    word = name.strip().lower()
    found = [
        (title, task)
        for title, task in columns
        if word in (title.lower(), task.lower()) or title.lower().startswith(f"{word} ")
    ]
    if not word or not found:
        known = "; ".join(dict.fromkeys(title for title, _ in columns))
        raise ReportError(f"{source} has no task or column {name!r}. Columns: {known}.")
    return found


def _floor(table: ModelTable, reference: Row, title: str, error: float) -> float:
    score = reference.scores.get(title)
    if score is None:
        raise ReportError(f"{table.model}: {table.reference_name} has no score of {title}: leave it out with --on.")
    evidence = score.outcome.evidence
    if evidence is None:
        raise ReportError(f"{table.model} / {title}: {score.outcome.note}: leave it out with --on.")
    higher = score.outcome.higher_is_better
    return compare(evidence, evidence).loss_bound(error, higher) / percent_margin(evidence, score.outcome.scale, 1.0)


def _loss(score: Score | None, error: float) -> Loss | None:
    if score is None or (found := score.comparison) is None or (evidence := score.outcome.evidence) is None:
        return None
    unit, higher = percent_margin(evidence, score.outcome.scale, 1.0), score.outcome.higher_is_better
    observed = -found.difference if higher else found.difference
    return Loss(observed / unit, found.loss_bound(error, higher) / unit)
