"""The page in Chromium: themes, narrow screens, sorting, filtering, words at points, paper. Tables in pdfTeX."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.report.made import make_store
from tests.report.test_report import NASTY
from vtw_eval.report.make import ReportRequest, make_report

LABELS = ["fastv,k=2", "tome,k=0,r=0.9", "sparsevlm,k1=1,k2=3,k3=5,r=0.646484", "fastv+vtw,fastv.k=2,vtw.k=6"]
METHODS = ["baseline", *(f"vtw,k={k}" for k in (2, 4, 5, 6, 8)), *LABELS, "rand,k=6", "uniform", "dyvte"]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    make_store(folder, METHODS, wrong={"vtw,k=2": 0.4, "vtw,k=8": 0.0}, wrong_answer=NASTY, count=60)
    return folder


@pytest.fixture(scope="session")
def file(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(make_report(ReportRequest(folder=sweep, form="html", title="Looks")).text)
    return path


def opened(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, and what the browser complains of or asks the network for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda asked: told.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    page.goto(file.as_uri())
    return page, told


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_in_both_themes(browser: Browser, file: Path, width: int, scheme: str) -> None:
    page, told = opened(browser, file, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert told == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    if place := os.environ.get("LOOKS"):
        page.screenshot(path=Path(place) / f"report-{width}-{scheme}.png", full_page=True)
    page.get_by_role("button", name="Theme").click()  # auto, light, dark
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"


def test_a_wide_table_scrolls_in_its_box_and_the_first_column_stays(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file, 390)
    box = page.locator(".table > .scroll").first
    first, last = box.locator("tbody th").first, box.locator("tbody tr").first.locator("td").last
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
    before, end = first.bounding_box(), last.bounding_box()
    assert before and end and end["x"] > 390
    box.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
    after, end = first.bounding_box(), last.bounding_box()
    assert after and end and after["x"] == before["x"]
    assert after["x"] + after["width"] <= end["x"] + 1 and end["x"] + end["width"] <= 390


def test_heads_stand_over_their_numbers(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file)
    table = page.locator("table").first
    for number in range(1, table.locator("thead th").count()):
        edges = table.evaluate(
            """(table, column) => [table.tHead.rows[0], ...table.tBodies[0].rows].map((row) => {
                const range = document.createRange();
                const cell = row.cells[column];
                range.selectNodeContents(cell.querySelector("button") ?? cell);
                // Marks stand beside the digits.
                const mark = cell.querySelector(".mark");
                if (mark) range.setEndBefore(mark);
                return range.getBoundingClientRect().right;
            })""",
            number,
        )
        assert max(edges) - min(edges) < 1.0, number


def test_a_column_is_sorted_by_mouse_and_by_keyboard(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file)
    table = page.locator("table").first
    cells = table.locator("tbody td:nth-child(2)")
    original = cells.all_inner_texts()
    head = table.locator("thead th").nth(1)
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    values = [float(text.split()[0]) for text in cells.all_inner_texts()]
    assert values == sorted(values)
    page.keyboard.press("Enter")  # it has the focus
    expect(head).to_have_attribute("aria-sort", "descending")
    assert [float(text.split()[0]) for text in cells.all_inner_texts()] == sorted(values, reverse=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(table.locator("thead th").nth(2)).to_have_attribute("aria-sort", "ascending")
    expect(head).to_have_attribute("aria-sort", "none")
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert cells.all_inner_texts() == original


def test_rows_are_filtered(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file)
    page.get_by_role("searchbox").first.fill("VTW k=2")
    table = page.locator("table").first
    shown = table.locator("tbody tr:not([hidden]) th")
    assert table.locator("tbody tr:visible").count() == shown.count()
    assert shown.all_inner_texts() == ["vtw,k=2", "fastv+vtw,fastv.k=2,fastv.r=0.5,vtw.k=6"]
    expect(page.locator("output").first).to_have_text(f"2 of {len(METHODS)} rows")


def test_a_point_tells_its_words_and_its_method_stands_out(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file)
    chart = page.locator(".chart").first
    point = chart.locator(".point").nth(3)
    point.scroll_into_view_if_needed()
    point.hover()
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    assert tip.inner_text().startswith(point.get_attribute("data-tip") or "nothing")
    number = point.get_attribute("data-series")
    assert chart.locator(f"[data-series='{number}'].on").count() >= 3  # point, label, line or bar
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    chart.locator(".point").first.focus()
    expect(tip).to_be_visible()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tip") == chart.locator(".point").nth(1).get_attribute(
        "data-tip"
    )
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    assert chart.locator(".point[tabindex='0']").count() == 1  # one stop for the tab key


def test_what_a_model_says_runs_nowhere(browser: Browser, file: Path) -> None:
    page = browser.new_page()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.goto(file.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"alert(1)\">')")
    page.wait_for_timeout(200)


def test_paper_shows_what_is_folded(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file, scheme="dark")
    closed = page.locator("details:not([open])").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert closed and page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    expect(page.get_by_role("searchbox").first).to_be_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed


@pytest.mark.parametrize("table", [True, False])
def test_tables_are_set_on_the_page(sweep: Path, tmp_path: Path, table: bool) -> None:
    made = make_report(ReportRequest(folder=sweep, form="latex", table=table))
    for name, content in {"report.tex": made.text.encode(), **made.files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    packages = "amssymb,array,booktabs,graphicx,longtable"
    document = (
        rf"\documentclass{{article}}\usepackage{{{packages}}}\begin{{document}}\input{{report.tex}}\end{{document}}"
    )
    (tmp_path / "main.tex").write_text(document)
    for _ in range(2):  # references and the widths of long tables
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout and "too large for page" not in done.stdout, done.stdout[-3000:]
    assert "undefined references" not in done.stdout
