"""The table of benchmarks against what both harnesses really have, and the groups against the table."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

from lmms_eval.tasks import TaskManager

from vtw_eval.cli import app
from vtw_eval.model_adapters.lmms.names import expand_tasks
from vtw_eval.model_adapters.vlmeval.names import expand_datasets
from vtw_eval.papers.benchmarks import BENCHMARKS, TABLES, columns, lmms_tasks
from vtw_eval.tasks.kit import register_kit_datasets

TASKS = Path(__file__).parents[2] / "tasks"
GROUPS = [table for table in TABLES if table != "vtw-table7"]


@pytest.fixture(scope="module")
def manager():
    return TaskManager("ERROR", include_path=str(TASKS))


@pytest.mark.parametrize("name", lmms_tasks(BENCHMARKS))
def test_lmms_eval_has_the_task_and_its_metrics(manager, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for a judge that is not asked")
    assert name in manager.all_subtasks
    if name == "tgif_frameqa":  # its file looks for the prepared data: tests/tasks/test_tgif.py
        return
    found = {metric["metric"] for metric in manager._get_config(name)["metric_list"]}
    wanted = {metric for entry in BENCHMARKS if entry.lmms and entry.lmms.name == name for metric in entry.lmms.metrics}
    assert wanted <= found


def test_vlmevalkit_has_the_datasets():
    from vlmeval import dataset as kit
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    register_kit_datasets()
    before = len(kit.DATASET_CLASSES), len(kit.SUPPORTED_DATASETS)
    register_kit_datasets()
    assert before == (len(kit.DATASET_CLASSES), len(kit.SUPPORTED_DATASETS))
    known = {name for cls in kit.DATASET_CLASSES for name in cls.supported_datasets()} | set(supported_video_datasets)
    assert {entry.kit.name for entry in BENCHMARKS if entry.kit} <= known
    assert not any("vqav2" in name.lower() or "reasonseg" in name.lower() for name in known)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_holds_the_tasks_of_its_table(manager, group):
    assert group in manager.all_groups
    assert sorted(manager._get_config(group)["task"]) == sorted(lmms_tasks(columns(group)))


@pytest.mark.parametrize("group", GROUPS)
def test_the_name_that_a_group_had_at_first_still_names_it(manager, group):
    old = group.replace("-", "_")
    assert old in manager.all_groups and manager._get_config(old)["task"] == [group]
    assert expand_tasks([old]) == expand_tasks([group])
    assert expand_datasets([old]) == expand_datasets([group])
    assert columns(old) == columns(group)


def test_every_table_has_benchmarks_and_every_benchmark_a_table():
    assert {table for entry in BENCHMARKS for table in entry.tables} == set(TABLES)
    titles = [entry.title for entry in columns("vtw-table2")]
    assert titles == ["AI2D", "SQA_Img", "MMMU_Val", "MMB_EN", "POPE", "MME"]  # the columns of the printed table
    assert all(entry.lmms or entry.note for entry in BENCHMARKS)


def test_the_judge_is_named_where_one_is_needed():
    (judged,) = (entry for entry in BENCHMARKS if entry.lmms and entry.lmms.judge)
    assert judged.title == "MM-Vet"


def test_the_command_prints_the_table():
    run = CliRunner()
    rows = json.loads(run.invoke(app, ["tasks", "--json", "--table", "vtw-table3"]).stdout)
    assert [row["lmms"]["name"] for row in rows] == ["tgif_frameqa", "videomme"]
    text = run.invoke(app, ["tasks"]).stdout
    assert all(entry.title in text for entry in BENCHMARKS)
    lines = [line for line in run.invoke(app, ["tasks", "--markdown"]).stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(BENCHMARKS)
    assert {line.replace("\\|", "").count("|") for line in lines} == {8}


def test_the_command_refuses_what_it_does_not_know():
    run = CliRunner()
    unknown = run.invoke(app, ["tasks", "--table", "table2"])
    assert unknown.exit_code == 2
    assert "unknown table 'table2'; did you mean 'vtw-table2'? Known: vtw-table2, " in unknown.stderr
    assert run.invoke(app, ["tasks", "--json", "--markdown"]).exit_code == 2
