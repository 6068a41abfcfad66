"""Held-out data: deterministic, balanced, cached safely."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from vtw_eval.shapes import data
from vtw_eval.shapes.questions import TYPES
from vtw_eval.shapes.scenes import is_test_scene


@pytest.mark.parametrize("type", TYPES)
def test_held_out_samples_are_fixed_and_on_the_test_side(type):
    few, more = data.held_out(type, 5), data.held_out(type, 8)
    assert [sample.question for sample in few] == [sample.question for sample in more[:5]]
    assert all((a.image == b.image).all() for a, b in zip(few, more, strict=False))
    assert all(is_test_scene(sample.scene) for sample in more)
    assert {sample.question.type for sample in more} == {type}


def test_mme_pairs():
    rows = data.mme_rows()
    assert len(rows) == 1200
    pairs = Counter((row["category"], row["question_id"]) for row in rows)
    assert set(pairs.values()) == {2}
    assert Counter(row["category"] for row in rows) == {"existence": 400, "count": 400, "color": 400}
    for yes, no in zip(rows[::2], rows[1::2], strict=True):
        assert (yes["answer"], no["answer"]) == ("Yes", "No")
        assert yes["question_id"] == no["question_id"]


def test_pope_settings():
    rows = data.pope_rows()
    assert len(rows) == 1200
    assert Counter((row["category"], row["answer"]) for row in rows) == {
        (category, answer): 200 for category in ("random", "popular", "adversarial") for answer in ("yes", "no")
    }
    popular = {row["question"] for row in rows if row["category"] == "popular" and row["answer"] == "no"}
    assert len(popular) <= 12
    assert len({row["question_id"] for row in rows}) == 1200


@pytest.mark.parametrize("name", ["ai2d", "vqa", "caption"])
def test_other_sets(name):
    rows = data.TEST_SETS[name]()
    assert len(rows) >= 1000
    if name == "ai2d":
        assert all(len(row["options"]) == 4 and row["answer"] in "0123" for row in rows)
    if name == "vqa":
        assert Counter(row["category"] for row in rows) == {"color": 400, "shape": 400, "count": 400}


@pytest.fixture
def small(monkeypatch):
    """A test set that is quick to make."""
    rows = data.caption_rows.__globals__["held_out"]
    monkeypatch.setattr(data, "held_out", lambda type, count: rows(type, 4))


def test_a_test_set_is_built_once_and_reads_back(tmp_path, small):
    path = data.dataset_path("ai2d", tmp_path)
    stamp = path.stat().st_mtime_ns
    assert data.dataset_path("ai2d", tmp_path) == path
    assert path.stat().st_mtime_ns == stamp
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    table = datasets.load_from_disk(str(path))["test"]
    for row, sample in zip(table, data.held_out("choice", 4), strict=True):
        assert row["question"] == sample.question.text
        assert tuple(row["options"]) == sample.question.options
        assert (datasets.Image().decode_example(datasets.Image().encode_example(row["image"])).size) == (64, 64)


def test_changed_code_makes_a_new_set(tmp_path, small, monkeypatch):
    first = data.dataset_path("caption", tmp_path)
    monkeypatch.setattr(data, "fingerprint", lambda: "changed")
    assert data.dataset_path("caption", tmp_path) != first


def test_a_failure_leaves_nothing_behind(tmp_path, small, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", fail)
    with pytest.raises(OSError, match="disk full"):
        data.dataset_path("caption", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_processes_agree(tmp_path):
    code = "from vtw_eval.shapes.data import dataset_path; print(dataset_path('pope'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

    def start(_):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(start, range(3)))
    assert len(paths) == 1
    (path,) = map(Path, paths)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no leftovers of the slower ones
    assert len(datasets.load_from_disk(str(path))["test"]) == 1200


def test_unknown_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="known: mme, pope, ai2d, vqa, caption"):
        data.dataset_path("mmbench", tmp_path)
