"""Names of methods that the caller of a report gives, over those of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vtw_eval.names import check_names, names_of
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Results

_FORM = "Write --name SPEC=NAME, as in --name 'vtw,k=16=VTW'."


def parse_names(texts: Sequence[str]) -> dict[str, str]:
    """Read names of the form ``vtw,k=16=VTW``, in which the last equals sign stands before the name.

    Raises
    ------
    ReportError
        For another form, or for a spec that gets two names.
    """
    found: dict[str, str] = {}
    for text in texts:
        spec, _, name = (part.strip() for part in text.rpartition("="))
        if not spec or not name:
            raise ReportError(f"--name {text!r} names no method. {_FORM}")
        if found.setdefault(spec, name) != name:
            raise ReportError(f"--name names {spec!r} twice, {found[spec]!r} and {name!r}: leave one of them out.")
    return found


def with_names(results: Results, names: Mapping[str, str]) -> Results:
    """Return results whose methods are called otherwise.

    Parameters
    ----------
    results
        All cells.
    names
        Names by spec, in any spelling and with any seed; methods without one keep what they have.

    Raises
    ------
    ReportError
        If the names do not tell methods apart, see :func:`vtw_eval.names.check_names`.
    """
    if not names:
        return results
    methods = list(dict.fromkeys(cell.spec.method for cell in results.cells))
    try:
        check_names(names, methods)
        together = {**results.names, **names_of(methods, names)}
        check_names(together, methods)
    except ValueError as error:
        raise ReportError(f"--name: {error} {_FORM}") from None
    return replace(results, names=together)
