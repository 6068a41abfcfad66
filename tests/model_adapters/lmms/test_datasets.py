"""What a user reads when a dataset of a stock task is missing or damaged."""

from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import lmms_eval.tasks
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager
from tenacity import wait_none

from tests.support.harness_data import write_table
from vtw_eval.model_adapters.errors import DatasetError
from vtw_eval.model_adapters.lmms.datasets import explain_dataset_errors, place_of


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load POPE's task on a local dataset of a name that no other test uses: datasets keeps copies by name alone."""
    monkeypatch.setattr(ConfigurableTask.download.retry, "wait", wait_none())
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / tmp_path.name
    rows = [{"question_id": str(i), "question": "?", "answer": "yes"} for i in range(4)]
    write_table(folder, "test", rows, [])
    stock = Path(lmms_eval.tasks.__path__[0]) / "pope" / "pope.yaml"
    (tmp_path / "local.yaml").write_text(f"include: {stock}\ntask: local\ndataset_path: {folder}\n")
    manager = TaskManager("ERROR", include_path=str(tmp_path), include_defaults=False)
    # loading goes on to read an image, which these documents lack
    monkeypatch.setattr(ConfigurableTask, "doc_to_visual", lambda self, doc: [])

    def task():
        with explain_dataset_errors():
            return manager.load_task_or_group("local", task_type="chat")["local"]

    return folder, task


def test_a_good_dataset_loads(load):
    assert len(load[1]().test_docs()) == 4


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.unlink, "FileNotFoundError"), (lambda file: file.write_bytes(file.read_bytes()[:300]), "magic bytes")],
    ids=["missing", "damaged"],
)
def test_a_missing_or_damaged_file_is_told(load, harm, reason):
    folder, task = load
    harm(folder / "data" / "test.parquet")
    with pytest.raises(DatasetError, match=reason) as failure:
        task()
    text = str(failure.value)
    assert text.startswith(f"task local: the dataset {folder} cannot be loaded. Its files belong in {folder}, ")
    assert len(text) < 900


def test_the_patch_ends():
    before = ConfigurableTask.download
    with explain_dataset_errors():
        assert ConfigurableTask.download is not before
    assert ConfigurableTask.download is before


def test_the_place_of_a_dataset_of_the_hub():
    assert place_of("lmms-lab-encoder/POPE").endswith("/datasets--lmms-lab-encoder--POPE")
