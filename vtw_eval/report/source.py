"""Where results come from: the folder of a sweep, one of committed results, or the output of lmms-eval."""

from __future__ import annotations

from pathlib import Path

from vtw_eval.record.store import Store
from vtw_eval.report.errors import ReportError
from vtw_eval.report.plain import FILES, read_lmms_output
from vtw_eval.report.results import Results, read_store
from vtw_eval.report.summary import FILE, read_summary


def read_results(folder: Path) -> Results:
    """Read the results of a sweep, those committed beside a report, or those of plain runs of ``lmms_eval``.

    Parameters
    ----------
    folder
        Holds a sweep (``index.json``, ``cells/``), a ``summary.json``, or what ``lmms_eval --output_path`` wrote.

    Raises
    ------
    ReportError
        If it holds none of them, or what it holds cannot be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder.")
    if Store(folder).listings:
        return read_store(folder)
    if (folder / FILE).is_file():
        return read_summary(folder / FILE)
    if next(folder.rglob(FILES), None) is not None:
        return read_lmms_output(folder)
    raise ReportError(
        f"{folder} holds neither a sweep (index.json, from vtw-eval sweep -o {folder}) nor a {FILE} nor an output of "
        f"lmms_eval ({FILES})."
    )
