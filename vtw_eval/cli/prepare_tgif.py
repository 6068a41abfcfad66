"""``vtw-eval prepare-tgif``."""

from __future__ import annotations

from typing import Annotated

import typer

from vtw_eval.cli.app import app, user_errors


@app.command(epilog="Example: vtw-eval prepare-tgif eval/GPT_Zero_Shot_QA/TGIF_Zero_Shot_QA")
def prepare_tgif(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, or id of a dataset on the Hub, with Test_frameqa_question.csv or with test_q.json and "
            "test_a.json, and the GIF or MP4 files, at any depth."
        ),
    ],
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out questions whose video is missing or broken.")
    ] = False,
) -> None:
    """Make TGIF-QA's frame questions ready for the task tgif_frameqa and for VLMEvalKit's TGIF-QA."""
    from vtw_eval.tasks.tgif.prepare import prepare

    with user_errors("prepare-tgif", usage=()):  # all of them tell of the data
        made = prepare(source, allow_missing=allow_missing)
    left_out = f"; {made.left_out} questions left out for want of a video" if made.left_out else ""
    typer.echo(
        f"{made.questions} questions, {made.videos} videos ({made.converted} converted to MP4){left_out}: {made.folder}"
    )
