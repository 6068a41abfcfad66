"""Moves: what happens in a video, answers against what its frames show, balance, test sets as lmms-eval loads them."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vtw_eval.media import is_video
from vtw_eval.models.video import read_clip, uniform
from vtw_eval.shapes.moves import data
from vtw_eval.shapes.moves.making.video_llava import frame_labels
from vtw_eval.shapes.moves.processor import build_tokenizer
from vtw_eval.shapes.moves.questions import TYPES, ask
from vtw_eval.shapes.moves.scenes import HIDDEN, Item, Scene, is_test_scene, render, sample_scene
from vtw_eval.shapes.questions import LETTER_PROMPT, SHORT_PROMPT, prompt
from vtw_eval.shapes.scenes import COLORS

TASKS = Path(__file__).parents[3] / "tasks"
QUESTIONS = {"frameqa": 1, "count": 1, "action": 2, "order": 2, "choice": 2}
"""Questions about a video, by test set."""


def did(cells):
    """Tell from an object's cells alone what it does, without the package's code."""
    shown = [cell != -1 for cell in cells]
    places = [divmod(cell, 4) for cell in cells if cell != -1]
    if len(set(places)) > 1:
        (down, right) = (b - a for a, b in zip(places[0], places[-1], strict=True))
        assert (down == 0) != (right == 0)
        return f"move {'down' if down > 0 else 'up' if down < 0 else 'right' if right > 0 else 'left'}"
    if all(shown):
        return "rest"
    if shown[0] and shown[-1]:
        return f"blink {sum(a and not b for a, b in pairwise(shown))}"
    return "appear" if shown[-1] else "vanish"


def matching(name, scene):
    words = [word for word in name.split() if word != "object"]
    return [item for item in scene.items if all(word in item.kind for word in words)]


def only(name, scene):
    (item,) = matching(name, scene)
    return item


def naive_answer(question, scene):
    """Answer a question from its text and the cells of all objects."""
    text = question.text
    yes = {True: "Yes", False: "No"}
    if found := re.fullmatch(r"Is there a (\w+ \w+) in the video\?", text):
        return yes[bool(matching(found[1], scene))]
    if found := re.fullmatch(r"Does the (.+) (appear|vanish) before the (.+)\?", text):
        a, b = only(found[1], scene).cells, only(found[3], scene).cells
        assert did(a) == did(b) == found[2]
        turns = [sum(cell == -1 for cell in cells) for cells in (a, b)]  # frames without it
        assert turns[0] != turns[1]
        return yes[(turns[0] < turns[1]) == (found[2] == "appear")]
    if found := re.fullmatch(r"What (color|shape) is the object that (moves \w+|\w+)\?", text):
        verbs = {"blinks": "blink", "appears": "appear", "vanishes": "vanish", "rests": "rest"}
        does = verbs.get(found[2], found[2].replace("moves", "move"))
        (word,) = [getattr(i, found[1]) for i in scene.items if re.sub(r" \d", "", did(i.cells)) == does]
    elif found := re.fullmatch(r"What does the (.+) do\?", text):
        word = did(only(found[1], scene).cells).split()[0]
    elif found := re.fullmatch(r"In which direction does the (.+) move\?", text):
        word = did(only(found[1], scene).cells).split()[1]
    else:
        found = re.fullmatch(r"How many times does the (.+) blink\?", text)
        word = did(only(found[1], scene).cells).split()[1]
    if question.type != "choice":
        return word
    assert len(set(question.options)) == 4
    return "ABCD"[question.options.index(word)]


def asked(type, count, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < count:
        scene = sample_scene(rng)
        if question := ask(type, scene, rng):
            pairs.append((scene, question))
    return pairs


@pytest.mark.parametrize("type", TYPES)
def test_answers_are_right_and_every_word_is_known(type):
    tokenizer = build_tokenizer()
    pairs = asked(type, 250)
    for scene, question in pairs:
        assert question.type == type
        assert question.answer == naive_answer(question, scene), (scene, question)
    texts = [text for _, question in pairs for text in (f"{prompt(question)}? ASSISTANT:", question.answer)]
    assert tokenizer.unk_token_id not in {id for ids in tokenizer(texts)["input_ids"] for id in ids}


def test_answers_are_spread():
    for type, most in (("order", 0.56), ("exist", 0.56), ("direction", 0.33), ("repeat", 0.42), ("choice", 0.32)):
        counts = Counter(question.answer for _, question in asked(type, 800, seed=1))
        assert max(counts.values()) < most * 800
    counts = Counter(question.answer for _, question in asked("action", 800, seed=1))
    assert len(counts) == 5
    assert max(counts.values()) < 0.27 * 800


def test_objects_never_share_a_cell_of_a_frame_and_kinds_differ():
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = sample_scene(rng, 1, 8)
        assert len({item.kind for item in scene.items}) == len(scene.items)
        for cells in zip(*(item.cells for item in scene.items), strict=True):
            shown = [cell for cell in cells if cell != HIDDEN]
            assert len(shown) == len(set(shown))
        for item in scene.items:
            assert did(item.cells) == f"{item.action} {item.detail}".strip()


@pytest.mark.parametrize("test", [False, True])
def test_sampling_stays_on_its_side_of_the_split(test):
    rng = np.random.default_rng(5)
    assert {is_test_scene(sample_scene(rng, test=test)) for _ in range(100)} == {test}
    with pytest.raises(ValueError, match="1 <= low <= high <= 8"):
        sample_scene(rng, 3, 9)


@pytest.mark.parametrize("through_file", [False, True])
def test_frames_show_what_happens_and_how_far_the_video_is(tmp_path, through_file):
    scene = Scene(
        (
            Item("red", "square", "move", "right", (4, 4, 5, 5, 6, 6, 6, 7)),
            Item("blue", "circle", "blink", "2", (15, -1, 15, 15, -1, 15, 15, 15)),
        )
    )
    frames = render(scene, np.random.default_rng(0))
    if through_file:  # as the harness's adapter reads it
        path = tmp_path / "it.avi"
        path.write_bytes(data.video(frames))
        assert is_video(str(path))
        clip = read_clip(str(path), uniform(8), "pyav")
        assert clip.total == 8
        assert np.array_equal(clip.frames, frames)
        frames = clip.frames
    assert frames.shape == (8, 64, 64, 3)
    assert frames.dtype == np.uint8
    labels = {name: grid.reshape(8, 17) for name, grid in frame_labels([scene]).items()}
    assert (labels["color"][:, 0] == -1).all()  # the class token
    for time, frame in enumerate(frames.astype(float)):
        assert (frame[:2, : 8 * (time + 1)].min(), frame[:2, 8 * (time + 1) :].max(initial=0)) > (150, -1)
        assert frame[:2, 8 * (time + 1) :].max(initial=0) < 100
        for cell in range(16):
            row, column = divmod(cell, 4)
            part = frame[16 * row + 2 : 16 * row + 16, 16 * column : 16 * column + 16]
            colourful = part[part.max(-1) - part.min(-1) > 80]
            there = [i for i in scene.items if i.cells[time] == cell]
            assert (len(colourful) > 25) == bool(there)
            label = int(labels["color"][time, 1 + cell])
            assert label == (list(COLORS).index(there[0].color) if there else -1)
            if there:
                mean = colourful.mean(0)
                assert min(COLORS, key=lambda c: np.abs(np.array(COLORS[c]) - mean).sum()) == there[0].color
                assert [int(labels[n][time, 1 + cell]) for n in ("row", "column", "time")] == [row, column, time]


@pytest.fixture(scope="module")
def rows():
    """Each test set, from a few videos."""
    with pytest.MonkeyPatch.context() as patch:
        every = data.generators
        patch.setattr(data, "generators", lambda seed, name, count: every(seed, name, 6))
        yield {name: make for name, make in ((n, tuple(m())) for n, m in data.TEST_SETS.items())}


@pytest.mark.parametrize("name", QUESTIONS)
def test_lmms_eval_loads_a_task_with_its_videos(name, rows, monkeypatch, tmp_path):
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {key: (lambda key=key: [dict(row) for row in rows[key]]) for key in rows}
    monkeypatch.setattr(data, "TEST_SETS", small)
    monkeypatch.setattr("vtw_eval.tasks.moves.data.TEST_SETS", small)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load_task_or_group(f"moves_{name}", task_type="chat")[f"moves_{name}"]
    docs = list(task.test_docs())
    assert [doc["question"] for doc in docs] == [row["question"] for row in rows[name]]
    assert set(Counter(doc["video_id"] for doc in docs).values()) == {QUESTIONS[name]}
    tokenizer = build_tokenizer()
    for doc, row in zip(docs, rows[name], strict=True):
        (path,) = task.doc_to_visual(doc)
        assert Path(path).read_bytes() == row["file"]
        assert task._visual_to_content(path) == {"type": "video", "url": path}
        assert is_video(path)
        assert read_clip(path, uniform(8), "pyav").frames.shape == (8, 64, 64, 3)
        text = task.doc_to_text(doc)
        assert text.startswith(doc["question"])
        assert text.endswith(LETTER_PROMPT if name == "choice" else SHORT_PROMPT)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        target = str(task.doc_to_target(doc))
        if name != "choice":
            assert set(task.process_results(doc, [target]).values()) == {1.0}
    with pytest.raises(ValueError, match="known: frameqa, count, action, order, choice"):
        data.dataset_path("captions", tmp_path)
