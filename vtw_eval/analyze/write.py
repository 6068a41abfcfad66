"""The files of an analysis: text, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

from vtw_eval.analyze.analysis import TaskAnalysis
from vtw_eval.analyze.figures import plots
from vtw_eval.analyze.tables import csv_files
from vtw_eval.analyze.words import NAME, reading


def analysis_files(tasks: Sequence[TaskAnalysis], model: str, command: str = "") -> dict[str, bytes]:
    """Return the files by name: ``README.md``, four CSV files, and five figures as ``png`` and ``svg``.

    Parameters
    ----------
    tasks
        What was read, of one model.
    model
        Name of the checkpoint.
    command
        What has made it.
    """
    figures = plots(tasks, model)
    found = {NAME: reading(tasks, model, figures, command).encode()}
    found |= {name: text.encode() for name, text in csv_files(tasks).items()}
    return found | {f"{plot.image.name}.{kind}": content for plot in figures for kind, content in plot.files().items()}
