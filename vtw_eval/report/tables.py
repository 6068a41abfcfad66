"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vtw_eval.cost.units import flops_unit
from vtw_eval.report.analysis import BASELINE, ModelTable, Row, Score
from vtw_eval.report.labels import Ablation, params_of
from vtw_eval.report.render.blocks import Inline, Text
from vtw_eval.report.stats.aggregate import by_category
from vtw_eval.report.stats.evidence import Evidence
from vtw_eval.report.stats.statistics import Comparison
from vtw_eval.tables import Table

MARKS = {"better": " ▲", "worse": " ▼", "": ""}


def percent_margin(evidence: Evidence, scale: float, points: float) -> float:
    """Return ``points`` percent of a metric's range in the unit of its evidence; MME's range is 200 per category."""
    if evidence.kind == "mme":
        return points / 100 * 200 * len(set(evidence.documents.categories))
    return points / scale if scale == 100 else points


def main_table(table: ModelTable, equivalence: float | None = None) -> Table[Inline]:
    """Return methods by columns, in the layout of the VTW paper's Table 2.

    Parameters
    ----------
    table
        What to show.
    equivalence
        Percent of a metric's range; ≈ marks what differs from the reference by less than that (TOST).
    """
    lower = {t for row in table.rows for t, s in row.scores.items() if not s.outcome.higher_is_better}
    best = {title: _best(table, title) for title in table.columns}
    flops = [row.flops for row in table.rows if row.flops is not None]
    unit, unit_name = flops_unit(max(flops, default=0.0))
    headers = ["method", *([f"{unit_name} ↓"] if flops else [])]
    headers += [f"{title} {'↓' if title in lower else '↑'}" for title in table.columns]
    base = table.baseline.flops if table.baseline is not None else None
    rows: list[list[Inline]] = []
    for row in table.rows:
        cells: list[Inline] = [row.label, *([cost_text(row.flops, unit, base)] if flops else [])]
        cells += [_main_cell(row, title, task, best[title], equivalence) for title, task in table.columns.items()]
        rows.append(cells)
    return Table(headers, rows)


def _best(table: ModelTable, title: str) -> str | None:
    """Return the best value that a method has, as it is printed; None where there are not two methods."""
    scores = [row.scores[title] for row in table.rows if row.method != BASELINE and title in row.scores]
    if len(scores) < 2:
        return None
    pick = max if scores[0].outcome.higher_is_better else min
    return f"{pick(score.outcome.value for score in scores):.2f}"


def cost_text(flops: float | None, unit: float, base: float | None) -> str:
    """Return FLOPs in a unit with their share of the unchanged model's; ``-`` if they are not known."""
    if flops is None:
        return "-"
    amount = flops / unit
    share = f" ({flops / base:.1%})" if base else ""
    return f"{amount:.2f}{share}" if amount >= 1 else f"{amount:.3g}{share}"


def _main_cell(row: Row, title: str, task: str, best: str | None, equivalence: float | None) -> Inline:
    score = row.scores.get(title)
    if score is None:
        return missing(row, task)
    value = f"{score.outcome.value:.2f}"
    mark = MARKS[score.verdict] + (" ≈" if equal(score, equivalence) else "")
    return (Text(value, "bold" if row.method != BASELINE and value == best else "plain"), _spread(row, score) + mark)


def _spread(row: Row, score: Score) -> str:
    """Return what follows a mean over seeds: its spread, and how many runs there are where some are not done."""
    spread = "" if score.spread is None else f" ± {score.spread:.2f}"
    runs = len(score.outcome.seeds)
    return spread + (f" ({runs} of {len(row.seeds)} seeds)" if runs < len(row.seeds) else "")


def missing(row: Row, task: str) -> str:
    """Return the word that stands in place of a number."""
    result = row.results.get(task)
    if result is None:
        return "not planned"
    return "no score" if result.state == "done" else result.state


def equal(score: Score, equivalence: float | None) -> bool:
    """Tell whether two one-sided tests find a score equal to the reference's within some percent of its range."""
    if equivalence is None or score.comparison is None or score.outcome.evidence is None:
        return False
    return score.comparison.equal_within(percent_margin(score.outcome.evidence, score.outcome.scale, equivalence))


def interval_table(table: ModelTable) -> Table[Inline]:
    """Return values with their 95 % intervals."""
    rows = [
        [row.label, *(_interval_cell(row, title, task) for title, task in table.columns.items())] for row in table.rows
    ]
    return Table(["method", *table.columns], rows)


def _interval_cell(row: Row, title: str, task: str) -> str:
    score = row.scores.get(title)
    if score is None:
        return missing(row, task)
    value = f"{score.outcome.value:.2f}"
    return f"{value} [{score.interval.low:.2f}, {score.interval.high:.2f}]" if score.interval else value


def paired_table(table: ModelTable, equivalence: float | None = None) -> Table[Inline] | None:
    """Return the differences to the method of reference with their intervals and tests, None if there is none."""
    headers = ["method", "task", "difference [95 %]", "p (Holm)", "test", "lost / won", "same answers"]
    rows = []
    for title in table.columns:
        for row in table.rows:
            score = row.scores.get(title)
            if score is None or (found := score.comparison) is None:
                continue
            scale = score.outcome.scale
            same = "-" if score.identical is None else f"{score.identical:.1%}"
            cells = [
                row.label,
                title,
                difference_text(found, scale) + MARKS[score.verdict],
                p_text(score.holm_p),
                found.test,
                f"{found.lost} / {found.won}",
                same,
            ]
            rows.append([*cells, *(["yes" if equal(score, equivalence) else "no"] if equivalence is not None else [])])
    extra = [f"equal within {equivalence:g} %"] if equivalence is not None else []
    return Table([*headers, *extra], rows, words=2) if rows else None


def difference_text(comparison: Comparison, scale: float) -> str:
    """Return a difference with its interval, in the points that tables show."""
    low, high = scale * comparison.interval.low, scale * comparison.interval.high
    return f"{scale * comparison.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def p_text(p: float) -> str:
    """Return a p-value to three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def subtask_table(table: ModelTable, title: str) -> Table[Inline] | None:
    """Return a column by category, as the VTW paper's Table 9 does for MME; None if it has fewer than two."""
    parts: dict[str, Mapping[str, float]] = {}
    for row in table.rows:
        score = row.scores.get(title)
        if score is not None and (evidence := score.outcome.evidence) is not None:
            parts[row.method] = {name: score.outcome.scale * value for name, value in by_category(evidence).items()}
    names = list(dict.fromkeys(name for own in parts.values() for name in own))
    if len(names) < 2:
        return None
    rows: list[list[Inline]] = []
    for row in table.rows:
        if row.method not in parts:
            rows.append([row.label, *[missing(row, table.columns[title])] * (len(names) + 1)])
            continue
        cells: list[Inline] = [row.label]
        for name in names:
            value = f"{parts[row.method][name]:.2f}"
            others = [own[name] for method, own in parts.items() if method != BASELINE]
            best = len(others) > 1 and row.method != BASELINE and value == f"{max(others):.2f}"
            cells.append(Text(value, "bold" if best else "plain"))
        rows.append([*cells, f"{row.scores[title].outcome.value:.2f}"])
    return Table(["method", *names, "total"], rows)


def seed_table(table: ModelTable) -> Table[Inline] | None:
    """Return the score of each seed, with mean and standard deviation; None if no method ran with several seeds."""
    rows: list[list[Inline]] = []
    for row in table.rows:
        for run in row.seeds:
            rows.append(
                [run.label, *(_main_cell(run, title, task, None, None) for title, task in table.columns.items())]
            )
        if row.seeds:
            cells = [_main_cell(row, title, task, None, None) for title, task in table.columns.items()]
            rows.append([Text(row.label, "bold"), *cells])
    return Table(["method", *table.columns], rows) if rows else None


def ablation_table(table: ModelTable, family: Ablation) -> Table[Inline]:
    """Return what one parameter does, its values across, as the VTW paper's Tables 5 and 6."""
    by_method = {row.method: row for row in table.rows}
    own = [by_method[method] for method in family.methods]
    base = table.baseline
    rows: list[list[Inline]] = []
    if base is not None and base.flops and all(row.flops is not None for row in own):
        rows.append(["FLOPs", *(f"{(row.flops or 0) / base.flops:.1%}" for row in own)])
    for task in dict.fromkeys(table.columns.values()):
        found = [_found_k(row, task) for row in own]
        if any(found):
            rows.append([f"k found, {task}", *(k or "-" for k in found)])
    for title, task in table.columns.items():
        rows.append([title, *(_main_cell(row, title, task, None, None) for row in own)])
    return Table([family.parameter, *(str(value) for value in family.values)], rows)


def _found_k(row: Row, task: str) -> str:
    """Return the k that a search has found; empty where none was searched."""
    if params_of(row.method).get("k") != "search" or task not in row.results:
        return ""
    return " / ".join(str(params_of(method).get("k", "?")) for method in row.results[task].methods)


def notes_of(tables: Sequence[ModelTable]) -> list[str]:
    """Return why some scores have no interval, one line each."""
    found: dict[str, None] = {}
    for table in tables:
        for title in table.columns:
            told: dict[str, list[str]] = {}
            for row in table.rows:
                score = row.scores.get(title)
                if score is not None and score.outcome.note:
                    told.setdefault(score.outcome.note, []).append(row.label)
            for note, labels in told.items():
                who = "every method" if len(labels) == len(table.rows) else "; ".join(labels)
                found[f"No interval for {title} of {table.model} ({who}): {note}."] = None
    return list(found)
