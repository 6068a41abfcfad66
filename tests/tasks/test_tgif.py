"""TGIF-QA: preparation of both layouts, its failures, the task in lmms-eval and the dataset in VLMEvalKit."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

import av
from lmms_eval.tasks import TaskManager
from vlmeval.dataset import build_dataset
from vlmeval.inference_video import infer_data_job_video
from vlmeval.smp.status_report import _resolve_dataset_reporter

from tests.support.harness_data import TGIF_ANSWERS, make_tgif
from tests.support.videos import ROTATIONS, smooth, turn, write_clip
from vtw_eval.cli import app
from vtw_eval.tasks.kit import register_kit_datasets
from vtw_eval.tasks.tgif.data import DOCUMENTS, VIDEOS, dataset_folder
from vtw_eval.tasks.tgif.prepare import prepare, write_mp4
from vtw_eval.tasks.tgif.scoring import contains_match, exact_match

TASKS = Path(__file__).parents[2] / "tasks"
SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Caches of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "LMUData").mkdir()
    monkeypatch.setenv("LMUData", str(tmp_path / "LMUData"))
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def source(tmp_path):
    """The layout of Video-LLaVA: three videos, the middle one a GIF; two questions to a video."""
    make_tgif(tmp_path, 6)
    return tmp_path / "acme" / "TGIF-QA"


def documents():
    return [json.loads(line) for line in (dataset_folder() / DOCUMENTS).read_text().splitlines()]


def frames(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "contained"),
    [
        ("cat", "cat", 1, 1),
        ("A Cat.", "cat", 1, 1),
        ("It is a cat.", "cat", 0, 1),
        ("cats", "cat", 0, 0),
        ("concatenate", "cat", 0, 0),
        ("2", "two", 1, 1),
        ("Two men", "two", 0, 1),
        ("twenty one", "two", 0, 0),
        ("the t-shirt", "t shirt", 1, 1),
        ("the man's hat", "mans hat", 1, 1),
        ("hat of the ice cream man", "ice cream", 0, 1),
        ("cream ice", "ice cream", 0, 0),
        ("", "cat", 0, 0),
        ("the", "cat", 0, 0),
    ],
)
def test_scores(prediction, answer, exact, contained):
    assert (exact_match(prediction, answer), contains_match(prediction, answer)) == (exact, contained)


def test_both_layouts_give_the_same_documents(source, tmp_path):
    made = prepare(str(source))
    assert (made.questions, made.videos, made.converted, made.left_out) == (6, 3, 1, 0)
    first = documents()
    make_tgif(tmp_path / "official", 6, layout="official")
    made = prepare(str(tmp_path / "official"))
    assert (made.questions, made.videos, made.converted, made.left_out) == (6, 3, 3, 0)
    assert documents() == first
    assert [row["answer"] for row in first] == [TGIF_ANSWERS[i % 4] for i in range(6)]
    assert [row["video"] for row in first] == [f"tumblr_{i // 2}" for i in range(6)]
    assert not list(dataset_folder().parent.glob(".tgif-*"))


def test_a_gif_becomes_a_video_of_the_same_frames(source):
    prepare(str(source))
    with Image.open(source / "gif" / "tumblr_1.gif") as gif:
        pictures = []
        times = []
        for i in range(gif.n_frames):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB"), dtype=int))
            times.append(gif.info["duration"])
    path = dataset_folder() / VIDEOS / "tumblr_1.mp4"
    found = frames(path)
    assert found.shape == np.stack(pictures).shape == (9, 56, 96, 3)
    assert np.abs(found - pictures).max() <= 3  # RGB to YUV and back, each rounded
    assert np.abs(found[0] - found[4]).max() > 100  # the disc moved
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 9
        shown = [frame.time for frame in container.decode(video=0)]
    assert np.diff(shown) == pytest.approx([time / 1000 for time in times[:-1]], abs=1e-3)


def test_an_mp4_is_not_copied(source):
    prepare(str(source))
    assert (dataset_folder() / VIDEOS / "tumblr_0.mp4").readlink() == source / "mp4" / "tumblr_0.mp4"


def test_a_broken_mp4_is_replaced_by_the_gif(source, tmp_path):
    make_tgif(tmp_path / "official", 6, layout="official")
    whole = source / "mp4" / "tumblr_0.mp4"
    whole.write_bytes(whole.read_bytes()[:200])
    (tmp_path / "official/acme/TGIF-QA/gifs/tumblr_0.gif").rename(source / "gif" / "tumblr_0.gif")
    assert prepare(str(source)).converted == 2


@pytest.mark.parametrize("share", [0.3, 0.75, 0.9])
def test_a_cut_gif_is_not_taken_for_a_shorter_one(source, share):
    gif = source / "gif" / "tumblr_1.gif"
    gif.write_bytes(gif.read_bytes()[: int(gif.stat().st_size * share)])
    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos are missing or broken.*tumblr_1.gif: .*a video is cut"):
        prepare(str(source))


def test_an_mp4_whose_end_is_missing_is_not_used(source):
    whole = source / "mp4" / "tumblr_0.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    write_clip(whole, list(pictures), container={"movflags": "faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    with pytest.raises(FileNotFoundError, match=r"tumblr_0.mp4: damaged frames of a video left out; a video is cut"):
        prepare(str(source))


def test_what_is_converted_looks_as_a_player_shows_it(tmp_path):
    """Turned by 90 degrees and in the colours of BT.709, which the MP4 does not say any more."""
    pictures = smooth(4, 48, 64)
    source = write_clip(tmp_path / "a.mov", pictures, pix_fmt="yuv444p", matrix="bt709", codec_options={"qp": "0"})
    turn(source, ROTATIONS["90 clockwise"], 48, 64)
    write_mp4(source, tmp_path / "a.mp4")
    found = frames(tmp_path / "a.mp4")
    expected = np.stack([np.rot90(picture, -1) for picture in pictures]).astype(int)
    assert found.shape == expected.shape == (4, 64, 48, 3)
    assert np.abs(found - expected).max() <= 4  # twice RGB to YUV and back, each rounded


def test_transparent_parts_of_a_gif_are_white(tmp_path):
    picture = Image.new("RGBA", (64, 48), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 48))
    picture.save(tmp_path / "a.gif")
    write_mp4(tmp_path / "a.gif", tmp_path / "a.mp4")
    (found,) = frames(tmp_path / "a.mp4")
    assert np.abs(found[:, :32] - 255).max() <= 3
    assert np.abs(found[:, 32:] - [255, 0, 0]).max() <= 3


def damage_questions(source):
    (source / "test_q.json").write_text((source / "test_q.json").read_text()[:100])
    return "test_q.json is damaged: it is not JSON"


def lose_answers(source):
    (source / "test_a.json").unlink()
    return "test_a.json is missing. Questions: Test_frameqa_question.csv of https://"


def lose_questions(source):
    (source / "test_q.json").unlink()
    return "holds neither test_q.json nor Test_frameqa_question.csv"


def lose_an_answer(source):
    rows = json.loads((source / "test_a.json").read_text())
    (source / "test_a.json").write_text(json.dumps(rows[1:]))
    return "has 6 questions, but "


def mix_answers(source):
    rows = json.loads((source / "test_a.json").read_text())
    (source / "test_a.json").write_text(json.dumps(rows[::-1]))
    return "have another order: 'FRAMEQA0' stands beside 'FRAMEQA5'"


def rename_column(source):
    (source / "test_q.json").write_text((source / "test_q.json").read_text().replace("video_name", "video"))
    return "question 1: no video_name; it has "


def lose_a_video(source):
    (source / "mp4" / "tumblr_2.mp4").unlink()
    return "1 of 3 videos are missing or broken below"


def break_a_gif(source):
    (source / "gif" / "tumblr_1.gif").write_bytes(b"GIF89a nothing")
    return "tumblr_1.gif holds no video frames that can be decoded. Is the file whole?). --allow-missing leaves"


@pytest.mark.parametrize(
    "harm",
    [
        damage_questions,
        lose_answers,
        lose_questions,
        lose_an_answer,
        mix_answers,
        rename_column,
        lose_a_video,
        break_a_gif,
    ],
)
def test_what_is_missing_or_damaged_is_named_and_the_old_preparation_stays(source, harm):
    prepare(str(source))
    before = documents()
    message = harm(source)
    done = CliRunner().invoke(app, ["prepare-tgif", str(source)])
    assert done.exit_code == 1
    assert message in done.stderr
    assert documents() == before
    assert [path.name for path in dataset_folder().parent.iterdir()] == ["tgif"]


def test_missing_videos_can_be_left_out(source):
    lose_a_video(source)
    done = CliRunner().invoke(app, ["prepare-tgif", str(source), "--allow-missing"])
    assert done.exit_code == 0
    assert "4 questions, 2 videos (1 converted to MP4); 2 questions left out for want of a video" in done.stdout
    assert {row["video"] for row in documents()} == {"tumblr_0", "tumblr_1"}


def test_neither_folder_nor_hub_id(monkeypatch):
    done = CliRunner().invoke(app, ["prepare-tgif", "./no/such/folder"])
    assert done.exit_code == 1
    assert "./no/such/folder is neither a folder nor a dataset on the Hub" in done.stderr


def test_without_preparation_both_harnesses_say_what_to_do():
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)
    assert "tgif_frameqa" in manager.all_subtasks  # listing tasks needs no data
    with pytest.raises(FileNotFoundError, match=r"frameqa\.jsonl does not exist.*vtw-eval prepare-tgif"):
        manager.load_task_or_group("tgif_frameqa")
    register_kit_datasets()
    with pytest.raises(FileNotFoundError, match=r"TGIF-QA is not prepared: .*vtw-eval prepare-tgif"):
        build_dataset("TGIF-QA")


@pytest.mark.parametrize("protocol", ["simple", "chat"])
def test_the_lmms_eval_task(source, protocol):
    prepare(str(source))
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)
    task = manager.load_task_or_group("tgif_frameqa", task_type=protocol)["tgif_frameqa"]
    docs = list(task.test_docs())
    assert len(docs) == 6
    for i, doc in enumerate(docs):
        path = str(dataset_folder() / VIDEOS / f"tumblr_{i // 2}.mp4")
        assert task.doc_to_visual(doc) == [path]
        assert task.doc_to_text(doc) == f"what is number {i} in the picture ?{SUFFIX}"
        assert task.doc_to_target(doc) == TGIF_ANSWERS[i % 4]
        if protocol == "chat":
            (message,) = task.doc_to_messages(doc)
            assert message["content"][0] == {"type": "video", "url": path}
    found = task.process_results(docs[1], ["There are 2 men."])
    assert found == {"exact_match": 0, "contains_match": 1}
    assert set(task.aggregation()) == {"exact_match", "contains_match"}


def test_a_new_preparation_is_noticed(source):
    """datasets keeps copies; they must not outlive the file."""
    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False)
    for answer in ("cat", "dog"):
        text = (source / "test_a.json").read_text().replace('"cat"', f'"{answer}"')
        (source / "test_a.json").write_text(text)
        prepare(str(source))
        task = manager.load_task_or_group("tgif_frameqa")["tgif_frameqa"]
        assert task.test_docs()["answer"][0] == answer


def test_a_video_that_went_away_is_named(source):
    prepare(str(source))
    (source / "mp4" / "tumblr_0.mp4").unlink()
    register_kit_datasets()
    with pytest.raises(FileNotFoundError, match=r"the TGIF-QA video .*tumblr_0\.mp4 is gone"):
        build_dataset("TGIF-QA").build_prompt(0, video_llm=True)


@pytest.mark.parametrize("video_llm", [True, False])
def test_the_vlmevalkit_dataset_runs(source, tmp_path, video_llm):
    prepare(str(source))
    register_kit_datasets()
    asked = []

    def answer(message, dataset):
        asked.append(message)
        return ["A cat.", "2 men", "blue", "room"][(len(asked) - 1) % 4]

    model = SimpleNamespace(VIDEO_LLM=video_llm, generate=answer)
    dataset = build_dataset("TGIF-QA_8frame", model=["toy"], data=["TGIF-QA_8frame"])  # as the kit's run calls it
    infer_data_job_video(model, str(tmp_path), "toy", dataset, result_file=str(tmp_path / "toy_TGIF-QA_8frame.xlsx"))
    assert [message[-1]["value"] for message in asked] == [
        f"what is number {i} in the picture ?{SUFFIX}" for i in range(6)
    ]
    for i, (*media, _) in enumerate(asked):
        if video_llm:
            path = str(dataset_folder() / VIDEOS / f"tumblr_{i // 2}.mp4")
            assert media == [{"type": "video", "value": path}]
        else:
            assert [part["type"] for part in media] == ["image"] * 8
            assert Image.open(media[0]["value"]).size == ((64, 48), (96, 56), (64, 48))[i // 2]
    result = dataset.evaluate(str(tmp_path / "toy_TGIF-QA_8frame.xlsx"))
    assert _resolve_dataset_reporter("TGIF-QA_8frame").report_primary_metric(result) == {"exact_match": 0.5}
    # right: cat, 2 men (contained), not blue, room, cat, 2 men (contained)
    assert result == {"exact_match": pytest.approx(3 / 6), "contains_match": pytest.approx(5 / 6)}
