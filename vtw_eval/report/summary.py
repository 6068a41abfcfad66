"""Results small enough to commit: values, intervals and what each document contributed, without answers."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from vtw_eval.names import check_names, names_of
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.strict import Strict
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Outcome, Result, Results, State
from vtw_eval.report.stats.evidence import Documents, Evidence, Kind
from vtw_eval.report.stats.statistics import interval

FILE = "summary.json"


class _Documents(Strict):
    ids: str
    groups: str
    categories: str
    targets_sha256: str


class _Column(Strict):
    metrics: tuple[str, ...]
    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool
    scale: float
    note: str = ""
    kind: Kind | None = None
    documents: int | None = None
    """Index in :attr:`_Summary.documents`."""
    rows: tuple[tuple[float, ...], ...] = ()
    """The distinct contributions of a document ..."""
    codes: str = ""
    """... and which of them each document has: 32-bit little-endian numbers, zlib, base64."""


class _Cell(Strict):
    spec: CellSpec
    state: State
    problem: str = ""
    methods: tuple[str, ...] = ()
    documents: int = 0
    flops: dict[str, float] = Field(default_factory=dict)
    layers: int = 0
    environment: int | None = None
    """Index in :attr:`_Summary.environments`."""
    answers_sha256: str = ""
    columns: dict[str, _Column] = Field(default_factory=dict)


class _Summary(Strict):
    version: Literal[1] = 1
    names: dict[str, str] = Field(default_factory=dict)
    budgets: dict[str, list[str]] = Field(default_factory=dict)
    missed: list[str] = Field(default_factory=list)
    """What tables call methods; left out where none has a name, as it is not known to earlier versions."""
    environments: list[dict[str, str]]
    documents: list[_Documents]
    cells: list[_Cell]


def summary_text(results: Results) -> str:
    """Return results as JSON, one cell a line; equal results give equal text."""
    documents: list[Documents] = []
    environments: list[dict[str, str]] = []
    cells = [_pack(result, documents, environments) for result in results.cells]
    packed = [
        _Documents(
            ids=_pack_texts(d.ids),
            groups=_pack_texts(d.groups),
            categories=_pack_texts(d.categories),
            targets_sha256=d.targets_sha256,
        )
        for d in documents
    ]
    names = names_of(dict.fromkeys(result.spec.method for result in results.cells), results.names)
    budgets = {label: list(specs) for label, specs in results.budgets.items()}
    summary = _Summary(
        names=names, budgets=budgets, missed=list(results.missed), environments=environments, documents=packed, cells=[]
    )
    # What a plan does not have is left out, so that summaries of plans without it stay as they were.
    absent = {name for name in ("names", "budgets", "missed") if not getattr(summary, name)}
    head = json.dumps(summary.model_dump(mode="json", exclude=absent))
    lines = ",\n".join(json.dumps(cell.model_dump(mode="json", exclude_defaults=True)) for cell in cells)
    return f"{head.removesuffix(']}')}\n{lines}\n]}}\n"


def read_summary(file: Path) -> Results:
    """Read what :func:`summary_text` gave.

    Raises
    ------
    ReportError
        If the file is not one.
    """
    try:
        summary = _Summary.model_validate_json(file.read_bytes())
        documents = [
            Documents(_unpack_texts(d.ids), _unpack_texts(d.groups), _unpack_texts(d.categories), d.targets_sha256)
            for d in summary.documents
        ]
        cells = tuple(_unpack(cell, documents, summary.environments) for cell in summary.cells)
        check_names(summary.names, [cell.spec.method for cell in cells])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ReportError(f"{file} is not a summary of this version: {place}: {first['msg']}") from error
    except (ValueError, IndexError, zlib.error) as error:
        raise ReportError(f"{file} is damaged: {error}") from error
    return Results(str(file), cells, names=summary.names, budgets=summary.budgets, missed=summary.missed)


def _pack(result: Result, documents: list[Documents], environments: list[dict[str, str]]) -> _Cell:
    return _Cell(
        spec=result.spec,
        state=result.state,
        problem=result.problem,
        methods=result.methods,
        documents=result.documents,
        flops=dict(result.flops),
        layers=result.layers,
        environment=_index(environments, dict(result.environment)),
        answers_sha256=result.answers_sha256,
        columns={title: _pack_column(outcome, documents) for title, outcome in result.outcomes.items()},
    )


def _pack_column(outcome: Outcome, documents: list[Documents]) -> _Column:
    column = _Column(
        metrics=outcome.metrics,
        value=outcome.value,
        higher_is_better=outcome.higher_is_better,
        scale=outcome.scale,
        note=outcome.note,
    )
    if (evidence := outcome.evidence) is None:
        return column
    rows, codes = np.unique(evidence.contributions, axis=0, return_inverse=True)
    found = interval(evidence)
    return column.model_copy(
        update={
            "low": round(outcome.scale * found.low, 4),
            "high": round(outcome.scale * found.high, 4),
            "kind": evidence.kind,
            "documents": _index(documents, evidence.documents),
            "rows": tuple(map(tuple, rows.tolist())),
            "codes": _encode(codes.astype("<u4").tobytes()),
        }
    )


def _unpack(cell: _Cell, documents: Sequence[Documents], environments: Sequence[dict[str, str]]) -> Result:
    return Result(
        spec=cell.spec,
        state=cell.state,
        problem=cell.problem,
        methods=cell.methods,
        documents=cell.documents,
        flops=cell.flops,
        layers=cell.layers,
        environment=environments[cell.environment] if cell.environment is not None else {},
        outcomes={title: _unpack_column(column, documents) for title, column in cell.columns.items()},
        answers_sha256=cell.answers_sha256,
    )


def _unpack_column(column: _Column, documents: Sequence[Documents]) -> Outcome:
    evidence = None
    if column.kind is not None and column.documents is not None:
        codes = np.frombuffer(_decode(column.codes), dtype="<u4")
        own = documents[column.documents]
        if len(codes) != len(own):
            raise ValueError(f"{len(codes)} contributions of {len(own)} documents")
        evidence = Evidence(column.kind, own, np.array(column.rows, dtype=np.float64)[codes])
    return Outcome(column.metrics, column.value, column.scale, column.higher_is_better, evidence, column.note)


def _index(known: list, value: object) -> int:
    if value not in known:
        known.append(value)
    return known.index(value)


def _encode(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _decode(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))


def _pack_texts(texts: Sequence[str]) -> str:
    return _encode(json.dumps(list(texts)).encode())


def _unpack_texts(text: str) -> tuple[str, ...]:
    return tuple(json.loads(_decode(text)))
