"""``vtw-eval report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vtw_eval.cli.app import REGRESSION, app, user_errors
from vtw_eval.files import check_output


@app.command(
    epilog="Examples: vtw-eval report runs/shapes -o results/shapes/README.md --compare results/shapes "
    "· vtw-eval report vtw-table2 --published"
)
def report(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a sweep, of committed results (summary.json), or of what lmms_eval --output_path "
            "--log_samples wrote (scores and costs, no intervals). With --published also a table of the "
            "papers: vtw-table1 to vtw-table9, dyvte-table1, 2, 4, or all."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the report to this file (.md, .html, .tex, .csv) instead of printing it; a page (.html) holds "
            "all it needs, pictures of other reports go to plots/ beside them, and of a Markdown report the results to "
            "summary.json, which a later --compare can read.",
        ),
    ] = None,
    form: Annotated[
        Literal["markdown", "latex", "csv", "html"] | None,
        typer.Option("--format", help="Format of the report. Default: by the suffix of the file, else markdown."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Older results to compare with: a sweep's folder, or one with a summary.json.")
    ] = None,
    fail_on_regression: Annotated[
        bool,
        typer.Option(
            "--fail-on-regression",
            help="With --compare: exit with 3 if a score is significantly worse than before, or a cell is not done "
            "that was done before.",
        ),
    ] = False,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="The main table alone with its legend as the caption: what goes into a paper (.tex, booktabs).",
        ),
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show the papers' numbers beside these, or a table of the papers.")
    ] = False,
    equivalence: Annotated[
        float | None,
        typer.Option(min=0, help="Mark what equals the baseline within this percentage of a metric's range (TOST)."),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Method that the others are compared with, such as vtw,k=16, or its name.")
    ] = "baseline",
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="SPEC=NAME: what tables call a method, such as 'vtw,k=16=VTW' (the last = separates), in place of the "
            "name that the plan gives it (names:). Repeatable."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Show a part: method=PATTERN, model=PATTERN or task=PATTERN, with * and ? as in a shell, such as "
            "'method=vtw*'. Repeatable; the baseline and the reference stay."
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            help="bench.json of vtw-eval bench: measured latency, memory and KV cache beside the scores, by model and "
            "method. MODEL=FILE where it has another name for the model. Repeatable."
        ),
    ] = None,
    flops: Annotated[
        str | None, typer.Option(help="Convention of the FLOPs: eq1, profiler, exact. Default: eq1, or what there is.")
    ] = None,
    kl: Annotated[
        list[Path] | None,
        typer.Option(help="Divergence by k, from vtw-eval search-k --json; drawn beside score versus k. Repeatable."),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading. Default: the title of the plan, or the folder's name.")] = "",
    command: Annotated[str, typer.Option(help="The command that made the results, shown below the table.")] = "",
) -> None:
    """Tables of methods by tasks with intervals, tests against the baseline, costs and plots."""
    from vtw_eval.report.errors import ReportError
    from vtw_eval.report.make import ReportRequest, make_report
    from vtw_eval.report.names import parse_names
    from vtw_eval.report.part import parse_only
    from vtw_eval.report.published_tables import published_blocks
    from vtw_eval.report.render.formats import RENDERERS
    from vtw_eval.report.write import form_of

    with user_errors("report", (ReportError, OSError)):
        form = form_of(output, form)
        if output is not None:
            check_output(output)
        if fail_on_regression and compare is None:
            raise ReportError("--fail-on-regression needs --compare OLD_DIR.")
        if table and form == "csv":
            raise ReportError("--table is for what people read: CSV has every score anyway.")
        if published and not Path(source).is_dir():
            if form == "csv":
                raise ReportError("a table of the papers has no CSV: choose markdown, latex or html.")
            made = None
            text = RENDERERS[form](published_blocks(source), "plots")
        else:
            made = make_report(
                ReportRequest(
                    folder=Path(source),
                    form=form,
                    old=compare,
                    published=published,
                    equivalence=equivalence,
                    reference=reference,
                    names=parse_names(name or []),
                    only=parse_only(only or []),
                    benches=tuple(bench or ()),
                    convention=flops,
                    divergences=tuple(kl or ()),
                    title=title,
                    command=command,
                    table=table,
                    plots=form == "html" or (output is not None and form != "csv"),
                )
            )
            text = made.text
            if fail_on_regression and made.changes is not None and not made.changes.compared:
                raise ReportError(f"nothing of {compare} can be compared with {source}, so no regression can be seen.")
        if output is None:
            typer.echo(text, nl=False)
        else:
            _write(output, text, made.files if made is not None else {})
    if fail_on_regression and made is not None and made.changes is not None and made.changes.regressed:
        typer.echo("vtw-eval report: error: results are worse than before, see the top of the report.", err=True)
        raise typer.Exit(REGRESSION)


def _write(output: Path, text: str, files: dict[str, bytes]) -> None:
    from vtw_eval.report.make import PLOTS
    from vtw_eval.report.write import write_report

    outdated = write_report(output, text, files, PLOTS)
    typer.echo(f"Wrote {output}{f' and {len(files)} files beside it' if files else ''}.", err=True)
    if outdated:
        typer.echo(f"These show pictures that are new now, make them anew: {', '.join(outdated)}.", err=True)
