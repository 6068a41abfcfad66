"""``vtw-eval cost``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tabulate import tabulate

from vtw_eval.cli.app import app, user_errors

if TYPE_CHECKING:
    from vtw_eval.cost.compare import MethodCosts
    from vtw_eval.cost.geometry import Geometry
    from vtw_eval.papers.costs import PaperTable

DEFAULT_TEXT = 65.9
"""Mean text tokens of LLaVA-1.5 on MME, behind the costs of VTW's Table 2."""

_LEGEND = (
    "FLOPs of the prefill and their share of the baseline. eq1: Eq. 1 of the VTW paper. profiler: the convention of\n"
    "its tables (no attention products, head on the mean number of tokens). exact: all matrix products, head on one\n"
    "token; so is the decode step. What a method computes to choose tokens is in none of them.\n"
    "KV: the cache after the prefill, 1 MB = 10^6 bytes."
)


@app.command(
    epilog="Example: vtw-eval cost --geometry llava-1.5-7b --text 65.9 --method vtw,k=16 --method fastv; "
    "vtw-eval cost --paper table2"
)
def cost(
    geometry: Annotated[
        str | None, typer.Option(help="Name of a known model, such as llava-1.5-7b, qwen2-vl-2b, or shapes.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Folder with a config.json, or a config file, instead.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Method spec, such as vtw,k=16; several times for several. Default: vtw.")
    ] = None,
    text: Annotated[
        float, typer.Option(help="Text tokens of the prompt; means are allowed. Default: LLaVA-1.5's mean on MME.")
    ] = DEFAULT_TEXT,
    vision: Annotated[float | None, typer.Option(help="Vision tokens. Default: the model's for one image.")] = None,
    output_tokens: Annotated[
        int | None, typer.Option(help="Length of an answer, to show the FLOPs of prefill and decoding together.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the KV cache.")] = "bfloat16",
    tower: Annotated[
        bool, typer.Option("--tower/--no-tower", help="Add vision tower and projector to profiler and exact.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(help="Images, tiles or frames that the tower encodes. Default: the model's.")
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            help="Instead: costs printed in the VTW paper (table2, table3, table4, table8, table9) or the DyVTE paper "
            "(dyvte1, dyvte2, dyvte4), computed again; or all."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Compute what methods cost on a model, without its weights: FLOPs by every convention, and KV cache."""
    from vtw_eval.cost.compare import compare_costs
    from vtw_eval.methods import parse_method
    from vtw_eval.papers.costs import TABLES, paper_table

    tables: list[PaperTable] = []
    with user_errors("cost"):
        if as_json and markdown:
            raise ValueError("give --json or --markdown, not both.")
        if paper is not None and (geometry is not None or config is not None or method):
            raise ValueError("--paper brings its own models and methods: leave --geometry, --config, --method out.")
        if paper is not None:
            tables = [paper_table(key) for key in (TABLES if paper == "all" else [paper])]
    if tables:
        _print_papers(tables, as_json, markdown)
        return
    with user_errors("cost"):
        model = _geometry(geometry, config, images)
        vision = model.vision_tokens if vision is None else vision
        if vision is None:
            raise ValueError(f"the number of vision tokens of {model.name} depends on the image: give --vision.")
        methods = [parse_method(spec) for spec in method or ["vtw"]]
        costs = compare_costs(
            model, methods, text=text, vision=vision, output_tokens=output_tokens, dtype=dtype, tower=tower
        )
    setting: dict[str, Any] = {
        "geometry": model.name,
        "layers": model.layers,
        "text": text,
        "vision": vision,
        "dtype": dtype,
        "tower": tower,
        "output_tokens": output_tokens,
    }
    if as_json:
        typer.echo(json.dumps({**setting, "methods": [c.to_dict(costs[0]) for c in costs]}, indent=2))
        return
    with_tower = ", with vision tower and projector" if tower else ""
    typer.echo(
        f"{model.name}: {model.layers} layers, {text:g} text and {vision:g} vision tokens, {dtype}{with_tower}\n"
    )
    typer.echo(_table(costs, output_tokens, markdown))
    typer.echo(f"\n{_LEGEND}")


def _geometry(name: str | None, config: str | None, images: int | None) -> Geometry:
    from vtw_eval.cost.presets import PRESETS, get_geometry

    if (name is None) == (config is None):
        raise ValueError(f"give --geometry NAME or --config PATH, one of them. Names: {', '.join(PRESETS)}.")
    geometry = get_geometry(name if name is not None else str(config))
    if images is None:
        return geometry
    if images < 0:
        raise ValueError(f"--images {images} is out of range: 0 or more.")
    if geometry.vision is None:
        raise ValueError(f"--images: no closed form for the vision tower of {geometry.name}: {geometry.no_vision}.")
    return replace(geometry, vision=replace(geometry.vision, images=images))


def _table(costs: Sequence[MethodCosts], output_tokens: int | None, markdown: bool) -> str:
    from vtw_eval.cost.units import flops_unit

    columns = [("eq1", "eq1"), ("profiler", "profiler"), ("exact", "exact"), ("decode step", "decode_step")]
    if output_tokens is not None:
        columns.append((f"answer of {output_tokens}", "answer"))
    units = {name: flops_unit(getattr(costs[0], name)) for _, name in columns}
    headers = ["method", "tokens/layer", *(f"{title}, {units[name][1]}" for title, name in columns), "KV, MB"]
    rows = [
        [
            c.method,
            f"{sum(c.tokens_per_layer) / len(c.tokens_per_layer):.1f}",
            *(_cell(getattr(c, name), getattr(costs[0], name), units[name][0], 3) for _, name in columns),
            _cell(c.kv_bytes, costs[0].kv_bytes, 1e6, 1),
        ]
        for c in costs
    ]
    return _render(headers, rows, markdown, numbers=len(headers) - 1)


def _cell(value: float, baseline: float, unit: float, decimals: int) -> str:
    return f"{value / unit:.{decimals}f} ({value / baseline:.1%})"


def _print_papers(tables: Sequence[PaperTable], as_json: bool, markdown: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_paper_json(table) for table in tables], indent=2, ensure_ascii=False))
        return
    headers = ["model", "method", "inputs", "convention", "unit", "computed", "printed", "difference", "match"]
    for i, table in enumerate(tables):
        rows = [
            [
                row.model,
                row.method,
                row.inputs,
                row.convention,
                row.unit,
                "" if row.computed is None else f"{row.computed:.{row.digits + 1}f}",
                row.printed,
                "" if row.difference is None else f"{row.difference:+.{row.digits + 1}f}",
                f"{row.match}: {row.note}" if row.match == "not computable" else row.note or row.match,
            ]
            for row in table.rows
        ]
        typer.echo(("\n" if i else "") + (f"## {table.title}" if markdown else table.title) + "\n")
        typer.echo(_render(headers, rows, markdown, numbers=0))
        typer.echo(f"\n{table.footnote}")


def _paper_json(table: PaperTable) -> dict[str, Any]:
    rows = [
        {
            "model": row.model,
            "method": row.method,
            "inputs": row.inputs,
            "convention": row.convention,
            "unit": row.unit,
            "computed": row.computed,
            "printed": row.printed,
            "difference": row.difference,
            "match": row.match,
            "note": row.note,
        }
        for row in table.rows
    ]
    return {"table": table.key, "title": table.title, "rows": rows, "footnote": table.footnote}


def _render(headers: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool, numbers: int) -> str:
    """Render a table whose last ``numbers`` columns stand at the right."""
    align = ["left"] * (len(headers) - numbers) + ["right"] * numbers
    style = "pipe" if markdown else "simple"
    return tabulate(rows, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)
