"""A part of the results: cells by patterns of model, method and task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from vtw_eval.names import but_for_seeds
from vtw_eval.record.cell import CellSpec
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import labels_of, same_method
from vtw_eval.report.results import Results

_FIELDS: dict[str, Callable[[CellSpec], str]] = {
    "method": lambda spec: spec.method,
    "model": lambda spec: spec.model,
    "task": lambda spec: spec.task,
}


@dataclass(frozen=True)
class Only:
    """Patterns that a cell must match: one of each field that has any."""

    patterns: tuple[tuple[str, str], ...] = ()
    """Pairs of field and pattern, with ``*``, ``?`` and ``[...]`` as in a shell."""

    def of(self, results: Results, keep: Iterable[str] = ()) -> Results:
        """Return the cells that match.

        Parameters
        ----------
        results
            All cells.
        keep
            Specs of methods that stay, with all their seeds, whatever the patterns of methods say, so that others can
            be compared with them.

        Raises
        ------
        ReportError
            If a pattern matches no cell; the message names what there is.
        """
        kept = {but_for_seeds(method) for method in keep}
        labels = labels_of(dict.fromkeys(cell.spec.method for cell in results.cells), results.names)

        def matches(field: str, pattern: str, spec: CellSpec) -> bool:
            if field != "method":
                return fnmatchcase(_FIELDS[field](spec), pattern)
            names = (spec.method, labels[spec.method], results.names.get(spec.method, spec.method))
            return any(fnmatchcase(name, pattern) for name in names) or same_method(pattern, spec.method)

        for field, pattern in self.patterns:
            if not any(matches(field, pattern, cell.spec) for cell in results.cells):
                values = dict.fromkeys(_FIELDS[field](cell.spec) for cell in results.cells)
                shown = [labels[value] if field == "method" else value for value in values]
                raise ReportError(f"--only {field}={pattern} matches nothing of {results.source}: {'; '.join(shown)}.")

        def chosen(spec: CellSpec) -> bool:
            fields = dict.fromkeys(field for field, _ in self.patterns)
            return all(
                any(matches(field, pattern, spec) for other, pattern in self.patterns if other == field)
                or (field == "method" and but_for_seeds(spec.method) in kept)
                for field in fields
            )

        return replace(results, cells=tuple(cell for cell in results.cells if chosen(cell.spec)))

    def __str__(self) -> str:
        return ", ".join(f"{field}={pattern}" for field, pattern in self.patterns)


def parse_only(texts: Sequence[str]) -> Only:
    """Read patterns of the form ``method=vtw*``, ``model=llava*`` and ``task=shapes_*``.

    Raises
    ------
    ReportError
        For another form.
    """
    found = []
    for text in texts:
        field, equals, pattern = (part.strip() for part in text.partition("="))
        if field not in _FIELDS or not equals or not pattern:
            raise ReportError(f"--only {text!r}: write {', '.join(f'{name}=PATTERN' for name in _FIELDS)}.")
        found.append((field, pattern))
    return Only(tuple(found))
