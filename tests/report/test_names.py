"""Names of methods: in every table and format, told once, checked, and no part of what was evaluated."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.report.made import make_store
from tests.report.test_report import html_tables, markdown_tables, run
from vtw_eval.report import analyse, changes_between, read_results
from vtw_eval.report.plots import model_plots
from vtw_eval.report.seeds import seed_groups
from vtw_eval.sweep.plan import PlanError, parse_plan

METHODS = ["baseline", "vtw,k=4", "fastv", *(f"rand,k=2,seed={seed}" for seed in (0, 1))]
NAMES = {"vtw, position=keep, k=4": "VTW", "fastv,r=0.5": "FastV", "rand,k=2,seed=1": "Random"}
TASKS = ["shapes_pope", "shapes_vqa"]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    return make_store(folder, METHODS, wrong={"vtw,k=4": 0.6}, tasks=TASKS, names=NAMES).root


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nameless")
    store = make_store(folder, METHODS, wrong={"vtw,k=4": 0.6}, tasks=TASKS)
    index = json.loads(store.index_file.read_text())
    del index["names"]  # as in a folder of an earlier version
    store.index_file.write_text(json.dumps(index))
    return folder


def records(*arguments: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv"))))


def test_names_are_no_part_of_a_cell(named: Path, nameless: Path) -> None:
    assert sorted(p.name for p in (named / "cells").iterdir()) == sorted(p.name for p in (nameless / "cells").iterdir())


def test_every_table_shows_the_name_and_tells_once_what_it_stands_for(named: Path, nameless: Path) -> None:
    tables, plain = markdown_tables(run(named)), markdown_tables(run(nameless))
    to_name = {
        "vtw,k=4": "VTW",
        "fastv,k=2,r=0.5": "FastV",
        "rand,k=2 (2 seeds)": "Random (2 seeds)",
        "rand,k=2": "Random, seed=0",
        "rand,k=2,seed=1": "Random, seed=1",
    }
    assert tables == [[[to_name.get(cell, cell) for cell in row] for row in table] for table in plain]
    text = run(named)
    for name, spec in (("VTW", "vtw,k=4"), ("FastV", "fastv,k=2,r=0.5"), ("Random", "rand,k=2 (2 seeds)")):
        assert text.count(f"- {name}: <code>{spec}</code>\n") == 1
    assert "Methods:" not in run(nameless)


def test_a_name_in_the_tables_of_several_models_is_told_once(tmp_path: Path) -> None:
    make_store(tmp_path, ["baseline", "vtw,k=4"], tasks=["shapes_vqa"], models=["a", "b"], names={"vtw,k=4": "VTW"})
    text = run(tmp_path)
    assert text.count("| VTW |") > 2 and text.count("- VTW: <code>vtw,k=4</code>") == 1


def test_csv_keeps_the_specs_and_nothing_but_a_column_is_new(named: Path, nameless: Path) -> None:
    rows = records(named)
    assert {(row["method"], row["name"]) for row in rows} == {
        ("baseline", "baseline"),
        ("vtw,k=4,position=keep", "VTW"),
        ("fastv,k=2,r=0.5,seed=0", "FastV"),
        ("rand,k=2,seed=0", "Random, seed=0"),
        ("rand,k=2,seed=1", "Random, seed=1"),
        ("rand,k=2 (2 seeds)", "Random (2 seeds)"),
    }
    assert [{k: v for k, v in row.items() if k != "name"} for row in rows] == records(nameless)


def test_a_name_on_the_command_line_is_as_one_in_the_plan(named: Path, nameless: Path) -> None:
    given = [word for spec, name in NAMES.items() for word in ("--name", f"{spec}={name}")]
    title = ("--title", "x")
    assert run(nameless, *given, *title) == run(named, *title)
    other = run(named, "--name", "vtw,k=4=Withdrawal", *title)
    assert other.replace("Withdrawal", "VTW") == run(named, *title) and "| VTW |" not in other


def test_names_are_kept_beside_a_report_and_unknown_without_any(named: Path, nameless: Path, tmp_path: Path) -> None:
    run(named, "-o", tmp_path / "a" / "README.md")
    assert markdown_tables(run(tmp_path / "a"))[0] == markdown_tables(run(named))[0]
    run(nameless, "-o", tmp_path / "b" / "README.md")
    # As earlier versions wrote it, and can read it.
    assert (tmp_path / "b" / "summary.json").read_text().startswith('{"version": 1, "environments": ')


@pytest.mark.parametrize("method", ["VTW", "vtw,k=4", "vtw,k=4,position=keep"])
def test_only_and_reference_take_a_name_or_a_spec(method: str, named: Path) -> None:
    chosen = {row["method"] for row in records(named, "--only", f"method={method}")}
    assert chosen == {"baseline", "vtw,k=4,position=keep"}
    compared = [row for row in records(named, "--reference", method) if row["reference"]]
    assert {row["reference"] for row in compared} == {"vtw,k=4,position=keep"}
    assert {row["name"] for row in compared} == {"baseline", "FastV", "Random (2 seeds)"}
    assert "Differences to VTW" in run(named, "--reference", method)


def test_a_reference_with_seeds_stays_whole_in_a_part(named: Path) -> None:
    part = records(named, "--only", "method=FastV", "--reference", "Random")
    whole = records(named, "--reference", "Random")
    assert {row["name"] for row in part} == {
        "baseline",
        "FastV",
        "Random, seed=0",
        "Random, seed=1",
        "Random (2 seeds)",
    }
    by_key = {(row["name"], row["task"]): row["p"] for row in whole}
    assert all(row["p"] == by_key[row["name"], row["task"]] for row in part)


def test_a_named_baseline_is_called_by_its_name(tmp_path: Path) -> None:
    make_store(tmp_path, tasks=["shapes_vqa"], names={"baseline": "Full model"})
    text = run(tmp_path)
    assert "worse or better than Full model, p" in text and "Method minus Full model on" in text
    assert "Differences to Full model" in text and "- Full model: <code>baseline</code>" in text


def test_what_is_not_done_is_called_by_its_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, METHODS, tasks=TASKS, names=NAMES, count=20)
    for spec in store.index.cells:
        if spec.method.startswith("rand,k=2,seed=1") or (spec.method.startswith("fastv") and spec.task == TASKS[0]):
            (store.folder(spec) / "cell.json").unlink()
    text = run(tmp_path).replace("\\", "")
    assert "tiny / Random, seed=1 / all tasks: missing" in text and "tiny / FastV / shapes_pope: missing" in text


def test_comparisons_call_methods_by_the_names_of_the_new_results(named: Path, tmp_path: Path) -> None:
    make_store(tmp_path, [*METHODS, "vtw,k=9"], tasks=TASKS, names={"vtw,k=9": "VTW"})
    changes = changes_between(read_results(named), read_results(tmp_path))
    assert [change.method for change in changes.compared[::2]] == ["baseline", "VTW", "FastV", "Random (2 seeds)"]
    assert changes.removed == tuple(f"tiny / vtw,k=9,position=keep / {task}" for task in TASKS)
    text = run(named, "--compare", tmp_path, "--only", "method=VTW")  # of the old ones, the same method
    assert "| tiny | VTW | vqa |" in text and "k=9" not in text


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
def test_a_name_is_text(form: str, tmp_path: Path) -> None:
    name = "<b>V</b>|T_W & `x` $y$ [z](q)"
    make_store(tmp_path, ["baseline", "vtw,k=4"], tasks=["shapes_vqa"], names={"vtw,k=4": name})
    text = run(tmp_path, "--format", form)
    if form == "latex":
        assert r"<b>V</b>|T\_W \& `x` \$y\$ [z](q) &" in text or r"\$y\$ [z](q)" in text
        assert "T_W" not in text and " & `x`" not in text.replace(r"\&", "and")
    else:
        tables = (markdown_tables if form == "markdown" else html_tables)(text)  # fails on a tag that is not ours
        assert tables[0][2][0] == name
        assert "<b>" not in text


def test_a_picture_shows_a_name_that_begins_with_an_underscore(tmp_path: Path) -> None:
    make_store(tmp_path, ["baseline", "vtw,k=4"], tasks=["shapes_vqa"], names={"vtw,k=4": "_x", "baseline": "Full"})
    [table] = analyse(read_results(tmp_path))
    [plot] = model_plots(table, ())
    [axes] = plot.figure().axes
    assert {text.get_text().strip() for text in axes.texts} == {"Full", "_x"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"vtw,k=8": "VTW"}, "'vtw,k=8' is none of the methods. Methods: baseline; vtw,k=4,position=keep; fastv,k=2"),
        ({"fastv,k=2,r=0.6": "F"}, "is none of the methods; did you mean 'fastv,k=2,r=0.5,seed=0'?"),
        ({"vtw,kk=4": "VTW"}, "'vtw,kk=4': unknown parameter 'kk' of method 'vtw'; did you mean 'k'?"),
        (
            {"vtw,k=4": "A", "fastv": "A"},
            "'vtw,k=4' and 'fastv' are both named 'A': give each method a name of its own",
        ),
        ({"vtw,k=4": "A", "vtw, k=4": "B"}, "'vtw, k=4' is named twice, 'A' and 'B'"),
        ({"rand,k=2": "A", "rand,k=2,seed=1": "B"}, "'rand,k=2,seed=1' is named twice, 'A' and 'B'"),
        ({"vtw,k=4": "fastv,k=2"}, "'vtw,k=4' cannot be named 'fastv,k=2', which is another method"),
        ({"vtw,k=4": "baseline"}, "'vtw,k=4' cannot be named 'baseline', which is another method"),
        ({"vtw,k=4": ""}, "a name is one line"),
        ({"vtw,k=4": "a\nb"}, "a name is one line"),
        # As YAML reads {vtw,k=4: VTW}.
        ({"vtw": None, "k=4": "VTW"}, "'vtw' is named None, which is no text; between braces, a spec with commas"),
    ],
)
def test_names_that_do_not_tell_methods_apart_are_refused(names: dict[str, str], message: str) -> None:
    model = {"name": "m", "adapter": "llava_vtw", "pretrained": "shapes"}
    with pytest.raises(PlanError) as error:
        parse_plan({"models": [model], "methods": METHODS, "tasks": ["shapes_pope"], "names": names})
    assert "plan: names: " in str(error.value) and message in str(error.value)


def test_the_methods_of_a_model_can_be_named_and_every_seed_has_the_name() -> None:
    model = {"name": "m", "adapter": "llava_vtw", "pretrained": "shapes", "methods": ["vtw,k=3", "rand,k=2"]}
    values = {"models": [model], "tasks": ["shapes_pope"], "seeds": [3, 4]}
    plan = parse_plan({**values, "names": {"vtw,k=3": "VTW", "rand,k=2": "Random"}})
    assert [cell.key for cell in plan.cells()] == [cell.key for cell in parse_plan(values).cells()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vtw,k=4"], "write name=value, as in 'vtw,k=16'. Methods: baseline; vtw,k=4,position=keep;"),
        (["VTW"], "--name 'VTW' names no method. Write --name SPEC=NAME, as in --name 'vtw,k=16=VTW'."),
        (["fastv="], "--name 'fastv=' names no method"),
        (["fastv=A", "fastv=B"], "--name names 'fastv' twice, 'A' and 'B'"),
        (["fastv=VTW"], "are both named 'VTW'"),
    ],
)
def test_a_wrong_name_on_the_command_line_is_refused(words: list[str], message: str, named: Path) -> None:
    told = run(named, *(word for given in words for word in ("--name", given)), code=2)
    assert message in told and len(told.strip().splitlines()) == 1


def test_gates_of_one_file_name_in_two_folders_are_two_methods() -> None:
    specs = ["dyvte,gates=a/g.safetensors", "dyvte,gates=b/g.safetensors"]
    assert seed_groups(specs) == [(specs[0],), (specs[1],)]
