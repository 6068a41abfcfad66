"""The costs that the VTW and DyVTE papers print, computed again and put beside them.

VTW: https://arxiv.org/abs/2405.05803 (Tables 2, 3, 4, 8, 9). DyVTE: https://arxiv.org/abs/2411.19628 (Tables 1, 2, 4).
No number is adjusted to a row. What the papers do not state was inferred from several printed numbers together, and
is called so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from typing import Literal

import torch

from vtw_eval.checkpoints import KNOWN
from vtw_eval.cost.dry_run import tokens_per_layer
from vtw_eval.cost.exact import projector_flops, vision_tower_flops
from vtw_eval.cost.geometry import Geometry, VisionGeometry
from vtw_eval.cost.presets import PRESETS
from vtw_eval.cost.profiler import profile_flops, profiler_prefill_flops
from vtw_eval.errors import suggest
from vtw_eval.methods import ToMe
from vtw_eval.papers.printed import papers, printed_tables

Verdict = Literal["yes", "no", "implied", "not computable"]
Share = tuple[float, float]
"""A number of layers, and the tokens that each of them sees."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One printed number, or several of a row that cannot be computed."""

    model: str
    method: str
    inputs: str
    """Tokens and layers that go in."""
    convention: str
    unit: str
    printed: str
    computed: float | None = None
    """None where nothing can be computed without the printed number."""
    note: str = ""
    """What the printed number implies, or why there is nothing to compute."""

    @property
    def digits(self) -> int:
        """Decimals of the printed number."""
        return len(self.printed.partition(".")[2])

    @property
    def difference(self) -> float | None:
        """Computed minus printed."""
        return None if self.computed is None else self.computed - float(self.printed)

    @property
    def match(self) -> Verdict:
        """Whether the computed number, rounded to the printed digits (halves up), is the printed one."""
        if self.computed is None:
            return "implied" if self.note.startswith("implies") else "not computable"
        printed = Decimal(self.printed)
        return "yes" if Decimal(repr(self.computed)).quantize(printed, ROUND_HALF_UP) == printed else "no"


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A printed table and its computed counterpart."""

    key: str
    title: str
    rows: tuple[PaperRow, ...]
    footnote: str
    """Where the inputs come from, and what cannot match."""


def paper_table(key: str) -> PaperTable:
    """Return one of :data:`TABLES`, computed.

    Raises
    ------
    ValueError
        For an unknown key.
    """
    if key not in TABLES:
        raise ValueError(f"unknown table {key!r}{suggest(key, list(TABLES))} Valid: {', '.join(TABLES)}, all.")
    return TABLES[key](key)


def mean_profile(geometry: Geometry, shares: Sequence[Share]) -> float:
    """Profiles of the unchanged model on some token counts, averaged with the numbers of layers as weights.

    Unlike :func:`~vtw_eval.cost.profiler_prefill_flops` this takes weights that do not add up to the model's layers,
    as the VTW paper does for FastV on 40 layers.
    """
    weights = sum(layers for layers, _ in shares)
    tokens = torch.tensor([tokens for _, tokens in shares], dtype=torch.float64)
    return (
        sum(layers * float(f) for (layers, _), f in zip(shares, profile_flops(tokens, geometry), strict=True)) / weights
    )


# VTW ----------------------------------------------------------------------------------------------------------------

VTW_TEXT = 65.9
"""Mean text tokens on MME, inferred: the six numbers of LLaVA-1.5 in Table 2 together allow 65.85 to 65.94."""
SQA_TEXT, SQA_VISION = 124.0, 1609.0
"""Tokens of LLaVA-NeXT on ScienceQA, inferred: middle of 117.5 to 130.5 and 1599 to 1619, which Table 4 allows."""
FASTV_LAYERS = (2, 30)
"""Layers with all and with half of the vision tokens in the paper's FastV rows, whatever the model (inferred)."""

_PROFILER = "profiler"


def _printed(table: str, model: str, method: str, column: str) -> str:
    """Return what a table prints for a model and method."""
    known = printed_tables()[table]
    return known.printed(known.row(model, method), column)


def _layers(table: str, model: str, method: str) -> list[int]:
    """Return the layers that the label of a printed row names: k, or low and high."""
    parts = printed_tables()[table].row(model, method).method.split(",")[1:]
    return [int(part.partition("=")[2]) for part in parts]


def _geometry(model: str) -> Geometry:
    """Return the sizes of a model by its name in the tables."""
    return next(PRESETS[entry.geometry] for entry in KNOWN if entry.name == model)


def _vision_of(geometry: Geometry) -> int:
    assert geometry.vision_tokens is not None, "the models of the tables have a fixed number"
    return geometry.vision_tokens


def _withdrawn(k: float, layers: int, text: float, vision: float) -> list[Share]:
    return [(k, text + vision), (layers - k, text)]


def _half_pruned(before: int, after: int, text: float, vision: float) -> list[Share]:
    return [(before, text + vision), (after, text + vision / 2)]


def _vtw2(key: str) -> PaperTable:
    models = dict.fromkeys(row.model for row in printed_tables()["vtw-table2"].rows)
    return PaperTable(
        key=key,
        title="VTW, Table 2 (MME)",
        rows=tuple(row for model in models for row in _vtw2_rows(model)),
        footnote="Text 65.9 is inferred (the LLaVA-1.5 rows together allow 65.85 to 65.94); vision 2108 of NeXT is the "
        "mean that DivPrune's cost script lists for MME (the NeXT rows allow 2107.9 to 2108.7). Percentages are "
        "quotients of the rounded TFLOPs. All FastV rows take 2 and 30 of 32 layers, also for the 40 layers of the 13B "
        "model; with its true weights that row does not match. Rand keeps as many tokens as VTW. The printed Eq. 1 of "
        "the paper gives other numbers (30.5 for NeXT): see the column eq1 of vtw-eval cost --geometry llava-next-7b.",
    )


def _vtw2_rows(model: str) -> Iterator[PaperRow]:
    table, geometry, text = "vtw-table2", _geometry(model), VTW_TEXT
    vision, layers = _vision_of(geometry), geometry.layers
    [k], (low, high) = _layers(table, model, "vtw"), _layers(table, model, "random_k")

    def row(method: str, key: str, shares: Sequence[Share], setting: str, convention: str = _PROFILER) -> PaperRow:
        return PaperRow(
            model=model,
            method=method,
            inputs=f"text {text}, vision {vision:g}{setting}",
            convention=convention,
            unit="TFLOPs",
            printed=_printed(table, model, key, "TFLOPs"),
            computed=mean_profile(geometry, shares) / 1e12,
        )

    whole = row("baseline", "baseline", [(layers, text + vision)], "")
    withdrawn = _withdrawn(k, layers, text, vision)
    fastv = _half_pruned(*FASTV_LAYERS, text, vision)
    random = [share for draw in range(low, high + 1) for share in _withdrawn(draw, layers, text, vision)]
    for key, made in (
        ("baseline", whole),
        ("fastv", row("FastV", "fastv", fastv, ", K=2, R=50%", f"{_PROFILER}, weights 2/32, 30/32")),
        ("rand", row("Rand", "rand", withdrawn, f", K={k}")),
        ("random_k", row("VTW†", "random_k", random, f", mean over K={low}..{high}")),
        ("vtw", row("VTW", "vtw", withdrawn, f", K={k}")),
    ):
        yield made
        yield replace(made, unit="%", printed=_printed(table, model, key, "share %"), computed=_share(made, whole))
    if layers != sum(FASTV_LAYERS):
        convention = f"{_PROFILER}, weights 2/{layers}, {layers - 2}/{layers}"
        yield row("FastV, true weights", "fastv", _half_pruned(2, layers - 2, text, vision), ", K=2, R=50%", convention)


def _share(row: PaperRow, baseline: PaperRow) -> float:
    """Percentage of the baseline, the quotient of the numbers as the paper rounds them."""
    assert row.computed is not None and baseline.computed is not None
    return 100 * round(row.computed, row.digits) / round(baseline.computed, baseline.digits)


def _vtw3(key: str) -> PaperTable:
    model = "Video-LLaVA-7B"
    layers, [k] = _geometry(model).layers, _layers(key, model, "vtw")
    before, after = FASTV_LAYERS
    entries = (
        ("baseline", f"K={layers}", 1.0),
        ("FastV", "K=2, R=50%", (before + after * 0.5) / (before + after)),
        ("VTW", f"K={k}", k / layers),
    )
    return PaperTable(
        key=key,
        title="VTW, Table 3 (TGIF, Video-MME)",
        rows=tuple(
            _share_row(key, model, method, f"{layers} layers, {setting}", share) for method, setting, share in entries
        ),
        footnote="Vision tokens only, as the caption says: the mean share of them that a layer sees.",
    )


def _share_row(table: str, model: str, method: str, inputs: str, share: float) -> PaperRow:
    return PaperRow(
        model=model,
        method=method,
        inputs=inputs,
        convention="vision tokens, linear",
        unit="%",
        printed=_printed(table, model, method.lower(), "FLOPs %"),
        computed=100 * share,
    )


def _vtw4(key: str) -> PaperTable:
    geometry = PRESETS["llava-next-7b"]
    table = printed_tables()[key]
    tflops = next(row for row in table.rows if row.label == "TFLOPs")
    tokens = f"text {SQA_TEXT:g}, vision {SQA_VISION:g}"
    entries = (
        ("Baseline", "", [(geometry.layers, SQA_TEXT + SQA_VISION)]),
        ("FastV", ", K=2, R=50%", _half_pruned(*FASTV_LAYERS, SQA_TEXT, SQA_VISION)),
        ("VTW", ", K=16", _withdrawn(16, geometry.layers, SQA_TEXT, SQA_VISION)),
    )
    rows = [
        PaperRow(
            model="LLaVA-NeXT-7B",
            method="baseline" if column == "Baseline" else column,
            inputs=tokens + setting,
            convention=_PROFILER,
            unit="TFLOPs",
            printed=table.printed(tflops, column),
            computed=mean_profile(geometry, shares) / 1e12,
        )
        for column, setting, shares in entries
    ]
    assert rows[0].computed is not None and rows[2].computed is not None
    # The quotient stands in the text below the table.
    rows.append(replace(rows[2], unit="of baseline", printed="0.54", computed=rows[2].computed / rows[0].computed))
    return PaperTable(
        key=key,
        title="VTW, Table 4 (ScienceQA)",
        rows=tuple(rows),
        footnote="Both token counts are inferred: the three numbers allow text 117.5 to 130.5 and vision 1599 to 1619; "
        "the middles are taken. DivPrune's cost script lists 126 and 1598, which gives 22.8 for the baseline. Memory "
        "and latency are not computed here; see vtw-eval bench.",
    )


def _vtw8(key: str) -> PaperTable:
    rows: list[PaperRow] = []
    for model in dict.fromkeys(row.model for row in printed_tables()[key].rows):
        layers, [k] = _geometry(model).layers, _layers(key, model, "vtw")
        rows.append(_share_row(key, model, "baseline", f"{layers} layers", 1.0))
        rows.append(_share_row(key, model, "VTW", f"{layers} layers, K={k}", k / layers))
    return PaperTable(
        key=key,
        title="VTW, Table 8",
        rows=tuple(rows),
        footnote="Vision tokens only, although the column is called TFLOPs: the mean share of them that a layer sees.",
    )


def _vtw9(key: str) -> PaperTable:
    names = ("baseline", "FastV", "VTW")
    rows = [
        replace(row, inputs=row.inputs.replace("K=20", "K=20 instead of the printed 16"))
        for row in _vtw2("vtw-table2").rows
        if row.unit == "TFLOPs" and row.method in names
    ]
    model = "LLaVA-1.5-13B"
    geometry = _geometry(model)
    vision = _vision_of(geometry)
    as_printed = mean_profile(geometry, _withdrawn(16, geometry.layers, VTW_TEXT, vision))
    at = next(i for i, row in enumerate(rows) if row.model == model and row.method == "VTW")
    inputs = f"text {VTW_TEXT}, vision {vision:g}, K=16 as printed"
    rows.insert(at, replace(rows[at], inputs=inputs, computed=as_printed / 1e12))
    return PaperTable(
        key=key,
        title="VTW, Table 9 (MME by subtask)",
        rows=tuple(rows),
        footnote="The TFLOPs of Table 2 again, from the same inputs. The 13B row says K=16, but its TFLOPs and scores "
        "are those of K=20 in Table 2: a typo of the paper.",
    )


# DyVTE --------------------------------------------------------------------------------------------------------------

DYVTE_TEXT: Mapping[str, float] = {
    "SEED": 92,
    "MME (perception)": VTW_TEXT,
    "MMB_EN": 120,
    "POPE": 61,
    "MM-Vet": 55,
    "GQA": 61,
    "VQAv2": 61,
    "TextVQA": 112,
    "SQA_Img": 132,
}
"""Mean text tokens by benchmark, inferred from the printed baselines of the 7B and the 13B model; MME: as in VTW."""

_TOWER = "profiler, head left, tower"
_LLAVA = ("LLaVA-1.5-7B", "LLaVA-1.5-13B")
_KEYS: Mapping[str, str] = {"DyVTE": "dyvte", "ToMe": "tome", "FastV": "fastv", "DyVTE+FastV": "fastv+dyvte"}
_UNKNOWN = {
    "Eagle-X5 7B": "its encoders (13.3 TFLOPs in all) and tokens per image are not given",
    "VILA 7B": "its image preprocessing and prompt are not given",
    "InternVL 7B": "its encoder, tiles and tokens per image are not given",
}


def _benchmarks(table: str) -> list[str]:
    """Return the benchmarks of a table that have a column of TFLOPs."""
    columns = [name.removesuffix(" TFLOPs") for name in printed_tables()[table].columns if name.endswith(" TFLOPs")]
    return [name for name in columns if name != "Average"]


def _seen(k: float, layers: int) -> list[float]:
    """Return for each layer the share of prompts whose vision tokens enter it, if they leave after k layers on average.

    Costs without attention products are linear in it, so how the exits of single prompts spread does not matter.
    """
    return [min(max(k - layer, 0.0), 1.0) for layer in range(layers)]


def _withdrawal(k: float, layers: int, text: float) -> list[float]:
    return [text + 576 * seen for seen in _seen(k, layers)]


def _fastv(k: float, layers: int, text: float) -> list[float]:
    """FastV (K=2, R=50 %), and withdrawal of the other half after k layers."""
    return [text + 288 * (first + seen) for first, seen in zip(_seen(2, layers), _seen(k, layers), strict=True)]


def _dyvte_cost(geometry: Geometry, tokens: Sequence[float]) -> float:
    """TFLOPs in DyVTE's convention."""
    return float(profiler_prefill_flops(tokens, geometry, head="left", tower=True)) / 1e12


def _dyvte_row(
    table: str, model: str, geometry: Geometry, method: str, benchmark: str, tokens: Sequence[float], setting: str = ""
) -> PaperRow:
    return PaperRow(
        model=model,
        method=method,
        inputs=f"{benchmark}: text {DYVTE_TEXT[benchmark]:g}, vision 576{setting}",
        convention=_TOWER,
        unit="TFLOPs",
        printed=_printed(table, model, _KEYS.get(method, method), f"{benchmark} TFLOPs"),
        computed=_dyvte_cost(geometry, tokens),
    )


def _baseline_row(table: str, model: str, geometry: Geometry, benchmark: str) -> PaperRow:
    tokens = _withdrawal(geometry.layers, geometry.layers, DYVTE_TEXT[benchmark])
    return _dyvte_row(table, model, geometry, "baseline", benchmark, tokens)


def _exit_row(table: str, model: str, geometry: Geometry, benchmark: str) -> PaperRow:
    """DyVTE where the exit layer is known, else the number of layers that the printed cost implies."""
    text, layers = DYVTE_TEXT[benchmark], geometry.layers
    exits = papers()["dyvte"].exits
    if model == _LLAVA[0] and benchmark in exits:
        k = exits[benchmark] + 1
        setting = f", exit {exits[benchmark]} (K={k:g})"
        return _dyvte_row(table, model, geometry, "DyVTE", benchmark, _withdrawal(k, layers, text), setting)
    row = _dyvte_row(table, model, geometry, "DyVTE", benchmark, _withdrawal(0, layers, text))
    return _implied(row, geometry, partial(_withdrawal, layers=layers, text=text), start=0)


def _implied(row: PaperRow, geometry: Geometry, tokens: Callable[[float], Sequence[float]], start: int) -> PaperRow:
    """Tell after how many layers, ``start`` or more, vision tokens left at the printed cost, which is linear in it."""
    least = _dyvte_cost(geometry, tokens(start))
    each = _dyvte_cost(geometry, tokens(start + 1)) - least
    layers = start + (float(row.printed) - least) / each
    return replace(row, computed=None, note=f"implies {layers:.1f} of {geometry.layers} layers with vision tokens")


def _dyvte(key: str) -> PaperTable:
    benchmarks = _benchmarks(key)
    rows = [
        PaperRow(
            model=model,
            method=method,
            inputs=", ".join(benchmarks),
            convention=_TOWER,
            unit="TFLOPs",
            printed=" ".join(_printed(key, model, _KEYS.get(method, method), f"{name} TFLOPs") for name in benchmarks),
            note=reason,
        )
        for model, reason in _UNKNOWN.items()
        for method in ("baseline", "DyVTE")
    ]
    for model in _LLAVA:
        rows += [_baseline_row(key, model, _geometry(model), benchmark) for benchmark in benchmarks]
        rows += [_exit_row(key, model, _geometry(model), benchmark) for benchmark in benchmarks]
    return PaperTable(
        key=key,
        title=f"DyVTE, Table {key[-1]}",
        rows=tuple(rows),
        footnote="Profile of the reduced model (head on the tokens that are left), with vision tower and projector. "
        "Text tokens are inferred from the printed baselines, to within 2 tokens, except MME's, which is VTW's 65.9; "
        "no number fits both MM-Vet rows. DyVTE's rows: exit layers of the 7B model from its Table 3 (the layer after "
        "which the tokens leave, so K is one more); where none is printed, no cost can be computed, and the number of "
        "layers with vision tokens that the cost implies is shown. The printed percentages and averages follow from "
        "these numbers and are left out.",
    )


TOME_TOWER = 12
"""Tokens merged in each of the 24 layers of the vision tower in DyVTE's ToMe rows: half of 576 (inferred)."""


def _dyvte4(key: str) -> PaperTable:
    model = _LLAVA[0]
    geometry = _geometry(model)
    assert geometry.vision is not None
    layers = geometry.layers
    merged = (_merging_tower_flops(geometry.vision, TOME_TOWER) + projector_flops(geometry) / 2) / 1e12
    own = ToMe(k=0, per_layer=18)
    rows: list[PaperRow] = []
    for benchmark in _benchmarks(key):
        text = DYVTE_TEXT[benchmark]
        rows.append(_baseline_row(key, model, geometry, benchmark))
        tome = _dyvte_row(key, model, geometry, "ToMe", benchmark, [text + 288] * layers)
        tower = vision_tower_flops(geometry) + projector_flops(geometry)
        assert tome.computed is not None
        inputs = f"{benchmark}: text {text:g}, vision 288 from the tower"
        rows.append(replace(tome, inputs=inputs, computed=tome.computed - tower / 1e12 + merged))
        seen = tokens_per_layer(own, layers, text=text, vision=576).tolist()
        rows.append(_dyvte_row(key, model, geometry, "ToMe", benchmark, seen, f", {own}"))
        pruned = _fastv(layers, layers, text)
        rows.append(_dyvte_row(key, model, geometry, "FastV", benchmark, pruned, ", K=2, R=50%"))
        rows.append(_exit_row(key, model, geometry, benchmark))
        both = _dyvte_row(key, model, geometry, "DyVTE+FastV", benchmark, pruned)
        rows.append(_implied(both, geometry, partial(_fastv, layers=layers, text=text), start=2))
    return PaperTable(
        key=key,
        title="DyVTE, Table 4 (LLaVA-1.5 7B)",
        rows=tuple(rows),
        footnote="Inputs as for Tables 1 and 2. The paper does not say how it applies ToMe. Merging 12 tokens in each "
        "layer of the vision tower (inferred) comes within 0.08 TFLOPs, except for SEED; vtw-eval's own tome, which "
        "merges in the decoder, is shown beside it. The SEED rows of FastV and ToMe are printed higher than computed "
        "by the cost of a dozen tokens, as if taken with a longer prompt than the baseline's. DyVTE+FastV has no "
        "printed exit layers.",
    )


def _merging_tower_flops(tower: VisionGeometry, merged: int) -> float:
    """FLOPs of a vision tower that merges some tokens between attention and FFN of each layer, as ToMe does."""
    macs = float(tower.patches * tower.patch_dim * tower.hidden)
    for layer in range(tower.layers):
        before = tower.tokens - merged * layer
        after = before - merged
        macs += before * 4 * tower.hidden**2 + 2 * before**2 * tower.hidden + after * 2 * tower.hidden * tower.ffn
    return 2 * macs


TABLES: Mapping[str, Callable[[str], PaperTable]] = {
    "vtw-table2": _vtw2,
    "vtw-table3": _vtw3,
    "vtw-table4": _vtw4,
    "vtw-table8": _vtw8,
    "vtw-table9": _vtw9,
    "dyvte-table1": _dyvte,
    "dyvte-table2": _dyvte,
    "dyvte-table4": _dyvte4,
}
"""The tables that print costs, by the names of :func:`~vtw_eval.papers.printed.printed_tables`."""
