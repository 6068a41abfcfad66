"""Held-out boards: deterministic, balanced, several questions about an image, and as lmms-eval loads them."""

from collections import Counter
from pathlib import Path

import datasets
import pytest

from vtw_eval.files import cache_home
from vtw_eval.shapes.boards import data
from vtw_eval.shapes.boards.processor import build_tokenizer
from vtw_eval.shapes.boards.questions import TYPES
from vtw_eval.shapes.boards.scenes import is_test_scene
from vtw_eval.shapes.questions import LETTER_PROMPT, SHORT_PROMPT

TASKS = Path(__file__).parents[3] / "tasks"
ANSWERED = {"mme": 2, "pope": 18, "ai2d": 4, "vqa": 6, "gqa": 6, "caption": 1}
"""Questions about an image, by test set."""


@pytest.fixture(scope="module")
def rows():
    """Each test set, from its images on a tenth of their number."""
    with pytest.MonkeyPatch.context() as patch:
        every = data.generators
        patch.setattr(data, "generators", lambda seed, name, count: every(seed, name, max(4, count // 10)))
        yield {name: make() for name, make in data.TEST_SETS.items()}


@pytest.mark.parametrize("type", TYPES)
def test_held_out_samples_are_fixed_and_on_the_test_side(type):
    few, more = data.held_out(type, 2), data.held_out(type, 4)
    assert [sample.question for sample in few] == [sample.question for sample in more[:2]]
    assert all((a.image == b.image).all() for a, b in zip(few, more, strict=False))
    assert all(is_test_scene(sample.scene) for sample in more)
    assert {sample.question.type for sample in more} == {type}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_image_has_as_many_questions_as_it_should_no_two_alike(rows, name):
    per_image = Counter(row["image_id"] for row in rows[name])
    assert set(per_image.values()) == {ANSWERED[name]}
    images = {}
    for row in rows[name]:
        images.setdefault(row["image_id"], set()).add(row["image"]["bytes"])
    assert all(len(found) == 1 for found in images.values())
    if name != "pope":  # which asks the same for Yes in each of its settings
        assert len({(row["image_id"], row["question"]) for row in rows[name]}) == len(rows[name])


def test_mme_pairs(rows):
    for yes, no in zip(rows["mme"][::2], rows["mme"][1::2], strict=True):
        assert (yes["answer"], no["answer"]) == ("Yes", "No")
        assert yes["question_id"] == no["question_id"] == f"{yes['category']}/{yes['question_id'].split('/')[1]}"
    assert set(Counter(row["category"] for row in rows["mme"]).values()) == {24}
    assert set(Counter(row["category"] for row in rows["mme"][:20]).values()) == {4}


def test_pope_settings(rows):
    counts = Counter((row["category"], row["answer"]) for row in rows["pope"])
    assert set(counts.values()) == {len(rows["pope"]) // 6}
    assert len({row["question_id"] for row in rows["pope"]}) == len(rows["pope"])
    for image in {row["image_id"] for row in rows["pope"]}:
        there = [
            tuple(row["question"] for row in rows["pope"] if row["image_id"] == image and row["category"] == category)
            for category in ("random", "popular", "adversarial")
        ]
        assert len({asked[:3] for asked in there}) == 1
        assert all(len(set(asked)) == 6 for asked in there)


def test_types_are_asked_equally_often(rows):
    for name, types in (("vqa", 6), ("gqa", 3)):
        counts = Counter(row["category"] for row in rows[name])
        assert len(counts) == types
        assert len(set(counts.values())) == 1


@pytest.fixture
def small(monkeypatch, rows, tmp_path):
    """Test sets that are quick to make, in a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "TEST_SETS", {name: lambda name=name: rows[name] for name in rows})
    monkeypatch.setattr("vtw_eval.tasks.boards.data.TEST_SETS", data.TEST_SETS)
    return rows


@pytest.mark.parametrize("name", ANSWERED)
def test_lmms_eval_loads_a_task(small, name):
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert f"boards_{name}" in manager.all_subtasks
    task = manager.load_task_or_group(f"boards_{name}", task_type="chat")[f"boards_{name}"]
    docs = task.test_docs()
    assert list(docs["question"]) == [row["question"] for row in small[name]]
    suffix = {"ai2d": LETTER_PROMPT, "caption": ""}.get(name, SHORT_PROMPT)
    tokenizer = build_tokenizer()
    for doc in [docs[i] for i in range(4)]:
        text = task.doc_to_text(doc)
        assert text.startswith(doc["question"])
        assert text.endswith(suffix)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        (visual,) = task.doc_to_visual(doc)
        assert visual.size == (128, 128)
    targets = [str(task.doc_to_target(doc)) for doc in task.test_docs_no_media()]
    assert max(map(len, tokenizer(targets)["input_ids"])) < task.config.generation_kwargs["max_new_tokens"]
    assert [path.name for path in (cache_home() / "boards").iterdir()] == [data.dataset_path(name).name]


def test_a_test_set_is_built_once_and_reads_back(small):
    path = data.dataset_path("ai2d")
    stamp = path.stat().st_mtime_ns
    assert data.dataset_path("ai2d") == path
    assert path.stat().st_mtime_ns == stamp
    table = datasets.load_from_disk(str(path))["test"]
    assert [row["options"] for row in table.select(range(4))] == [row["options"] for row in small["ai2d"][:4]]


def test_unknown_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="known: mme, pope, ai2d, vqa, gqa, caption"):
        data.dataset_path("mmbench", tmp_path)
