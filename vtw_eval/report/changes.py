"""What changed since older results, and which changes are more than noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vtw_eval.report.analysis import Verdict, verdict
from vtw_eval.report.blocks import Block, Details, Inline, Items, Paragraph, Table, Text
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Result, Results
from vtw_eval.report.statistics import Comparison, compare, holm
from vtw_eval.report.tables import MARKS, difference_text, p_text
from vtw_eval.sweep import CellSpec


@dataclass(frozen=True)
class Change:
    """One column of one cell, now and before."""

    spec: CellSpec
    title: str
    old: float
    new: float
    scale: float
    higher_is_better: bool
    comparison: Comparison
    holm_p: float = 1.0

    @property
    def verdict(self) -> Verdict:
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
    """Compare results cell by cell; p-values are adjusted for all scores compared (Holm)."""
    before = {_identity(result.spec): result for result in old.cells}
    after = {_identity(result.spec): result for result in new.cells}
    compared: list[Change] = []
    incomparable: list[str] = []
    costs: list[str] = []
    both = [
        (after[key], before[key]) for key in after if key in before and after[key].state == before[key].state == "done"
    ]
    for now, then in both:
        for title in dict.fromkeys([*now.outcomes, *then.outcomes]):
            try:
                compared.append(_change(now, then, title))
            except ReportError as error:
                incomparable.append(f"{_name(now.spec)}, {title}: {error}")
        for convention in now.flops.keys() & then.flops.keys():
            a, b = then.flops[convention], now.flops[convention]
            if abs(a - b) > 1e-9 * max(a, b):
                costs.append(f"{_name(now.spec)}: {a:.6g} → {b:.6g} FLOPs ({convention})")
    adjusted = holm([change.comparison.p for change in compared])
    return Changes(
        source=old.source,
        compared=tuple(replace(c, holm_p=p) for c, p in zip(compared, adjusted, strict=True)),
        broken=tuple(
            f"{_name(result.spec)}: {result.state}"
            for key, result in after.items()
            if result.state != "done" and key in before and before[key].state == "done"
        ),
        incomparable=tuple(incomparable),
        added=tuple(_name(result.spec) for key, result in after.items() if key not in before),
        removed=tuple(_name(result.spec) for key, result in before.items() if key not in after),
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


def _changes_table(changes: list[Change]) -> Table:
    rows: list[list[Inline]] = [
        [
            c.spec.model,
            c.spec.method,
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


def _change(now: Result, then: Result, title: str) -> Change:
    new, old = now.outcomes.get(title), then.outcomes.get(title)
    if new is None or old is None:
        raise ReportError(f"there is no such score {'any more' if new is None else 'before'}")
    if new.evidence is None or old.evidence is None:
        raise ReportError(f"{old.value:.2f} before, {new.value:.2f} now, without evidence ({new.note or old.note})")
    if new.evidence.kind != old.evidence.kind or new.scale != old.scale:
        raise ReportError("the metric is computed in another way")
    found = compare(new.evidence, old.evidence)
    return Change(now.spec, title, old.value, new.value, new.scale, new.higher_is_better, found)


def _identity(spec: CellSpec) -> tuple[str, ...]:
    return (spec.model, spec.harness, spec.method, spec.task, str(spec.seed))


def _name(spec: CellSpec) -> str:
    return f"{spec.model} / {spec.method} / {spec.task}"
