"""Documents that could not be answered: each is named, and those around it are answered all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vtw_eval.runtime import is_out_of_memory
from vtw_eval.versions import UpstreamChangedError

IN_A_ROW = 10
"""After so many documents that fail one after another something else is wrong than a document."""

_SHOWN = 3


class DocumentError(RuntimeError):
    """Documents that could not be answered; the message names them.

    Parameters
    ----------
    message
        What happened.
    answers
        What was answered beside them, by the place of the request.
    """

    def __init__(self, message: str, answers: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.answers = dict(answers or {})


@contextmanager
def document_errors(*names: str) -> Iterator[None]:
    """Turn exceptions, but not a lack of memory, into a :class:`DocumentError` that names documents."""
    try:
        yield
    except DocumentError:
        raise
    # A harness's task code leaves the process when a file is missing; the document should be named then too.
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        which = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        what = " ".join(str(error).split()) or "no message"
        raise DocumentError(f"{which}: {type(error).__name__}: {what}") from error


class Failures:
    """Notes documents that fail until the others are answered."""

    def __init__(self) -> None:
        self.errors: list[DocumentError] = []
        self._in_a_row = 0

    def succeeded(self) -> None:
        """Note that documents were answered."""
        self._in_a_row = 0

    def failed(self, error: DocumentError) -> None:
        """Note that a document failed.

        Raises
        ------
        DocumentError
            If going on makes no sense: many failed in a row, or a package does other things than it did.
        """
        self.errors.append(error)
        self._in_a_row += 1
        if isinstance(error.__cause__, UpstreamChangedError):
            raise error
        if self._in_a_row >= IN_A_ROW:
            raise self._all({}, f"{IN_A_ROW} documents in a row cannot be answered")

    def check(self, answers: Mapping[int, Any], count: int) -> None:
        """Raise :class:`DocumentError` if a document failed.

        Parameters
        ----------
        answers
            What the others got, by place.
        count
            How many documents there were.
        """
        if self.errors:
            raise self._all(answers, f"{len(self.errors)} of {count} documents cannot be answered") from self.errors[0]

    def _all(self, answers: Mapping[int, Any], what: str) -> DocumentError:
        if len(self.errors) == 1:
            return DocumentError(str(self.errors[0]), answers)
        more = "; ..." if len(self.errors) > _SHOWN else ""
        return DocumentError(f"{what}: {'; '.join(str(error) for error in self.errors[:_SHOWN])}{more}", answers)
