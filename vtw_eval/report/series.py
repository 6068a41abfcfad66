"""How a picture shows methods: a colour and a marker for each kind, a line through the strengths of one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vtw_eval.methods.registry import parse_method
from vtw_eval.report.analysis import BASELINE, ModelTable, Row
from vtw_eval.report.labels import params_of

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/), but for yellow, which is
lost on white, and black, which is the unchanged model's."""
GREY = "#8a8a8a"
"""Of controls, which choose without looking."""
CONTROLS = frozenset({"rand", "random_k", "random_vision", "uniform", "downsample", "first", "last"})
_MARKERS = "osD^vPX<>ph*"
_LABEL = 30
"""Characters of a label beside a line."""


@dataclass(frozen=True)
class Series:
    """Rows of a table that a line joins: one method at several strengths, the cheapest first."""

    kind: str
    """Key of the method, of all parts of a composition; what shares a colour."""
    rows: tuple[Row, ...]
    color: str
    marker: str
    control: bool
    label: str = ""


def series_of(table: ModelTable) -> list[Series]:
    """Return the methods of a table as lines, without the unchanged model and what has no FLOPs.

    Two rows are on one line if they are the same method when both are set to one strength, see
    :meth:`vtw_eval.methods.base.Method.scaled`; what a search sets stands alone. Colours go to kinds in the order of
    the table, and a marker with each, so that no two kinds share both; all controls are grey.
    """
    layers = next((result.layers for row in table.rows for result in row.results.values() if result.layers), 1)
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in table.rows:
        if row.method != BASELINE and row.flops is not None and row.scores:
            lines.setdefault((row.method.partition(",")[0], _at_one_strength(row.method, layers)), []).append(row)
    kinds = list(dict.fromkeys(kind for kind, _ in lines))
    alone = {control: [kind for kind in kinds if (kind in CONTROLS) is control] for control in (True, False)}
    found = []
    for (kind, _), rows in lines.items():
        rows.sort(key=lambda row: row.flops or 0.0)
        control = kind in CONTROLS
        number = alone[control].index(kind)
        color = GREY if control else COLORS[number % len(COLORS)]
        marker = _MARKERS[(number + number // len(COLORS)) % len(_MARKERS)]
        found.append(Series(kind, tuple(rows), color, marker, control))
    alike = {kind: [one for one in found if one.kind == kind] for kind in kinds}
    return [replace(one, label=_label(one.rows, alike[one.kind])) for one in found]


def _at_one_strength(spec: str, layers: int) -> str:
    """Return the spec of a method at half strength; its own one if it has no strength, searches it or is not known."""
    if "search" in params_of(spec).values():
        return spec  # each task has a strength of its own
    try:
        scaled = parse_method(spec).scaled(0.5, layers)
    except (ValueError, TypeError):
        return spec
    return str(scaled) if scaled is not None else spec


def _label(rows: Sequence[Row], alike: Sequence[Series]) -> str:
    """Return the words beside a line: its method, what tells it from others of its kind, the values of its strength."""
    names = [row.name for row in rows]
    if all(names):
        return _cut(rows[0].label if len(names) == 1 else f"{names[0]} … {names[-1]}")
    if len(rows) == 1 and len(rows[0].label) <= _LABEL:
        return rows[0].label
    own = [params_of(row.method) for row in rows]
    kind = alike[0].kind
    varying = [name for name in own[0] if len({str(params.get(name)) for params in own}) > 1]
    others = [params_of(one.rows[0].method) for one in alike]
    telling = [
        f"{name}={value}"
        for name, value in own[0].items()
        if name not in varying and len({str(params.get(name)) for params in others}) > 1 and value is not None
    ]
    main = [name for name in varying if name in ("k", "r")][:1]
    values = [f"{main[0]}={_values([params[main[0]] for params in own])}"] if main else []
    words = [kind, *telling, *values]
    while len(" ".join(words)) > _LABEL and len(words) > 2:
        words.pop(-1 - len(values))  # what comes last tells least
    return _cut(" ".join(words))


def _values(values: Sequence[object]) -> str:
    """Return the values of a strength: their ends if they are many."""
    numbers = sorted(value for value in values if isinstance(value, int | float))
    shown = [f"{value:.2g}" for value in numbers]
    return f"{shown[0]}…{shown[-1]}" if len(shown) > 2 else ", ".join(shown)


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def spread(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Return places as near to the wanted ones as a list of labels allows.

    Parameters
    ----------
    wanted
        In ascending order.
    step
        Least distance between two.
    low, high
        Ends of the space. If it is too small for all, the distances shrink alike.

    Returns
    -------
    list of float
        In ascending order; neighbours that are pushed together share the least total move.
    """
    if not wanted:
        return []
    step = min(step, (high - low) / max(len(wanted) - 1, 1))
    # Neighbours that touch move as one block, whose middle is the mean of what its members want.
    blocks: list[tuple[float, int]] = []

    def middle(total: float, count: int) -> float:
        half = step * (count - 1) / 2
        return min(max(total / count, low + half), high - half)

    for place in wanted:
        total, count = place, 1
        while blocks and middle(total, count) - middle(*blocks[-1]) < step * (count + blocks[-1][1]) / 2 - 1e-12:
            before, more = blocks.pop()
            total, count = total + before, count + more
        blocks.append((total, count))
    return [middle(total, count) + step * (i - (count - 1) / 2) for total, count in blocks for i in range(count)]
