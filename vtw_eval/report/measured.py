"""Latency, memory and KV cache as ``vtw-eval bench`` measured them, joined to the rows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from vtw_eval.cost.units import bytes_text
from vtw_eval.report.analysis import ModelTable
from vtw_eval.report.errors import ReportError
from vtw_eval.report.labels import same_method
from vtw_eval.report.render.blocks import Inline
from vtw_eval.tables import Table

if TYPE_CHECKING:
    from vtw_eval.cost.bench.found import Bench, BenchRow, Setting
    from vtw_eval.cost.bench.timing import Spread


@dataclass(frozen=True)
class Measured:
    """A benchmark, and the model of the report that it is of."""

    file: Path
    bench: Bench
    model: str = ""
    """Named by the user; if empty, the model whose name or checkpoint the benchmark has."""

    def is_of(self, table: ModelTable) -> bool:
        """Whether the benchmark is of the model of a table."""
        if self.model:
            return self.model == table.model
        names = {table.model.lower()}
        for row in table.rows:
            for result in row.results.values():
                checkpoint = result.spec.pretrained.lower().rstrip("/")
                names |= {result.spec.model.lower(), checkpoint, checkpoint.rpartition("/")[2]}
        subject = self.bench.subject.lower().rstrip("/")
        return bool(names & {subject, subject.rpartition("/")[2]})


def read_measured(texts: Sequence[str], tables: Sequence[ModelTable]) -> list[Measured]:
    """Read benchmarks.

    Parameters
    ----------
    texts
        Files ``bench.json``, or ``MODEL=FILE`` where the benchmark has another name for the model.
    tables
        Of the report.

    Raises
    ------
    ReportError
        If a file is no benchmark, or of none of the models.
    """
    found = []
    for text in texts:
        model, equals, name = text.partition("=")
        whole = not equals or Path(text).is_file()
        one = Measured(Path(text), _read(Path(text))) if whole else Measured(Path(name), _read(Path(name)), model)
        if not any(one.is_of(table) for table in tables):
            raise ReportError(
                f"{one.file} measures {model if one.model else one.bench.subject!r}, which is no model of this report: "
                f"{', '.join(table.model for table in tables)}. Write --bench MODEL={one.file} to say which one it is."
            )
        found.append(one)
    return found


def _read(file: Path) -> Bench:
    from vtw_eval.cost.bench.found import Bench

    try:
        return Bench.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ReportError(f"{file} is no bench.json of this version: {place}: {first['msg']}") from error
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error.strerror or error}.") from error


def measurements(table: ModelTable, measured: Sequence[Measured]) -> dict[str, BenchRow]:
    """Return what was measured of the methods of a table, by method: in the first setting that has the method.

    Settings are batch sizes and attention implementations; the one with the smallest batch comes first.
    """
    settings = [setting for one in measured if one.is_of(table) for setting in one.bench.settings]
    found: dict[str, BenchRow] = {}
    for setting in sorted(settings, key=lambda setting: setting.batch):
        for method, row in _joined(table, setting).items():
            found.setdefault(method, row)
    return found


def measured_tables(table: ModelTable, measured: Sequence[Measured]) -> list[tuple[str, Table]]:
    """Return a table for each setting in which methods of the report were measured, with what it was measured on."""
    found = []
    for one in measured:
        if not one.is_of(table):
            continue
        for setting in one.bench.settings:
            joined = _joined(table, setting)
            lost = [row.method for row in setting.rows if row not in joined.values()]
            if not joined:
                continue
            text = (
                f"{one.bench.subject} on {one.bench.device}, {one.bench.dtype}, {setting.attention}, batch "
                f"{setting.batch}: {setting.text} text and {setting.vision} vision tokens, {setting.output_tokens} new "
                f"ones; medians of {one.bench.rounds} rounds and their ratio to the unchanged model. Peak memory is "
                "what a run takes beside the weights."
                + (f" Measured too, but not in this report: {'; '.join(lost)}." if lost else "")
                + (f" {one.bench.note}" if one.bench.note else "")
            )
            found.append((text, _table(table, setting, joined)))
    return found


def _joined(table: ModelTable, setting: Setting) -> dict[str, BenchRow]:
    return {
        row.method: measured
        for row in table.rows
        for measured in setting.rows
        if any(_same(one.method, measured) for one in (row.seeds or (row,)))
    }


def _same(method: str, measured: BenchRow) -> bool:
    return same_method(measured.spec or measured.method, method)


def _table(table: ModelTable, setting: Setting, joined: dict[str, BenchRow]) -> Table[Inline]:
    rows: list[list[Inline]] = []
    base = next((row for row in setting.rows if (row.spec or row.method) == "baseline" and row.status == "done"), None)
    for row in table.rows:
        one = joined.get(row.method)
        if one is None:
            rows.append([row.label, *["-"] * 5])
        elif one.status != "done":
            rows.append([row.label, *[one.status] * 5])
        else:
            rows.append([row.label, *_cells(one, base)])
    return Table(["method", "prefill ↓", "first token ↓", "decode step ↓", "KV cache ↓", "peak memory ↓"], rows)


def _cells(row: BenchRow, base: BenchRow | None) -> list[Inline]:
    times = (row.prefill, row.first_token, row.step)
    ratios = (row.ratios.prefill, row.ratios.first_token, row.ratios.step) if row.ratios is not None else (None,) * 3
    return [
        *(seconds_text(time, ratio) for time, ratio in zip(times, ratios, strict=True)),
        memory_text(row.kv_bytes, None if base is None else base.kv_bytes),
        memory_text(row.peak_bytes, None if base is None else base.peak_bytes),
    ]


def seconds_text(time: Spread | None, ratio: Spread | None = None) -> str:
    """Return a median time in ms with its ratio to the unchanged model's, ``-`` if it was not measured."""
    if time is None:
        return "-"
    return f"{1000 * time.median:.4g} ms" + (f" ({ratio.median:.3f}x)" if ratio is not None else "")


def memory_text(count: float | None, base: float | None = None) -> str:
    """Return bytes in MiB or GiB with their ratio to the unchanged model's, ``-`` if they were not measured."""
    if count is None:
        return "-"
    return bytes_text(count) + (f" ({count / base:.3f}x)" if base else "")
