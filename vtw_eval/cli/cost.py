"""``vtw-eval cost``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtw_eval.cli.app import FAILED, app, user_errors
from vtw_eval.versions import UpstreamChangedError

if TYPE_CHECKING:
    from vtw_eval.cost.compare import MethodCosts
    from vtw_eval.cost.geometry import Geometry
    from vtw_eval.papers.costs import PaperTable
    from vtw_eval.tables import Table

DEFAULT_TEXT = 65.9
"""Mean text tokens of LLaVA-1.5 on MME, behind the costs of VTW's Table 2."""

_LEGEND = (
    "FLOPs of the prefill and their share of the baseline. eq1: Eq. 1 of the VTW paper. profiler: the convention of\n"
    "its tables (no attention products, head on the mean number of tokens). exact: all matrix products, head on one\n"
    "token; so is the decode step. What a method computes to choose tokens is in none of them (--measure counts it).\n"
    "KV: the cache after the prefill, 1 MB = 10^6 bytes."
)


@app.command(
    epilog="Examples: vtw-eval cost --geometry llava-1.5-7b --text 65.9 --method vtw,k=16 --method fastv · "
    "vtw-eval cost --flops 0.5 --geometry llava-1.5-7b --method vtw --method fastv --method divprune · "
    "vtw-eval cost --flops 0.5 --geometry video-llava-7b --frames 8 --method evs --method fastvid · "
    "vtw-eval cost --measure --geometry llava-1.5-7b --method vtw,k=16 · vtw-eval cost --paper vtw-table2"
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
        float | None,
        typer.Option(
            help="Text tokens of the prompt; means are allowed. Default: LLaVA-1.5's mean on MME, 65.9 (--measure: 66)."
        ),
    ] = None,
    vision: Annotated[float | None, typer.Option(help="Vision tokens. Default: the model's for one image.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="The prompt shows a video of so many frames, as many vision tokens of each, instead of one image."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--flops",
            help="Set how much each method removes so that its prefill costs this share of the unchanged model's.",
        ),
    ] = None,
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
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Count the prefill in the model itself, without weights, by fvcore and by torch's own counter, beside "
            "the closed forms; say where they differ and why. Needs pip install 'vtw-eval[measure]'.",
        ),
    ] = False,
    paper: Annotated[
        str | None,
        typer.Option(
            help="Instead: costs printed in the VTW paper (vtw-table2, 3, 4, 8, 9) or the DyVTE paper (dyvte-table1, "
            "2, 4), computed again; or all."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Compute what methods cost on a model, without its weights: FLOPs by every convention, and KV cache."""
    kinds = (ValueError, OSError, *((ImportError, UpstreamChangedError) if measure else ()))
    with user_errors("cost", kinds):
        if as_json and markdown:
            raise ValueError("give --json or --markdown, not both.")
        if paper is not None:
            if geometry is not None or config is not None or method or measure or budget is not None or frames:
                raise ValueError(
                    "--paper brings its own models and methods: leave --geometry, --config, --method, --frames, "
                    "--flops and --measure out."
                )
            _print_papers(paper, as_json, markdown)
        elif measure:
            if output_tokens is not None or tower or images is not None or budget is not None or frames is not None:
                raise ValueError(
                    "--measure counts the prefill of the decoder on one image: leave --output-tokens, --tower, "
                    "--images, --frames and --flops out."
                )
            _print_counted(geometry, config, method or ["vtw"], text, vision, dtype, as_json, markdown)
        else:
            model = _geometry(geometry, config, images if images is not None or frames is None else frames)
            shown = _Shown(DEFAULT_TEXT if text is None else text, _vision_tokens(model, vision, frames), frames)
            specs, missed = method or ["vtw"], list[str]()
            if budget is not None:
                specs, missed = _fitted(model, specs, budget, shown)
            _print_costs(model, specs, shown, output_tokens, dtype, tower, as_json, markdown)
            for line in missed:
                typer.echo(f"vtw-eval cost: {line}", err=True)


@dataclass(frozen=True)
class _Shown:
    """What the prompt shows."""

    text: float
    vision: float
    frames: int | None
    """Of a video; None for one image."""


def _name(geometry: str | None, config: str | None) -> str:
    from vtw_eval.cost.presets import PRESETS

    if (geometry is None) == (config is None):
        raise ValueError(f"give --geometry NAME or --config PATH, one of them. Names: {', '.join(PRESETS)}.")
    return str(geometry if geometry is not None else config)


def _geometry(name: str | None, config: str | None, images: int | None) -> Geometry:
    from vtw_eval.cost.presets import get_geometry

    geometry = get_geometry(_name(name, config))
    if images is None:
        return geometry
    if images < 0:
        raise ValueError(f"--images {images} is out of range: 0 or more.")
    if geometry.vision is None:
        raise ValueError(f"--images: no closed form for the vision tower of {geometry.name}: {geometry.no_vision}.")
    return replace(geometry, vision=replace(geometry.vision, images=images))


def _vision_tokens(geometry: Geometry, asked: float | None, frames: int | None = None) -> float:
    if asked is not None:
        return asked
    vision = geometry.vision_tokens if frames is None else geometry.video_tokens(frames)
    if vision is None:
        what = "image" if frames is None else "video, or how it packs one"
        raise ValueError(f"the number of vision tokens of {geometry.name} depends on the {what}: give --vision.")
    return vision


def _show(table: Table[str], markdown: bool) -> str:
    from vtw_eval import tables

    return tables.markdown(table) if markdown else tables.plain(table)


# --- by closed form


def _print_costs(
    model: Geometry,
    specs: Sequence[str],
    shown: _Shown,
    output_tokens: int | None,
    dtype: str,
    tower: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    from vtw_eval.cost.compare import compare_costs
    from vtw_eval.methods import parse_method

    text, vision, frames = shown.text, shown.vision, shown.frames
    methods = [parse_method(spec) for spec in specs]
    costs = compare_costs(
        model, methods, text=text, vision=vision, output_tokens=output_tokens, dtype=dtype, tower=tower, frames=frames
    )
    setting: dict[str, Any] = {
        "geometry": model.name,
        "layers": model.layers,
        "text": text,
        "vision": vision,
        **({} if frames is None else {"frames": frames}),
        "dtype": dtype,
        "tower": tower,
        "output_tokens": output_tokens,
    }
    if as_json:
        typer.echo(json.dumps({**setting, "methods": [c.to_dict(costs[0]) for c in costs]}, indent=2))
        return
    with_tower = ", with vision tower and projector" if tower else ""
    of_frames = "" if frames is None else f" of {frames} frames"
    typer.echo(
        f"{model.name}: {model.layers} layers, {text:g} text and {vision:g} vision tokens{of_frames}, "
        f"{dtype}{with_tower}\n"
    )
    typer.echo(_show(_table(costs, output_tokens), markdown))
    typer.echo(f"\n{_LEGEND}")
    if asked := [c.method for c in costs if c.nominal]:
        typer.echo(f"As asked for, what stays depends on the video: {', '.join(asked)}.")


def _fitted(model: Geometry, specs: Sequence[str], budget: float, shown: _Shown) -> tuple[list[str], list[str]]:
    """Return the specs that cost a share of the unchanged model's FLOPs, and a line on each that does not."""
    from vtw_eval.cost.equal import fit_flops
    from vtw_eval.methods import parse_method

    fits = {
        spec: fit_flops(parse_method(spec), model, budget, text=shown.text, vision=shown.vision, frames=shown.frames)
        for spec in specs
    }
    missed = [
        f"{spec} cannot cost {budget:.1%} of the FLOPs: {fit.problem}; {fit.method} costs {fit.share:.1%}."
        for spec, fit in fits.items()
        if fit.problem
    ]
    return [str(fit.method) for fit in fits.values()], missed


def _table(costs: Sequence[MethodCosts], output_tokens: int | None) -> Table[str]:
    from vtw_eval.cost.units import flops_unit
    from vtw_eval.tables import Table

    columns = [("eq1", "eq1"), ("profiler", "profiler"), ("exact", "exact"), ("decode step", "decode_step")]
    if output_tokens is not None:
        columns.append((f"answer of {output_tokens}", "answer"))
    units = {name: flops_unit(getattr(costs[0], name)) for _, name in columns}
    headers = ["method", "tokens/layer", *(f"{title}, {units[name][1]}" for title, name in columns), "KV, MB"]
    rows = [
        [
            c.method,
            f"{sum(c.tokens_per_layer) / len(c.tokens_per_layer):.1f}",
            *(_share(getattr(c, name), getattr(costs[0], name), units[name][0], 3) for _, name in columns),
            _share(c.kv_bytes, costs[0].kv_bytes, 1e6, 1),
        ]
        for c in costs
    ]
    return Table(headers, rows)


def _share(value: float, baseline: float, unit: float, decimals: int) -> str:
    return f"{value / unit:.{decimals}f} ({value / baseline:.1%})"


# --- counted


def _print_counted(
    geometry: str | None,
    config: str | None,
    specs: Sequence[str],
    text: float | None,
    vision: float | None,
    dtype: str,
    as_json: bool,
    markdown: bool,
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from vtw_eval.cost.measure.counted import counted_costs
    from vtw_eval.cost.measure.table import counted_notes, counted_table, difference_table
    from vtw_eval.cost.presets import geometry_or_config, get_geometry
    from vtw_eval.methods import parse_method
    from vtw_eval.runtime import parse_dtype

    name = _name(geometry, config)
    model, source = get_geometry(name), geometry_or_config(name)
    texts = round(DEFAULT_TEXT) if text is None else text
    visions = _vision_tokens(model, vision)
    for option, number in (("--text", texts), ("--vision", visions)):
        if number != int(number):
            raise ValueError(f"{option} {number:g}: a prompt that is counted has a whole number of tokens.")
    methods = [parse_method(spec) for spec in specs]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("counting", total=len(methods) + 1)
        costs = counted_costs(
            source,
            methods,
            text=int(texts),
            vision=int(visions),
            dtype=parse_dtype(dtype),
            advance=lambda: progress.advance(task),
        )
    wrong = [line for found in costs for line in found.unexplained]
    if as_json:
        setting = {"geometry": model.name, "layers": model.layers, "text": int(texts), "vision": int(visions)}
        typer.echo(json.dumps({**setting, "dtype": dtype, "methods": [c.to_dict() for c in costs]}, indent=2))
    else:
        typer.echo(
            f"{model.name}: {model.layers} layers, {texts:g} text and {visions:g} vision tokens, {dtype}, prefill\n"
        )
        typer.echo(_show(counted_table(costs), markdown))
        typer.echo("\nWhere the conventions differ from the closed form:\n")
        typer.echo(_show(difference_table(costs), markdown))
        typer.echo(f"\n{counted_notes(costs, source, model)}")
    if wrong:
        typer.echo("vtw-eval cost: error: not explained by what the conventions count:", err=True)
        for line in wrong:
            typer.echo(f"  {line}", err=True)
        raise typer.Exit(FAILED)


# --- of the papers


def _print_papers(name: str, as_json: bool, markdown: bool) -> None:
    from vtw_eval.papers.costs import TABLES, paper_table
    from vtw_eval.tables import Table

    tables = [paper_table(key) for key in (TABLES if name == "all" else [name])]
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
        typer.echo(_show(Table(headers, rows, words=len(headers)), markdown))
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
