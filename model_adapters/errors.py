"""Errors of evaluations, whatever the harness, and how they are told."""

from __future__ import annotations

from vtw_eval.importing import HarnessImportError, culprits_of
from vtw_eval.versions import blame


class DatasetError(OSError):
    """A dataset is missing or damaged."""


def describe_error(error: BaseException) -> str:
    """Return an exception's message in one line, with its type unless it is written for users.

    An import that fails, perhaps in the middle of an evaluation, comes with the packages that are to blame.
    """
    text = " ".join(str(error).split())
    if isinstance(error, HarnessImportError):
        return text
    if isinstance(error, ImportError):
        return f"{type(error).__name__}: {text.rstrip('.')}. {blame(culprits_of(error))}".strip()
    if isinstance(error, ValueError | OSError | NotImplementedError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}"
