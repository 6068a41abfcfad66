"""Tables fit the page of an article, whatever stands in them; the real engine is asked in ``tests/looks``."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vtw_eval.report.render.blocks import Captioned, Inline, Text
from vtw_eval.report.render.latex import WIDTH, parts_of, to_latex, width_of
from vtw_eval.tables import Table


def table_of(columns: int, rows: int, label: str = "fastv+vtw,fastv.k=2,fastv.r=0.5,vtw.k=6", words: int = 1) -> Table:
    headers = [*["method"] * words, *(f"caption EM {i} ↑" for i in range(columns))]
    cells: list[list[Inline]] = [
        [*[label] * words, *((Text("100.00", "bold"), " ▼") for _ in range(columns))] for _ in range(rows)
    ]
    return Table(headers, cells, words=words)


@pytest.mark.parametrize("columns", [1, 4, 6, 9, 25])
@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("label", ["vtw", "fastv+vtw,fastv.k=2,fastv.r=0.5,vtw.k=6", "x" * 300])
def test_every_column_stands_once_in_a_part_that_fits(columns: int, words: int, label: str) -> None:
    table = table_of(columns, 3, label, words)
    parts = parts_of(table)
    assert all(part.total <= WIDTH + 1e-6 for part in parts)
    assert [h for part in parts for h in part.table.headers[words:]] == list(table.headers[words:])
    for part in parts:
        assert list(part.table.headers[:words]) == list(table.headers[:words])
        assert all(len(row) == len(part.widths) == len(part.table.headers) for row in part.table.rows)


def test_a_table_of_words_breaks_its_lines() -> None:
    rows: list[list[Inline]] = [["task", "12", "vtw,k=2", Text("a" * 120, "code"), Text("b c " * 30, "code")]]
    [part] = parts_of(Table(["task", "document", "method", "answer", "other"], rows, words=5))
    assert part.total <= WIDTH and part.widths[0] is None and part.widths[3] is not None
    text = to_latex([Table(["task", "document", "method", "answer", "other"], rows, words=5)])
    assert r"aaaaaaaaaaaa\allowbreak{}aaaaaaaaaaaa" in text


def test_widths_are_about_those_of_the_fonts() -> None:
    # cmr8 and cmtt8, by their metrics (TeX Live), in points.
    for text, points in (("0123456789", 42.5), ("baseline", 31.9), ("downsample,r=0.5", 66.6)):
        assert points <= width_of(text) <= 1.25 * points, text
    assert width_of(Text("0123456789", "code")) == pytest.approx(42.5, rel=0.1)


@pytest.mark.parametrize("rows", [5, 60, 200])
def test_a_float_has_a_caption_and_a_label_and_goes_on_where_it_is_long(rows: int) -> None:
    text = to_latex([Captioned(table_of(6, rows), "Scores of 5 % & more.", "tab:x")])
    floats = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert text.count(r"\label{tab:x}") == 1 == text.count(r"\caption{Scores of 5 \% \& more.}")
    assert r"\label" in floats[0] and text.count("(continued)") == len(floats) - 1
    assert (len(floats) > 1) == (rows > 5)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}")
    cells = np.array([line.count("&") for line in text.splitlines() if line.endswith(r"\\")])
    assert (cells > 0).all()
    # Each row once in each part.
    assert text.count(r"\textbf{100.00}") == 6 * rows
    for one in floats:
        assert one.count(r"\\") < 60


def test_a_header_keeps_brackets_together() -> None:
    text = to_latex([Table(["method", "difference [95 %]"], [["vtw", "1"]])])
    assert r"\shortstack[r]{difference \\{} [95 \%]}" in text
    assert r"\shortstack[r]{pope \\{} F1~$\uparrow$}" in to_latex([Table(["method", "pope F1 ↑"], [["vtw", "1"]])])
