"""A report as files: its format by the suffix, pictures beside it, those of an older report gone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vtw_eval.files import write_atomically, write_files
from vtw_eval.report.errors import ReportError

Form = Literal["markdown", "latex", "csv", "html"]

SUFFIXES: Mapping[str, Form] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
    ".htm": "html",
}
"""Formats by suffix of the file."""

_REPORTS = tuple(suffix for suffix, form in SUFFIXES.items() if form != "csv")


def form_of(output: Path | None, asked: Form | None) -> Form:
    """Return the format of a report.

    Parameters
    ----------
    output
        The file, None if it is printed.
    asked
        What was asked for; None takes the format of the suffix, or Markdown if it is printed.

    Raises
    ------
    ReportError
        If the suffix says nothing, or says otherwise.
    """
    if output is None:
        return asked or "markdown"
    known = SUFFIXES.get(output.suffix.lower())
    if known is None and asked is None:
        raise ReportError(
            f"{output}: the suffix {output.suffix!r} is of no format of a report: take {', '.join(SUFFIXES)}, or name "
            "the format by --format."
        )
    if asked is not None and known is not None and asked != known:
        raise ReportError(f"{output} would be {known}, but --format says {asked}: leave one of them out.")
    return asked or known or "markdown"


def write_report(output: Path, text: str, files: Mapping[str, bytes], plots: str) -> list[str]:
    """Write a report with what belongs beside it, and remove pictures that only the report before it showed.

    Parameters
    ----------
    output
        The report.
    text
        Its content.
    files
        What stands beside it, by path relative to its folder.
    plots
        Folder of the pictures, relative to the report's.

    Returns
    -------
    list of str
        Names of other reports in the folder that show pictures which have just changed.
    """
    folder = output.parent
    before = _pictures(output, plots)
    others = {
        other.name: _pictures(other, plots)
        for other in sorted(folder.glob("*"))
        if other.suffix.lower() in _REPORTS and other.is_file() and other.name != output.name
    }
    changed = {Path(name).stem for name, content in files.items() if _differs(folder / name, content)}
    write_files(folder, files)
    write_atomically(output, text)
    kept = {Path(name).stem for name in files}.union(*others.values())
    for stem in before - kept:
        for kind in ("png", "svg"):
            (folder / plots / f"{stem}.{kind}").unlink(missing_ok=True)
    return [name for name, shown in others.items() if shown & changed]


def _pictures(report: Path, plots: str) -> set[str]:
    """Return the names of the pictures that a report shows, without suffix."""
    if not report.is_file():
        return set()
    text = report.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(rf"\b{re.escape(plots)}/([A-Za-z0-9.-]+)\.(?:png|svg)\b", text))


def _differs(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() != content
