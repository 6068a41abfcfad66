"""One table, in the forms that people and files need."""

from __future__ import annotations

from vtw_eval.tables import Table, layout, markdown, plain

TABLE = Table(["method", "what", "FLOPs"], [["vtw", "a|b", "1.25"], ["", " all ", "10"]], words=2)


def test_words_stand_left_and_numbers_right() -> None:
    assert plain(TABLE).splitlines() == [
        "method    what      FLOPs",
        "--------  ------  -------",
        "vtw       a|b        1.25",
        "          all          10",
    ]


def test_markdown_is_narrow_and_no_bar_ends_a_cell() -> None:
    assert markdown(TABLE).splitlines() == [
        "| method | what | FLOPs |",
        "|:---|:---|---:|",
        r"| vtw | a\|b | 1.25 |",
        "|  | all | 10 |",
    ]


def test_cells_may_be_anything_that_can_be_shown() -> None:
    assert layout(Table([0], [[1]], words=0), "latex_raw", lambda cell: f"${cell}$").count("$") == 4


def test_a_table_may_be_empty() -> None:
    assert markdown(Table(["a"], [])) == "| a |\n|:---|"
    assert plain(Table(["a"], [])).splitlines()[0] == "a"
