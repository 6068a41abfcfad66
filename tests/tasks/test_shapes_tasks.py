"""The shapes tasks as lmms-eval loads them: prompts, answers, scores."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.tasks import TaskManager
from PIL import Image

from vtw_eval.files import cache_home
from vtw_eval.shapes import data
from vtw_eval.shapes.processor import build_tokenizer
from vtw_eval.shapes.questions import LETTER_PROMPT, SHORT_PROMPT, TYPES, prompt

TASKS = Path(__file__).parents[2] / "tasks"
NAMES = ("shapes_mme", "shapes_pope", "shapes_ai2d", "shapes_vqa", "shapes_caption")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A fresh cache of test sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield cache_home() / "shapes"


@pytest.fixture(scope="module")
def manager(cache):
    return TaskManager(include_path=str(TASKS), include_defaults=False)


@pytest.fixture(scope="module")
def tasks(manager):
    return {name: manager.load_task_or_group(name, task_type="chat")[name] for name in NAMES}


def test_listing_tasks_builds_nothing(manager, cache):
    assert set(manager.all_subtasks) >= set(NAMES)
    assert "shapes" in manager.all_groups
    assert not cache.exists()


@pytest.mark.parametrize("protocol", ["simple", "chat"])
def test_the_group_holds_all_tasks(manager, protocol):
    ((_, members),) = manager.load_task_or_group("shapes", task_type=protocol).items()
    assert set(members) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_task_size_prompts_and_media(tasks, manager, name):
    task = tasks[name]
    docs = task.test_docs()
    assert len(docs) >= 1000
    unknown = build_tokenizer().unk_token_id
    suffix = {"shapes_ai2d": LETTER_PROMPT, "shapes_caption": ""}.get(name, SHORT_PROMPT)
    for index in range(0, 12):
        doc = docs[index]
        text = task.doc_to_text(doc)
        assert text.startswith(doc["question"])
        assert text.endswith(suffix)
        assert unknown not in build_tokenizer()(text)["input_ids"]
        (visual,) = task.doc_to_visual(doc)
        assert isinstance(visual, Image.Image)
        assert visual.size == (64, 64)
        (message,) = task.doc_to_messages(doc)
        assert [part["type"] for part in message["content"]] == ["image", "text"]
        assert message["content"][1]["text"] == text
    targets = [str(task.doc_to_target(doc)) for doc in task.test_docs_no_media()]
    longest = max(len(ids) for ids in build_tokenizer()(targets)["input_ids"])
    assert longest < task.config.generation_kwargs["max_new_tokens"]
    assert task.config.generation_kwargs["do_sample"] is False
    simple = manager.load_task_or_group(name, task_type="simple")[name]
    assert simple.doc_to_text(docs[0]) == task.doc_to_text(docs[0])


@pytest.mark.parametrize(("name", "type"), [("shapes_ai2d", "choice"), ("shapes_caption", "caption")])
def test_prompts_are_those_of_training(tasks, name, type):
    assert type in TYPES
    for doc, sample in zip(tasks[name].test_docs(), data.held_out(type, 20), strict=False):
        assert tasks[name].doc_to_text(doc) == prompt(sample.question)
        assert tasks[name].doc_to_target(doc) == sample.question.answer


def outcome(task, answer_of):
    """Scores of a task whose documents are answered by a function of (index, document, target)."""
    instances = [
        SimpleNamespace(doc=doc, resps=[answer_of(i, doc, str(task.doc_to_target(doc)))], filtered_resps={})
        for i, doc in enumerate(task.test_docs_no_media())
    ]
    collected = defaultdict(list)
    for ensemble in task._filters:
        ensemble.apply(instances, task.test_docs_no_media())
        for instance in instances:
            results = task.process_results(instance.doc, [instance.filtered_resps[ensemble.name]])
            for metric, value in results.items():
                collected[metric].append(value)
    return {metric: task.aggregation()[metric](values) for metric, values in collected.items()}


def flip(answer):
    return {"yes": "no", "no": "yes"}[answer.lower()]


def test_mme_score(tasks):
    right = outcome(tasks["shapes_mme"], lambda i, doc, target: target)
    assert right == {"mme_perception_score": pytest.approx(600)}
    # Every question about a number wrong, and of every existence pair the second one: 0, 50 + 0, 200.
    wrong = {"count": lambda i: True, "existence": lambda i: i % 2 == 1, "color": lambda i: False}
    mixed = outcome(
        tasks["shapes_mme"], lambda i, doc, target: flip(target) if wrong[doc["category"]](i) else f"{target}."
    )
    assert mixed == {"mme_perception_score": pytest.approx(250)}


def test_pope_score(tasks):
    answer = [("yes", "no")[i % 3 == 0] for i in range(1200)]
    scores = outcome(tasks["shapes_pope"], lambda i, doc, target: answer[i].capitalize())
    truth = tasks["shapes_pope"].test_docs()["answer"]
    pairs = list(zip(answer, truth, strict=True))
    hits = pairs.count(("yes", "yes"))
    precision, recall = hits / answer.count("yes"), hits / 600
    assert scores == {
        "pope_accuracy": pytest.approx(sum(a == t for a, t in pairs) / 1200),
        "pope_precision": pytest.approx(precision),
        "pope_recall": pytest.approx(recall),
        "pope_f1_score": pytest.approx(2 * precision * recall / (precision + recall)),
        "pope_yes_ratio": pytest.approx(0.5),
    }


@pytest.mark.parametrize("form", ["{}", "{}.", "{}. red", " {} "])
def test_choice_score(tasks, form):
    def answer(i, doc, target):
        return form.format(target if i % 4 else "ABCD"[("ABCD".index(target) + 1) % 4])

    assert outcome(tasks["shapes_ai2d"], answer) == {"exact_match": pytest.approx(0.75)}


def test_vqa_score(tasks):
    scores = outcome(
        tasks["shapes_vqa"], lambda i, doc, target: "nothing" if doc["category"] == "shape" else target.upper()
    )
    assert scores == {
        "exact_match": pytest.approx(2 / 3),
        "color_exact_match": 1,
        "shape_exact_match": 0,
        "count_exact_match": 1,
    }


def naive_f1(told, there):
    told, there = told.split(" and "), there.split(" and ")
    left, hits = list(there), 0
    for thing in told:
        if thing in left:
            left.remove(thing)
            hits += 1
    return 2 * hits / (len(told) + len(there))


def test_caption_score(tasks):
    assert outcome(tasks["shapes_caption"], lambda i, doc, target: target) == {"exact_match": 1, "object_f1": 1}
    targets = tasks["shapes_caption"].test_docs()["answer"]
    shifted = targets[1:] + targets[:1]
    scores = outcome(tasks["shapes_caption"], lambda i, doc, target: shifted[i])
    pairs = list(zip(shifted, targets, strict=True))
    assert scores["exact_match"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert scores["object_f1"] == pytest.approx(sum(naive_f1(a, b) for a, b in pairs) / len(pairs))
    assert outcome(tasks["shapes_caption"], lambda i, doc, target: "") == {"exact_match": 0, "object_f1": 0}
