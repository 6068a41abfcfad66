"""A report does not show costs that cannot be right, and says when its cells come from elsewhere."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.made import make_store
from tests.report.test_report import markdown_tables, run
from vtw_eval.record.cell import Cell
from vtw_eval.record.store import Store
from vtw_eval.report.analysis import analyse
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.results import Results
from vtw_eval.report.source import read_results
from vtw_eval.report.trust import origin_notes
from vtw_eval.versions import engine_hash


def with_flops(results: Results, flops: dict[str, float], layers: int = 10) -> Results:
    """Return results whose methods have these FLOPs."""
    cells = [replace(cell, flops={"eq1": flops[cell.spec.method]}, layers=layers) for cell in results.cells]
    return replace(results, cells=tuple(cells))


@pytest.mark.parametrize(
    ("method", "layers", "withheld"),
    [
        ("vtw,k=2", 10, True),
        ("vtw,k=2", 0, True),  # of a summary that does not tell
        ("vtw,k=10", 10, False),  # the unchanged model, and meant so
        ("fastv,k=2,r=0.0", 10, False),
        ("fastv+vtw,fastv.k=2,vtw.k=10", 10, True),
        ("dyvte", 10, True),
    ],
)
def test_flops_of_methods_that_did_not_act_are_withheld(
    method: str, layers: int, withheld: bool, tmp_path: Path
) -> None:
    results = read_results(make_store(tmp_path, ["baseline", method], tasks=["shapes_vqa"]).root)
    same = {cell.spec.method: 3.94e6 for cell in results.cells}
    [table] = analyse(with_flops(results, same, layers))
    assert bool(table.withheld) == withheld
    assert all((row.flops is None) == withheld for row in table.rows)
    if withheld:
        name = results.cells[-1].spec.method
        assert f"{name} should cost less than the unchanged model" in table.withheld
    [table] = analyse(with_flops(results, {**same, results.cells[-1].spec.method: 3.9e6}, layers))
    assert not table.withheld


def test_the_report_says_why_there_is_no_column(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=2"], tasks=["shapes_vqa"])
    for cell in store.cells():  # a method that left all tokens in
        assert cell.costs is not None
        equal = cell.costs.model_copy(update={"prefill_flops": {"eq1": 1e9}})
        store.save(cell.model_copy(update={"costs": equal}), store.samples(cell))
    text = run(tmp_path)
    assert "No FLOPs are shown: vtw,k=2,position=keep should cost less" in text.replace("\\", "")
    assert markdown_tables(text)[0][0] == ["method", "vqa ↑"]
    lines = list(csv.DictReader(io.StringIO(run(tmp_path, "--format", "csv"))))
    assert {(line["flops_convention"], line["flops"]) for line in lines} == {("eq1", "")}


def stamp(store: Store, **environment: str) -> None:
    for cell in store.cells():
        store.save(cell.model_copy(update={"environment": environment}), store.samples(cell))


def test_cells_of_another_engine_or_without_a_check_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=2"], tasks=["shapes_vqa"])
    stamp(store, engine=engine_hash(), methods="verified with torch 9, transformers 9")
    assert origin_notes(read_results(tmp_path).cells) == []
    stamp(store, engine="0123456789ab", methods="verified with torch 9, transformers 9")
    [note] = origin_notes(read_results(tmp_path).cells)
    assert "another version of the engine (0123456789ab)" in note and engine_hash() in note
    stamp(store, engine=engine_hash(), methods="not verified (verify=False)")
    [note] = origin_notes(read_results(tmp_path).cells)
    assert "2 of 2 cells were not compared" in note and "not verified (verify=False)" in note
    stamp(store)
    first, second = origin_notes(read_results(tmp_path).cells)
    assert "(not recorded)" in first and "not verified (not recorded)" in second
    assert "not recorded" in run(tmp_path)


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
@pytest.mark.parametrize(("shared", "words"), [(0, ""), (1, "In 1 of 2 cells"), (2, "In all cells")])
def test_a_report_says_that_shared_answers_have_no_latency(form: str, shared: int, words: str, tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=2"], tasks=["shapes_vqa"])
    for cell in store.cells()[:shared]:
        assert cell.costs is not None
        costs = cell.costs.model_copy(update={"latency_s": None})
        environment = {**cell.environment, "sharing": "images"}
        store.save(cell.model_copy(update={"costs": costs, "environment": environment}), store.samples(cell))
    text = make_report(ReportRequest(folder=tmp_path, form=form, plots=False)).text  # type: ignore[arg-type]
    assert text.count("no latency of their own") == (1 if shared else 0)
    assert words in text
    assert ("shrinks the visible speed-up of every pruning method" in text) == bool(shared)
    # Of the times that there are (0.1 s a document), a report shows none.
    assert "0.1 s" not in text
    assert "latency_s" not in text


def test_a_cell_with_a_latency_of_shared_answers_is_not_believed(tmp_path: Path) -> None:
    [cell] = make_store(tmp_path, ["baseline"], tasks=["shapes_vqa"]).cells()
    with pytest.raises(ValueError, match="have none of their own"):
        Cell.model_validate({**cell.model_dump(), "environment": {"sharing": "images"}})
