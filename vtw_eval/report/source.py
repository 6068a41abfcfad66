"""Where results come from: the folder of a sweep, or a folder of committed results."""

from __future__ import annotations

from pathlib import Path

from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Results, read_store
from vtw_eval.report.summary import FILE, read_summary


def read_results(folder: Path) -> Results:
    """Read the results of a sweep, or those committed beside a report.

    Parameters
    ----------
    folder
        Holds a sweep (``plan.yaml``, ``cells/``) or a ``summary.json``.

    Raises
    ------
    ReportError
        If it holds neither, or what it holds cannot be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder.")
    if (folder / "plan.yaml").is_file():
        return read_store(folder)
    if (folder / FILE).is_file():
        return read_summary(folder / FILE)
    raise ReportError(f"{folder} holds neither a sweep (plan.yaml, from vtw-eval sweep -o {folder}) nor a {FILE}.")
