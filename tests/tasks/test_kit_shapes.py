"""The shapes test sets in VLMEvalKit against the lmms-eval tasks: documents, prompts, images, scores."""

import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

from lmms_eval.tasks import TaskManager
from vlmeval.dataset import DATASET_TYPE, build_dataset
from vlmeval.smp import dump

from vtw_eval.tasks.kit import register_kit_datasets

TASKS = Path(__file__).parents[2] / "tasks"
PAIRS = {
    "shapes_mme": "Shapes_MME",
    "shapes_pope": "Shapes_POPE",
    "shapes_ai2d": "Shapes_AI2D",
    "shapes_vqa": "Shapes_VQA",
    "shapes_caption": "Shapes_Caption",
}
COUNT = 240
"""Documents that are scored; even, for MME's pairs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder of the kit and a cache of test sets, both empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("kit")
        (base / "LMUData").mkdir()
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.setenv("LMUData", str(base / "LMUData"))
        register_kit_datasets()
        yield base


@pytest.fixture(scope="module")
def tasks(folder):
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)
    return {name: manager.load_task_or_group(name, task_type="chat")[name] for name in PAIRS}


@pytest.fixture(scope="module")
def datasets(folder):
    return {name: build_dataset(kit, model=["toy"], data=[kit]) for name, kit in PAIRS.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_documents_prompts_and_images_are_those_of_lmms_eval(tasks, datasets, name):
    docs, dataset, task = tasks[name].test_docs(), datasets[name], tasks[name]
    assert len(dataset) == len(docs)
    assert list(dataset.data["question"]) == docs["question"]
    assert [answer.lower() for answer in dataset.data["answer"]] == [
        str(task.doc_to_target(doc)).lower() for doc in task.test_docs_no_media()
    ]
    for i in (*range(6), len(docs) - 1):
        image, text = dataset.build_prompt(dataset.data.iloc[i])
        assert text == {"type": "text", "value": task.doc_to_text(docs[i])}
        (visual,) = task.doc_to_visual(docs[i])
        assert np.array_equal(np.asarray(Image.open(image["value"]).convert("RGB")), np.asarray(visual))


FORMS = {
    "shapes_mme": ("{}", " {}\n", "{}.", "zebra"),
    "shapes_pope": ("{}", " {}\n"),
    "shapes_ai2d": ("{}", "{}.", "zebra"),
}
"""How answers are written. What the harnesses read differently is in a test of its own."""


def answers(task, name):
    """Right and wrong answers in several forms, the same for the same document."""
    rng = random.Random(7)
    targets = [str(task.doc_to_target(doc)) for doc in task.test_docs_no_media()][:COUNT]
    forms = FORMS.get(name, ("{}", " {}\n", "{}.", "zebra", ""))
    return [rng.choice(forms).format(target if rng.random() < 0.7 else rng.choice(targets)) for target in targets]


def lmms_scores(task, told):
    """The scores that lmms-eval gives."""
    docs = task.test_docs_no_media()
    instances = [
        SimpleNamespace(doc=doc, resps=[answer], filtered_resps={}) for doc, answer in zip(docs, told, strict=False)
    ]
    collected = defaultdict(list)
    for ensemble in task._filters:
        ensemble.apply(instances, docs)
        for instance in instances:
            for metric, value in task.process_results(instance.doc, [instance.filtered_resps[ensemble.name]]).items():
                collected[metric].append(value)
    return {metric: task.aggregation()[metric](values) for metric, values in collected.items()}


def kit_scores(dataset, told, file, **judge):
    """The scores that VLMEvalKit gives, in lmms-eval's names and scales."""
    rows = dataset.data.iloc[:COUNT].drop(columns="image").assign(prediction=told)
    dump(rows, str(file))
    found = dataset.evaluate(str(file), nproc=1, **judge)
    if dataset.dataset_name == "Shapes_MME":
        return {"mme_perception_score": float(found["perception"].iloc[0])}
    if dataset.dataset_name == "Shapes_POPE":
        whole = found[found["split"] == "Overall"].iloc[0]
        names = {
            "Overall": "pope_f1_score",
            "acc": "pope_accuracy",
            "precision": "pope_precision",
            "recall": "pope_recall",
        }
        return {ours: whole[theirs] for theirs, ours in names.items()}
    if dataset.dataset_name == "Shapes_AI2D":
        return {"exact_match": float(found["Overall"].iloc[0])}
    assert dataset.report_primary_metric(found) == {
        name: found[name] for name in ("Overall", "object_f1") if name in found
    }
    return {
        "exact_match": found.pop("Overall"),
        **{name if "_" in name else f"{name}_exact_match": value for name, value in found.items()},
    }


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_answers_get_the_same_scores(tasks, datasets, name, tmp_path):
    told = answers(tasks[name], name)
    kit = kit_scores(datasets[name], told, tmp_path / f"toy_{PAIRS[name]}.xlsx", model="gpt-4o-mini")
    lmms = lmms_scores(tasks[name], told)
    assert kit == {metric: pytest.approx(lmms[metric]) for metric in kit}
    top = 600 if name == "shapes_mme" else 1
    assert 0.2 * top < kit[next(iter(kit))] < 0.9 * top  # the answers were neither all right nor all wrong


def test_where_the_harnesses_read_answers_differently(tasks, datasets, tmp_path):
    """As told in the documentation: an answer that is neither yes nor no, and an option's text for its letter."""
    targets = tasks["shapes_pope"].test_docs()["answer"]
    told = [target if i % 4 else "zebra" for i, target in enumerate(targets)][:COUNT]
    kit = kit_scores(datasets["shapes_pope"], told, tmp_path / "toy_Shapes_POPE.xlsx")
    lmms = lmms_scores(tasks["shapes_pope"], told)
    assert kit["pope_accuracy"] == pytest.approx(lmms["pope_accuracy"])
    missed = sum(target == "yes" and answer == "zebra" for target, answer in zip(targets, told, strict=False))
    assert lmms["pope_recall"] == 1  # a senseless answer is no miss there
    assert kit["pope_recall"] == pytest.approx(1 - missed / (COUNT / 2))
    docs = tasks["shapes_ai2d"].test_docs()
    told = [docs[i]["options"][int(docs[i]["answer"])] for i in range(COUNT)]
    assert lmms_scores(tasks["shapes_ai2d"], told) == {"exact_match": 0}
    assert kit_scores(datasets["shapes_ai2d"], told, tmp_path / "toy_Shapes_AI2D.xlsx") == {"exact_match": 1}


def test_types_are_those_of_the_imitated_benchmarks(datasets):
    assert [DATASET_TYPE(kit) for kit in PAIRS.values()] == ["Y/N", "Y/N", "MCQ", "VQA", "VQA"]
    assert all(dataset.force_use_dataset_prompt for dataset in datasets.values())


def test_a_damaged_file_is_named(datasets, folder):
    (file,) = (folder / "LMUData").glob("Shapes_AI2D-*.tsv")
    text = file.read_text()
    try:
        file.write_text(text[:1000].replace("question", "questing"))
        with pytest.raises(ValueError, match=r"Shapes_AI2D-\w+\.tsv is damaged .*; delete it, and it is made again"):
            build_dataset("Shapes_AI2D")
        file.unlink()
        assert len(build_dataset("Shapes_AI2D")) == 1000
    finally:
        file.write_text(text)
    assert not list((folder / "LMUData").glob(".*"))
