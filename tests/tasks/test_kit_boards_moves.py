"""Boards and moves in VLMEvalKit against the lmms-eval tasks: documents, prompts, media, scores."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

from lmms_eval.tasks import TaskManager
from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE, build_dataset
from vlmeval.smp import dump

from tests.support.few_scenes import few_scenes
from tests.tasks.test_kit_shapes import lmms_scores
from vtw_eval.models.video import read_clip, uniform
from vtw_eval.report.columns import COLUMNS
from vtw_eval.tasks.kit import register_kit_datasets

TASKS = Path(__file__).parents[2] / "tasks"
PAIRS = {
    "boards_mme": "Boards_MME",
    "boards_pope": "Boards_POPE",
    "boards_ai2d": "Boards_AI2D",
    "boards_vqa": "Boards_VQA",
    "boards_gqa": "Boards_GQA",
    "boards_caption": "Boards_Caption",
    "moves_frameqa": "Moves_FrameQA",
    "moves_count": "Moves_Count",
    "moves_action": "Moves_Action",
    "moves_order": "Moves_Order",
    "moves_choice": "Moves_Choice",
}
TYPES = ["Y/N", "Y/N", "MCQ", "VQA", "VQA", "VQA", *["Video-VQA"] * 4, "Video-MCQ"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A data folder of the kit and a cache of test sets of few scenes, both empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        few_scenes(patch, tmp_path_factory.mktemp("kit"), 12)
        yield


@pytest.fixture(scope="module")
def tasks(folder):
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)
    return {name: manager.load_task_or_group(name, task_type="chat")[name] for name in PAIRS}


@pytest.fixture(scope="module")
def datasets(folder):
    register_kit_datasets()
    return {name: build_dataset(kit) for name, kit in PAIRS.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_documents_prompts_and_media_are_those_of_lmms_eval(tasks, datasets, name):
    task, dataset = tasks[name], datasets[name]
    docs = task.test_docs()
    assert len(dataset) == len(docs) >= 12
    targets = [str(task.doc_to_target(doc)) for doc in docs]
    assert [answer.lower() for answer in dataset.data["answer"]] == [target.lower() for target in targets]
    if "category" in docs.column_names:
        assert list(dataset.data["category"]) == list(docs["category"])
    for i, doc in enumerate(docs):
        row = dataset.data.iloc[i]
        visual = task.doc_to_visual(doc)[0]
        if name.startswith("boards"):
            image, text = dataset.build_prompt(row)
            assert np.array_equal(np.asarray(Image.open(image["value"]).convert("RGB")), np.asarray(visual))
        else:
            video, text = dataset.build_prompt(row, video_llm=True)
            assert video == {"type": "video", "value": visual}
        assert text == {"type": "text", "value": task.doc_to_text(doc)}


def test_models_without_videos_are_shown_the_frames(datasets):
    dataset = datasets["moves_order"]
    row = dataset.data.iloc[5]
    video, _ = dataset.build_prompt(row, video_llm=True)
    *images, text = dataset.build_prompt(5, video_llm=False)
    assert text == dataset.build_prompt(row, video_llm=True)[1]
    shown = np.stack([np.asarray(Image.open(image["value"])) for image in images])
    assert np.array_equal(shown, read_clip(video["value"], uniform(8)).frames)


def test_tables_show_the_same_columns():
    for theirs, ours in PAIRS.items():
        assert [column.title for column in COLUMNS[ours]] == [column.title for column in COLUMNS[theirs]]


def test_types_are_those_of_the_imitated_benchmarks(datasets):
    assert [DATASET_TYPE(kit) for kit in PAIRS.values()] == TYPES
    assert [DATASET_MODALITY(kit) for kit in PAIRS.values()] == ["IMAGE"] * 6 + ["VIDEO"] * 5
    assert all(dataset.force_use_dataset_prompt for dataset in datasets.values())


def kit_scores(dataset, told, file):
    """The scores that VLMEvalKit gives, in lmms-eval's names."""
    dump(dataset.data.drop(columns="image", errors="ignore").assign(prediction=told), str(file))
    found = dataset.evaluate(str(file), nproc=1)
    if dataset.dataset_name == "Boards_MME":
        return {"mme_perception_score": float(found["perception"].iloc[0])}
    if dataset.dataset_name == "Boards_POPE":
        whole = found[found["split"] == "Overall"].iloc[0]
        return {"pope_f1_score": whole["Overall"], "pope_accuracy": whole["acc"]}
    if dataset.dataset_name == "Boards_AI2D":
        return {"exact_match": float(found["Overall"].iloc[0])}
    assert dataset.report_primary_metric(found)["Overall"] == found["Overall"]
    return {
        "exact_match": found.pop("Overall"),
        **{name if "_" in name else f"{name}_exact_match": value for name, value in found.items()},
    }


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_answers_get_the_same_scores(tasks, datasets, name, tmp_path):
    rng = random.Random(3)
    targets = [str(tasks[name].doc_to_target(doc)) for doc in tasks[name].test_docs_no_media()]
    forms = ("{}", " {}\n") if name == "boards_pope" else ("{}", "{}.")  # lmms-eval's POPE takes "yes." for no answer
    told = [rng.choice(forms).format(t if rng.random() < 0.7 else rng.choice(targets)) for t in targets]
    kit = kit_scores(datasets[name], told, tmp_path / f"toy_{PAIRS[name]}.xlsx")
    lmms = lmms_scores(tasks[name], told)
    assert kit == {metric: pytest.approx(lmms[metric]) for metric in kit}
    top = 1000 if name == "boards_mme" else 1
    assert 0.2 * top < kit[next(iter(kit))] < top  # the answers were neither all right nor all wrong


def test_an_option_is_read_in_a_sentence_and_by_its_text(datasets):
    dataset = datasets["moves_choice"]
    row = dataset.data.iloc[0]
    wrong = next(letter for letter in "ABCD" if letter != row["answer"])
    for told, score in (
        (f"The answer is {row['answer']}.", 1),
        (f"It is {row[row['answer']]}", 1),
        (f"The answer is {wrong}.", 0),
        ("zebra", 0),
        ("", 0),
    ):
        assert dataset.scores(told, row) == {"Overall": score}
