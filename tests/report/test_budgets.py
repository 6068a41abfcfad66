"""Tables of methods at equal cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tests.report.made import make_store
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.summary import FILE

METHODS = ("baseline", "vtw,k=2", "fastv,k=1", "random_vision,k=1,seed=0", "random_vision,k=1,seed=1")


def made(folder: Path, **more: object) -> str:
    store = make_store(folder, METHODS)
    budgets = {"0.5 of the FLOPs": ["vtw,k=2,position=keep"], "4 tokens per image": ["fastv,k=1", "random_vision,k=1"]}
    store.create(store.index.model_copy(update={"budgets": budgets, "missed": ["tome: it costs 60.0% to 100.0%"]}))
    return make_report(ReportRequest(folder=folder, plots=False, **more)).text  # type: ignore[arg-type]


def rows(text: str) -> list[list[str]]:
    """Return the methods of each table above the first fold."""
    top = text.partition("<details>")[0]
    tables = re.findall(r"(?:^\|.*\n)+", top, re.MULTILINE)
    return [[line.split("|")[1].strip() for line in table.splitlines()[2:]] for table in tables]


def test_each_budget_has_a_table_with_the_baseline(tmp_path: Path) -> None:
    text = made(tmp_path)
    assert rows(text) == [
        ["baseline", "vtw,k=2"],
        ["baseline", "fastv,k=1,r=0.5", "random\\_vision,k=1,r=0.5 (2 seeds)"],
    ]
    assert text.index("At 0.5 of the FLOPs:") < text.index("At 4 tokens per image:") < text.index("tome: it costs")
    assert "<summary>All methods</summary>" in text


def test_numbers_and_marks_are_those_of_the_table_of_all(tmp_path: Path) -> None:
    text = made(tmp_path)
    for label in ("vtw,k=2", "fastv,k=1,r=0.5"):
        of = [re.sub(r"\*", "", line) for line in text.splitlines() if line.startswith(f"| {label} ")]
        assert of[0] == of[1], label


def test_committed_results_keep_their_budgets(tmp_path: Path) -> None:
    request = ReportRequest(folder=tmp_path / "run", plots=False)
    text = made(tmp_path / "run")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / FILE).write_bytes(make_report(request).files[FILE])
    again = make_report(replace(request, folder=tmp_path / "kept", title="run")).text
    assert rows(again) == rows(text)


def test_a_part_shows_what_is_left_of_each(tmp_path: Path) -> None:
    from vtw_eval.report.part import parse_only

    text = made(tmp_path, only=parse_only(["method=fastv*"]))
    assert rows(text) == [["baseline", "fastv,k=1,r=0.5"]]
