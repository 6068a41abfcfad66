"""Every printed cost that can be computed, to the printed digit; and what cannot match, by name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vtw_eval.papers.costs import TABLES, PaperRow, PaperTable, paper_table
from vtw_eval.papers.printed import printed_tables


@pytest.fixture(scope="module")
def tables() -> Mapping[str, PaperTable]:
    return {key: paper_table(key) for key in TABLES}


def printed(table: PaperTable, method: str, unit: str, model: str = "") -> list[str]:
    """Return what was computed, rounded, for the rows that match."""
    rows = [row for row in table.rows if row.method == method and row.unit == unit and row.model.startswith(model)]
    assert all(row.match == "yes" for row in rows)
    return [row.printed for row in rows]


def test_table_2_of_vtw(tables: Mapping[str, PaperTable]) -> None:
    table = tables["vtw-table2"]
    assert printed(table, "baseline", "TFLOPs") == ["8.48", "16.50", "28.73"]
    assert printed(table, "FastV", "TFLOPs") == ["4.91", "9.56", "15.67"]
    for method in ("VTW", "VTW†", "Rand"):
        assert printed(table, method, "TFLOPs") == ["4.68", "9.10", "14.80"]
        assert printed(table, method, "%") == ["55.19", "55.15", "51.51"]
    assert printed(table, "baseline", "%") == ["100.00"] * 3
    assert printed(table, "FastV", "%") == ["57.90", "57.94", "54.54"]


def test_tables_3_4_and_8_of_vtw(tables: Mapping[str, PaperTable]) -> None:
    assert printed(tables["vtw-table3"], "FastV", "%") == ["53.13"]
    assert printed(tables["vtw-table3"], "VTW", "%") == ["50.00"]
    assert [row.printed for row in tables["vtw-table4"].rows if row.match == "yes"] == ["22.9", "12.9", "12.3", "0.54"]
    assert printed(tables["vtw-table8"], "VTW", "%") == ["64", "50"]


def test_table_9_of_vtw_repeats_table_2_but_for_a_typo(tables: Mapping[str, PaperTable]) -> None:
    matching = [row.printed for row in tables["vtw-table9"].rows if row.match == "yes"]
    assert matching == ["8.48", "4.91", "4.68", "16.50", "9.56", "9.10", "28.73", "15.67", "14.80"]
    [typo] = [row for row in tables["vtw-table9"].rows if row.match == "no"]
    assert (typo.model, typo.method) == ("LLaVA-1.5-13B", "VTW") and typo.inputs.endswith("K=16 as printed")


def test_rows_of_dyvte_with_known_exit_layers(tables: Mapping[str, PaperTable]) -> None:
    assert printed(tables["dyvte-table2"], "baseline", "TFLOPs", "LLaVA-1.5-7B") == ["8.8", "8.8", "9.5", "9.8"]
    assert printed(tables["dyvte-table2"], "baseline", "TFLOPs", "LLaVA-1.5-13B") == ["16.8", "16.8", "18.1", "18.6"]
    rows = [row for key in ("dyvte-table1", "dyvte-table2") for row in tables[key].rows if "exit" in row.inputs]
    assert [(row.printed, row.match) for row in rows] == [
        ("6.3", "yes"),
        ("5.3", "yes"),
        ("6.7", "yes"),
        ("5.5", "yes"),
    ]
    mme = [
        row
        for row in tables["dyvte-table1"].rows
        if row.method == "baseline" and row.inputs.startswith("MME (perception):")
    ]
    assert [(row.printed, row.match) for row in mme] == [("8.9", "yes"), ("16.9", "yes")]


def test_fastv_in_table_4_of_dyvte(tables: Mapping[str, PaperTable]) -> None:
    rows = [row for row in tables["dyvte-table4"].rows if row.method == "FastV"]
    assert [(row.inputs.partition(":")[0], row.printed, row.match) for row in rows] == [
        ("SQA_Img", "6.2", "yes"),
        ("MM-Vet", "5.2", "yes"),
        ("SEED", "5.8", "no"),
        ("MMB_EN", "6.0", "yes"),
    ]


def test_what_does_not_match_is_shown(tables: Mapping[str, PaperTable]) -> None:
    wrong = {
        (key, row.model, row.method, row.inputs[:7]) for key in TABLES for row in tables[key].rows if row.match == "no"
    }
    assert {entry for entry in wrong if entry[2] != "ToMe"} == {
        ("vtw-table2", "LLaVA-1.5-13B", "FastV, true weights", "text 65"),
        ("vtw-table9", "LLaVA-1.5-13B", "VTW", "text 65"),
        ("dyvte-table1", "LLaVA-1.5-13B", "baseline", "MM-Vet:"),
        ("dyvte-table4", "LLaVA-1.5-7B", "FastV", "SEED: t"),
    }
    assert max(abs(row.difference or 0) for row in tables["dyvte-table4"].rows) < 0.3


@pytest.mark.parametrize(
    ("key", "model", "benchmark", "layers"),
    [
        ("dyvte-table1", "LLaVA-1.5-7B", "SEED", "14.5"),
        ("dyvte-table1", "LLaVA-1.5-13B", "SEED", "11.8"),
        ("dyvte-table1", "LLaVA-1.5-13B", "MM-Vet", "24.0"),
        ("dyvte-table2", "LLaVA-1.5-7B", "VQAv2", "16.7"),
        ("dyvte-table2", "LLaVA-1.5-13B", "TextVQA", "20.5"),
    ],
)
def test_implied_layers_are_called_implied(
    tables: Mapping[str, PaperTable], key: str, model: str, benchmark: str, layers: str
) -> None:
    [row] = [
        row
        for row in tables[key].rows
        if (row.model, row.method) == (model, "DyVTE") and row.inputs.startswith(f"{benchmark}:")
    ]
    assert row.computed is None and row.match == "implied"
    assert row.note.startswith(f"implies {layers} of")


def test_models_of_unknown_size_are_named_as_such(tables: Mapping[str, PaperTable]) -> None:
    for key in ("dyvte-table1", "dyvte-table2"):
        rows = [row for row in tables[key].rows if row.match == "not computable"]
        assert {row.model for row in rows} == {"Eagle-X5 7B", "VILA 7B", "InternVL 7B"}
        assert all(row.note and row.difference is None for row in rows)


def test_a_match_is_by_the_printed_digits() -> None:
    def row(computed: float) -> PaperRow:
        return PaperRow(model="", method="", inputs="", convention="", unit="", printed="53.13", computed=computed)

    assert [row(value).match for value in (53.125, 53.1349, 53.1351, 53.1249)] == ["yes", "yes", "no", "no"]
    assert row(53.1).difference == pytest.approx(-0.03)


def test_unknown_tables_are_told() -> None:
    with pytest.raises(ValueError, match=r"'vtw-table5'.*dyvte-table4, all"):
        paper_table("vtw-table5")


@pytest.mark.parametrize(
    ("old", "new"), [("table2", "vtw-table2"), ("dyvte1", "dyvte-table1"), ("dyvte4", "dyvte-table4")]
)
def test_the_names_of_earlier_versions_lead_to_todays(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=f"unknown table '{old}'; did you mean '{new}'"):
        paper_table(old)


def test_all_methods_that_print_a_cost_are_compared(tables: Mapping[str, PaperTable]) -> None:
    for key, table in tables.items():
        of = printed_tables()[key]
        column = next((name for name in of.columns if name in ("TFLOPs", "FLOPs %")), None)
        if column is not None:
            wanted = {of.printed(row, column) for row in of.rows}
            assert wanted <= {row.printed for row in table.rows}
