"""A report: a table, what it was made from and how to make it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vtw_eval.report.runs import Run
from vtw_eval.report.table import markdown_table

_PACKAGES = ("vtw-eval", "lmms-eval", "transformers", "torch")


def environment() -> str:
    """Return versions and machine in one line."""
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{', '.join(versions)}; Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def markdown_document(runs: Sequence[Run], *, title: str, command: str = "") -> str:
    """Return a report in Markdown.

    Parameters
    ----------
    runs
        One per method.
    title
        Heading.
    command
        The command that made the runs.
    """
    documents = ", ".join(f"{task} {n}" for task, n in runs[0].documents.items())
    lines = [
        f"# {title}",
        "",
        markdown_table(runs),
        "",
        "FLOPs: prefill of the decoder by Eq. 1 of the VTW paper, from the tokens that really entered each layer, mean",
        f"over all documents. Scores in percent unless said otherwise. Documents: {documents}.",
        "",
        *(line for run in runs for line in _searched(run)),
        *([f"Made by `{command}`.", ""] if command else []),
        f"Environment: {environment()}; device {runs[0].config.get('device')}, "
        f"batch size {runs[0].config.get('batch_size')}.",
        "",
    ]
    return "\n".join(lines)


def _searched(run: Run) -> list[str]:
    """Tell what a search has found for each task."""
    found = {task: method for task, method in run.methods.items() if method != run.label}
    if not found:
        return []
    return [f"{run.label} found: {'; '.join(f'{task} {method}' for task, method in found.items())}.", ""]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
