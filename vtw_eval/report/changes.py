"""What changed since older results, and which changes are more than noise."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from vtw_eval.names import but_for_seeds, names_of
from vtw_eval.record.cell import CellSpec
from vtw_eval.report.analysis import Mark, verdict
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import group_label, named_labels
from vtw_eval.report.render.blocks import Block, Details, Inline, Items, Paragraph, Text
from vtw_eval.report.results import Outcome, Result, Results
from vtw_eval.report.seeds import pool
from vtw_eval.report.stats.statistics import Comparison, compare, holm
from vtw_eval.report.tables import MARKS, difference_text, p_text
from vtw_eval.tables import Table


@dataclass(frozen=True)
class Change:
    """One column of one cell, now and before; with several seeds the mean over those that are done in both."""

    spec: CellSpec
    """Of the first seed."""
    method: str
    """What tables call it."""
    seeds: int
    """Runs whose mean this is."""
    title: str
    old: float
    new: float
    scale: float
    higher_is_better: bool
    comparison: Comparison
    holm_p: float = 1.0

    @property
    def verdict(self) -> Mark:
        """Whether the change is significant, and which way it goes."""
        return verdict(self.comparison, self.holm_p, self.higher_is_better)


@dataclass(frozen=True)
class Changes:
    """All that differs between two results."""

    source: str
    compared: tuple[Change, ...]
    broken: tuple[str, ...]
    """Cells that were done before and are not now."""
    incomparable: tuple[str, ...]
    """Scores of both that cannot be compared, and why."""
    added: tuple[str, ...]
    removed: tuple[str, ...]
    costs: tuple[str, ...]
    """Cells whose FLOPs differ."""
    answers: int
    """Cells with other answers than before."""
    cells: int
    """Cells that are done in both."""

    @property
    def regressed(self) -> bool:
        """Whether a score is significantly worse, or a cell that was done is not."""
        return bool(self.broken) or any(change.verdict == "worse" for change in self.compared)


def changes_between(new: Results, old: Results) -> Changes:
    """Compare results cell by cell, runs that differ in seeds only as one; p-values are adjusted for all (Holm).

    Methods are called by the names of the new results.
    """
    before = {_identity(result.spec): result for result in old.cells}
    after = {_identity(result.spec): result for result in new.cells}
    labels = _labels(new, old)
    compared: list[Change] = []
    incomparable: list[str] = []
    costs: list[str] = []
    both = [
        (after[key], before[key]) for key in after if key in before and after[key].state == before[key].state == "done"
    ]
    for group in _seed_pairs(both):
        first = group[0][0].spec
        called = group_label([now.spec.method for now, _ in group], labels, new.names)
        for title in dict.fromkeys(title for pair in group for result in pair for title in result.outcomes):
            try:
                compared.append(_change(group, called, title))
            except ReportError as error:
                incomparable.append(f"{first.model} / {called} / {first.task}, {title}: {error}")
    for now, then in both:
        for convention in now.flops.keys() & then.flops.keys():
            a, b = then.flops[convention], now.flops[convention]
            if abs(a - b) > 1e-9 * max(a, b):
                costs.append(f"{_name(now.spec, labels)}: {a:.6g} → {b:.6g} FLOPs ({convention})")
    adjusted = holm([change.comparison.p for change in compared])
    return Changes(
        source=old.source,
        compared=tuple(replace(c, holm_p=p) for c, p in zip(compared, adjusted, strict=True)),
        broken=tuple(
            f"{_name(result.spec, labels)}: {result.state}"
            for key, result in after.items()
            if result.state != "done" and key in before and before[key].state == "done"
        ),
        incomparable=tuple(incomparable),
        added=tuple(_name(result.spec, labels) for key, result in after.items() if key not in before),
        removed=tuple(_name(result.spec, labels) for key, result in before.items() if key not in after),
        costs=tuple(sorted(costs)),
        answers=sum(now.answers_sha256 != then.answers_sha256 for now, then in both),
        cells=len(both),
    )


def changes_blocks(changes: Changes) -> list[Block]:
    """Return what changed, for the top of a report."""
    worse = [change for change in changes.compared if change.verdict == "worse"]
    better = [change for change in changes.compared if change.verdict == "better"]
    moved = [change for change in changes.compared if change.comparison.difference and not change.verdict]
    head = (
        f"Compared with {changes.source}: {len(worse)} of {len(changes.compared)} scores significantly worse, "
        f"{len(better)} better, {len(moved)} differ within noise; answers differ in {changes.answers} of "
        f"{changes.cells} cells, FLOPs in {len(changes.costs)}."
    )
    if any(change.seeds > 1 for change in changes.compared):
        head += " Runs of a method with different seeds are compared once, by their mean."
    blocks: list[Block] = [Paragraph(Text(head, "bold" if changes.regressed else "plain"))]
    if changes.broken:
        blocks += [Paragraph("Done before, not now:"), Items(changes.broken)]
    if worse or better:
        blocks.append(_changes_table([*worse, *better]))
    folded: list[tuple[str, list[Block]]] = [
        ("Differences within noise", [_changes_table(moved)] if moved else []),
        ("Not comparable", [Items(changes.incomparable)] if changes.incomparable else []),
        ("Other FLOPs", [Items(changes.costs)] if changes.costs else []),
        ("New cells", [Items(changes.added)] if changes.added else []),
        ("Cells that are no more", [Items(changes.removed)] if changes.removed else []),
    ]
    return blocks + [Details(summary, inner) for summary, inner in folded if inner]


def _changes_table(changes: list[Change]) -> Table[Inline]:
    rows: list[list[Inline]] = [
        [
            c.spec.model,
            c.method,
            c.title,
            f"{c.old:.2f}",
            f"{c.new:.2f}",
            difference_text(c.comparison, c.scale) + MARKS[c.verdict],
            p_text(c.holm_p),
            f"{c.comparison.lost} / {c.comparison.won}",
        ]
        for c in changes
    ]
    headers = ["model", "method", "task", "before", "now", "difference [95 %]", "p (Holm)", "lost / won"]
    return Table(headers, rows, words=3)


def _seed_pairs(both: Sequence[tuple[Result, Result]]) -> list[list[tuple[Result, Result]]]:
    """Return pairs of new and old cells in groups that differ in seeds only."""
    groups: dict[Hashable, list[tuple[Result, Result]]] = {}
    for now, then in both:
        spec = now.spec
        key = (spec.model, spec.harness, but_for_seeds(spec.method), spec.task)
        groups.setdefault(key, []).append((now, then))
    return list(groups.values())


def _change(group: Sequence[tuple[Result, Result]], called: str, title: str) -> Change:
    new = _mean([now for now, _ in group], title, "any more")
    old = _mean([then for _, then in group], title, "before")
    if new.evidence is None or old.evidence is None:
        raise ReportError(f"{old.value:.2f} before, {new.value:.2f} now, without evidence ({new.note or old.note})")
    if new.evidence.kind != old.evidence.kind or new.scale != old.scale:
        raise ReportError("the metric is computed in another way")
    found = compare(new.evidence, old.evidence)
    spec = group[0][0].spec
    return Change(spec, called, len(group), title, old.value, new.value, new.scale, new.higher_is_better, found)


def _mean(runs: Sequence[Result], title: str, when: str) -> Outcome:
    """Return a score, the mean over seeds if there are several."""
    lacking = sum(title not in run.outcomes for run in runs)
    if lacking:
        some = f" with {lacking} of {len(runs)} seeds" if lacking < len(runs) else ""
        raise ReportError(f"there is no such score {when}{some}")
    return runs[0].outcomes[title] if len(runs) == 1 else pool(runs).outcomes[title]


def _labels(new: Results, old: Results) -> dict[str, str]:
    """Return what to call each method: by its name in the new results, or by its spec."""
    methods = list(dict.fromkeys(result.spec.method for result in (*new.cells, *old.cells)))
    return {method: method for method in methods} | named_labels(methods, names_of(methods, new.names))


def _identity(spec: CellSpec) -> tuple[str, ...]:
    return (spec.model, spec.harness, spec.method, spec.task, str(spec.seed))


def _name(spec: CellSpec, labels: Mapping[str, str]) -> str:
    return f"{spec.model} / {labels[spec.method]} / {spec.task}"
