"""The report says what the cells hold, whatever the models answer, and refuses what it cannot compare."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from tests.report.made import TASKS, cell_of, make_store, samples_of
from vtw_eval.cli import app
from vtw_eval.record.store import Store
from vtw_eval.report import ReportError, analyse, read_results
from vtw_eval.report.labels import families, labels_of
from vtw_eval.report.render.html import sort_value
from vtw_eval.report.stats.statistics import compare
from vtw_eval.report.tables import ablation_table, main_table, paired_table, subtask_table
from vtw_eval.shapes.data import vqa_rows

runner = CliRunner()
NASTY = "a|b\\|c\n<script>alert(1)</script> `x` ``` **b** [l](http://e.x) </details> & \\end{tabular} $x$ @octocat \x00"


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def html_tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of each table, by the parser of the standard library; fails on a tag that is not ours."""

    class Parser(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[list[list[str]]] = []
            self.inside = False
            self.tags: set[str] = set()

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags.add(tag)
            if tag == "table":
                self.found.append([])
            elif tag == "tr":
                self.found[-1].append([])
            elif tag in ("td", "th"):
                self.found[-1][-1].append("")
                self.inside = True

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.found[-1][-1][-1] += data

    parser = Parser()
    parser.feed(text)
    known = "html head meta title style body h1 h2 p ul li table thead tbody tr td th details summary img strong code"
    known += " div main span wbr br link script figure figcaption svg g defs path use text clippath rect metadata"
    assert parser.tags <= set(known.split())
    return [[[cell.strip() for cell in row] for row in table] for table in parser.found]


def markdown_tables(text: str) -> list[list[list[str]]]:
    return html_tables(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("sweep")
    methods = ["baseline", "vtw,k=2", "vtw,k=4", "vtw,k=4,position=rearrange"]
    return make_store(folder, methods, wrong={"vtw,k=2": 0.4, "vtw,k=4": 0.03}, wrong_answer=NASTY)


def test_main_table_shows_methods_by_tasks_with_shares_and_marks(store: Store) -> None:
    [table] = analyse(read_results(store.root))
    main = main_table(table)
    assert list(main.headers) == ["method", "GFLOPs ↓", "mme (of 600) ↑", "pope F1 ↑", "vqa ↑"]
    assert [row[0] for row in main.rows] == ["baseline", "vtw,k=2", "vtw,k=4", "vtw,k=4,position=rearrange"]
    assert [row[1] for row in main.rows] == ["1.00 (100.0%)", "0.5 (50.0%)", "0.333 (33.3%)", "0.25 (25.0%)"]
    assert table.comparisons == 9
    by_key = {(cell.spec.method, cell.spec.task): cell for cell in store.cells()}
    for row in table.rows:
        for title, task in table.columns.items():
            metric = by_key[row.method, task].metrics[TASKS[task][1]]
            assert row.scores[title].outcome.value == metric.value * (100 if metric.percent else 1)
            found = row.scores[title].interval
            assert found is not None and found.low <= row.scores[title].outcome.value <= found.high
    text = run(store.root)
    rows = markdown_tables(text)[0]
    assert rows[2][2:] == [f"{table.rows[1].scores[t].outcome.value:.2f} ▼" for t in table.columns]
    assert all("▼" not in cell and "▲" not in cell for cell in rows[1])
    best = max(row.scores["vqa"].outcome.value for row in table.rows[1:])
    assert f"**{best:.2f}**" in text


def test_only_differences_that_survive_holm_are_marked(tmp_path: Path) -> None:
    # 6 lost of 6: p = 0.031 alone, 0.156 among five.
    lost = {0, 2, 4, 6, 8, 10}
    methods = ["baseline", *(f"vtw,k={k}" for k in range(1, 6))]

    def build(folder: Path, used: list[str]) -> str:
        store = make_store(folder, used, tasks=["shapes_vqa"], count=40)
        for spec in store.index.cells:
            bad = lost if spec.method.startswith("vtw,k=1") else set()
            rows = samples_of("shapes_vqa", 40, lambda i, t: "no idea" if i in bad else t)  # noqa: B023
            rows = [row.model_copy(update={"group": row.doc_id}) for row in rows]
            store.save(cell_of(spec, rows, 1e9 if spec.method == "baseline" else 5e8), rows)
        return markdown_tables(run(folder))[0][2][2]

    assert build(tmp_path / "two", methods[:2]) == "85.00 ▼"
    assert build(tmp_path / "six", methods) == "85.00"


def test_paired_table_is_what_the_statistics_say(store: Store) -> None:
    results = read_results(store.root)
    [table] = analyse(results)
    outcomes = {(r.spec.method, t): o for r in results.cells for t, o in r.outcomes.items()}
    paired = paired_table(table, equivalence=5.0)
    assert paired is not None and len(paired.rows) == 9
    by_label = {row.label: row.method for row in table.rows}
    for label, title, difference, _, test, counts, _, equal in paired.rows:
        own, base = outcomes[by_label[str(label)], str(title)], outcomes["baseline", str(title)]
        assert own.evidence is not None and base.evidence is not None
        found = compare(own.evidence, base.evidence)
        assert str(difference).startswith(f"{own.value - base.value:+.2f} [")
        assert test == found.test
        assert counts == f"{found.lost} / {found.won}"
        margin = 20.0 if own.evidence.kind == "mme" else 0.05  # MME has two categories of 200 points here
        assert equal == ("yes" if found.equal_within(margin) else "no")


def test_sub_tasks_add_up_to_the_total(store: Store) -> None:
    [table] = analyse(read_results(store.root))
    parts = subtask_table(table, "mme (of 600)")
    assert parts is not None and list(parts.headers) == ["method", "color", "count", "total"]
    for row in parts.rows:
        color, count, total = (float(getattr(cell, "text", cell)) for cell in row[1:])
        assert color + count == pytest.approx(total, abs=0.011)
    assert subtask_table(table, "vqa") is None


def test_ablations_are_found_and_laid_out_as_in_the_papers(store: Store) -> None:
    [table] = analyse(read_results(store.root))
    by_parameter = {family.parameter: family for family in families(row.method for row in table.rows)}
    assert set(by_parameter) == {"k", "position"}
    ablation = ablation_table(table, by_parameter["k"])
    assert list(ablation.headers) == ["k", "2", "4"]
    assert ablation.rows[0] == ["FLOPs", "50.0%", "33.3%"]
    assert list(ablation_table(table, by_parameter["position"]).headers) == ["position", "keep", "rearrange"]


def test_an_ablation_of_a_search_tells_the_k_that_was_found(tmp_path: Path) -> None:
    methods = ["baseline", "vtw,k=search,eta=0.006", "vtw,k=search,eta=0.003"]
    store = make_store(tmp_path, methods, tasks=["shapes_vqa"])
    for cell in store.cells():
        if "search" in cell.spec.method:
            k = 12 if "0.006" in cell.spec.method else 15
            store.save(cell.model_copy(update={"methods": [f"vtw,k={k},position=keep"]}), store.samples(cell))
    [table] = analyse(read_results(tmp_path))
    [family] = families(row.method for row in table.rows)
    rows = {str(row[0]): row[1:] for row in ablation_table(table, family).rows}
    assert family.parameter == "eta" and family.values == (0.003, 0.006)
    assert list(rows["k found, shapes_vqa"]) == ["15", "12"]
    assert "vtw,k=12,position=keep" in run(tmp_path)


def test_labels_leave_out_defaults_but_stay_distinct() -> None:
    specs = ["vtw,k=2,position=keep", "fastv+vtw,fastv.k=2,fastv.seed=0,vtw.k=6,vtw.position=keep", "rand,k=6,seed=1"]
    assert list(labels_of(specs).values()) == ["vtw,k=2", "fastv+vtw,fastv.k=2,vtw.k=6", "rand,k=6,seed=1"]
    both = ["vtw,k=2,position=keep", "vtw,k=2"]
    assert list(labels_of(both).values()) == both
    assert labels_of(["unknown,seed=0"]) == {"unknown,seed=0": "unknown,seed=0"}


def spoil(store: Store, method: str, task: str, how: str) -> None:
    spec = next(s for s in store.index.cells if s.method.startswith(method) and s.task == task)
    folder = store.folder(spec)
    if how == "missing":
        for file in folder.iterdir():
            file.unlink()
    elif how == "corrupt":
        (folder / "samples.jsonl").write_text("{}\n")
    else:
        failed = {"status": "failed", "error": "Traceback\nRuntimeError: out of | memory", "metrics": {}}
        store.save(cell_of(spec, samples_of(task, 4, lambda i, t: t), 1e9, **failed), [])


@pytest.mark.parametrize("how", ["missing", "corrupt", "failed"])
def test_a_cell_that_is_not_done_is_no_number_and_is_listed(how: str, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    spoil(store, "vtw,k=2", "shapes_vqa", how)
    text = run(tmp_path)
    rows = markdown_tables(text)[0]
    assert rows[2][0] == "vtw,k=2" and rows[2][-1] == how
    assert "**1 of 9 cells are not done:**" in text
    assert f"tiny / vtw,k=2,position=keep / shapes\\_vqa: {how}" in text
    assert ("out of &#124; memory" in text) == (how == "failed")
    # FLOPs are then over the tasks that all have finished, for every method alike.
    assert "mean over the documents of shapes\\_mme, shapes\\_pope." in text
    assert [row[1] for row in rows[1:]] == ["1.00 (100.0%)", "0.5 (50.0%)", "0.333 (33.3%)"]


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    make_store(tmp_path, ["vtw,k=2", "vtw,k=4"])
    text = run(tmp_path)
    assert "no baseline among the methods" in text
    assert "Differences to the baseline" not in text


def test_methods_over_different_documents_are_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, tasks=["shapes_vqa"])
    cell = store.cells()[1]
    rows = store.samples(cell)[:-3]
    store.save(cell_of(cell.spec, rows, 1e9), rows)
    message = run(tmp_path, code=2)
    assert "tiny / shapes_vqa: vtw,k=2,position=keep and the baseline cover different documents (77 and 80" in message
    assert len(message.strip().splitlines()) == 1


def test_a_value_that_the_samples_do_not_give_has_no_interval(tmp_path: Path) -> None:
    store = make_store(tmp_path, tasks=["shapes_vqa"])
    cell = store.cells()[1]
    wrong = cell.metrics["exact_match"].model_copy(update={"value": 0.123})
    store.save(cell.model_copy(update={"metrics": {"exact_match": wrong}}), store.samples(cell))
    text = run(tmp_path)
    assert markdown_tables(text)[0][2][2] == "12.30"
    intervals = next(table for table in markdown_tables(text) if table[0] == ["method", "vqa"])
    assert intervals[2][1] == "12.30"
    assert "No interval for vqa of tiny (vtw,k=2): the samples give 88.75, the task reports 12.30." in text


def test_every_model_has_its_table(tmp_path: Path) -> None:
    make_store(tmp_path, models=["one", "two"])
    text = run(tmp_path)
    assert "## one\n" in text and "## two\n" in text
    tables = markdown_tables(text)
    assert [table[0][0] for table in tables].count("method") == len(tables) - 8  # what to take, ablations and examples
    assert sum(table[0][:2] == ["method", "GFLOPs ↓"] for table in tables) == 2


def test_the_convention_of_flops_is_chosen_and_named(store: Store) -> None:
    assert "convention eq1" in run(store.root)
    text = run(store.root, "--flops", "exact")
    assert "convention exact" in text and "2.00 (100.0%)" in text
    assert "no cell has FLOPs by 'calflops'. Known here: eq1, exact." in run(store.root, "--flops", "calflops", code=2)


def test_nothing_a_model_says_breaks_markdown(store: Store) -> None:
    text = run(store.root)
    examples = next(table for table in markdown_tables(text) if table[0][-1] == "method's answer")
    assert {len(row) for row in examples} == {6}
    shown = {row[5] for row in examples if row[0] == "shapes_vqa"}
    expected = NASTY.replace("\n", "↵").replace("\x00", "\\u0000")
    assert shown == {expected if len(NASTY) <= 120 else f"{NASTY[:119]}…".replace("\n", "↵")}
    assert text.count("<details>") == text.count("</details>")
    assert "@octocat" not in text  # nobody is notified


def test_nothing_a_model_says_breaks_html(store: Store) -> None:
    text = run(store.root, "--format", "html", "--title", "<b>T</b>")
    examples = next(table for table in html_tables(text) if table[0][-1] == "method's answer")
    assert {len(row) for row in examples} == {6}
    assert any("<script>alert(1)</script>" in row[5] for row in examples)
    assert "<title>&lt;b&gt;T&lt;/b&gt;</title>" in text
    # One script, of which the page knows the hash; no other would run.
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in text


def test_a_page_needs_no_other_file(store: Store, tmp_path: Path) -> None:
    run(store.root, "-o", tmp_path / "x.html")
    assert [file.name for file in tmp_path.iterdir()] == ["x.html"]
    text = (tmp_path / "x.html").read_text()
    # What a browser would fetch: nothing but names inside the page and the namespaces of SVG.
    targets = re.findall(r'(?:src|href|xlink:href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert targets and all(target.startswith(("#", "data:")) for target in targets)
    assert "@import" not in text and 'name="viewport"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert len(text) < 1_000_000
    points = re.findall(r'class="point"[^>]*data-tip="([^"]*)"', text)
    [table] = analyse(read_results(store.root))
    values = {f"{t}: {s.outcome.value:.2f} [" for row in table.rows for t, s in row.scores.items()}
    assert len(points) == 3 * (4 + 2) and all(any(value in point for point in points) for value in values)


def test_a_page_sorts_by_numbers_and_breaks_no_arrow_off(store: Store) -> None:
    text = run(store.root, "--format", "html")
    [table] = analyse(read_results(store.root))
    shown = [float(value) for value in re.findall(r'<td class="number" data-value="([^"]*)"', text)]
    main = [[row.flops or 0.0, *(s.outcome.value for s in row.scores.values())] for row in table.rows]
    expected = [float(f"{value / 1e9:.3g}" if i == 0 else f"{value:.2f}") for r in main for i, value in enumerate(r)]
    assert shown[: len(expected)] == expected
    assert not re.search(r" [▼▲↑↓≈]", html_text(text))
    assert sort_value("<0.001") == pytest.approx(0.001) and (sort_value("<0.001") or 1) < 0.001
    assert sort_value("1.50 GiB (0.9x)") == 1536 and sort_value("900.0 MiB") == 900
    assert sort_value("-123.75 [-145.82, -100.58] ▼") == -123.75 and sort_value(("+1.25", " ▲")) == 1.25
    assert sort_value("missing") is None and sort_value("-") is None


def html_text(text: str) -> str:
    """The words of a page, without style and script."""
    return re.sub(r"<[^>]*>", "", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL))


def test_examples_show_the_pictures_that_were_asked_about(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "vtw,k=2"], tasks=["shapes_vqa"], wrong={"vtw,k=2": 1.0}, count=4)
    assert "<img" not in run(tmp_path, "--format", "html")  # made-up groups fit no picture
    rows = vqa_rows()[:4]
    for cell in store.cells():
        named = [
            sample.model_copy(update={"group": hashlib.sha256(row["image"]["bytes"] + b"\0").hexdigest()[:16]})
            for sample, row in zip(store.samples(cell), rows, strict=True)
        ]
        store.save(cell, named)
    text = run(tmp_path, "--format", "html")
    [picture] = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    shown = next(row for row in rows if row["image"]["bytes"] == base64.b64decode(picture))
    assert shown["question"] in text
    assert "data:image" not in run(tmp_path)


def test_nothing_a_model_says_breaks_latex(store: Store) -> None:
    text = run(store.root, "--format", "latex")
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") > 3
    plain = text.replace(r"\allowbreak{}", "")
    assert r"\textbackslash{}end\{tabular\} \$x\$" in plain and r"\end{tabular" not in plain
    assert all(ord(c) < 128 for c in text)
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.replace(r"\&", "").count("&") in (1, 2, 3, 4, 5, 6), line


def test_the_main_table_alone_is_what_a_paper_takes(store: Store, tmp_path: Path) -> None:
    text = run(store.root, "--format", "latex", "--table")
    assert text.startswith("% Needs ") and text.count(r"\begin{table}") == 1
    assert r"\label{tab:tiny}" in text and r"\caption{tiny: scores of methods. $\blacktriangledown$" in text
    assert r"\section" not in text and "longtable}{" not in text
    run(store.root, "-o", tmp_path / "t.md", "--table")
    assert [file.name for file in tmp_path.iterdir()] == ["t.md"]
    assert len(markdown_tables((tmp_path / "t.md").read_text())) == 1
    assert len(html_tables(run(store.root, "--format", "html", "--table"))) == 1
    assert "CSV has every score anyway" in run(store.root, "--format", "csv", "--table", code=2)


def test_csv_has_a_line_per_score(store: Store) -> None:
    rows = list(csv.DictReader(io.StringIO(run(store.root, "--format", "csv"))))
    assert len(rows) == 12
    [row] = [r for r in rows if r["method"] == "vtw,k=2,position=keep" and r["column"] == "vqa"]
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert float(row["difference_high"]) < 0 and float(row["p_holm"]) < 0.05
    assert row["flops_convention"] == "eq1" and float(row["flops"]) == 5e8


def tree(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_equal_cells_give_equal_bytes_whenever_they_ran(tmp_path: Path) -> None:
    make_store(tmp_path / "a" / "sweep", count=20)
    other = make_store(tmp_path / "b" / "sweep", count=20)
    for cell in other.cells():
        later = {"seconds": 99.0, "finished": "2027-01-01T00:00:00+00:00"}
        other.save(cell.model_copy(update=later), other.samples(cell))
    for side in "ab":
        out = tmp_path / "out" / side / "README.md"
        run(tmp_path / side / "sweep", "-o", out, "--equivalence", 2, "--command", "x")
    found = tree(tmp_path / "out" / "a")
    assert found == tree(tmp_path / "out" / "b")
    assert set(found) == {"README.md", "summary.json"} | {
        f"plots/tiny-{name}.{kind}" for name in ("flops", "vtw-position-keep-k") for kind in ("png", "svg")
    }
    text = (tmp_path / "out" / "a" / "README.md").read_text()
    assert "plots/tiny-flops.png" in text and "Made by <code>x</code>." in text and "torch 2.0" in text
    assert "2026" not in text and "2027" not in text


def test_a_report_of_the_size_of_run_all_fits_into_a_comment_and_its_summary_is_small(tmp_path: Path) -> None:
    methods = ["baseline", *(f"fastv+vtw,fastv.k=2,fastv.r=0.5,vtw.k={k}" for k in range(3, 19))]
    make_store(tmp_path / "sweep", methods, count=480, wrong={m: 0.15 for m in methods[1:]})
    out = tmp_path / "README.md"
    run(tmp_path / "sweep", "-o", out)
    # 51 of the 85 cells of the shapes preset
    assert len(out.read_text()) * 85 / 51 < 65_536
    assert (tmp_path / "summary.json").stat().st_size * 85 / 51 < 300_000


@pytest.mark.parametrize("arguments", [["no-such-folder"], ["."]])
def test_a_folder_without_results_is_an_error(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = run(*arguments, code=2)
    assert "error:" in message and len(message.strip().splitlines()) == 1


def test_cells_of_several_limits_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path, tasks=["shapes_vqa"])
    results = read_results(tmp_path)
    again = replace(results.cells[0], spec=results.cells[0].spec.model_copy(update={"limit": 4}))
    with pytest.raises(ReportError, match="two cells of different limits"):
        analyse(replace(results, cells=(*results.cells, again)))


def test_methods_lists_every_method() -> None:
    result = runner.invoke(app, ["methods"])
    assert result.exit_code == 0
    for word in ("baseline", "vtw", "random_k", "[low, high]"):
        assert word in " ".join(result.stdout.split())


def test_what_holds_no_divergence_is_refused(store: Store, tmp_path: Path) -> None:
    curve = tmp_path / "kl.json"
    curve.write_text(json.dumps({"task": "vqa", "mean_kl": {"5": 0.1}}))
    message = run(store.root, "-o", tmp_path / "x.md", "--kl", curve, code=2)
    assert "holds no divergence by k" in message
    assert not (tmp_path / "x.md").exists()
