"""Questions: answers against an independent computation, balance, wording."""

import re

import numpy as np
import pytest

from vtw_eval.shapes.processor import build_tokenizer
from vtw_eval.shapes.questions import NEGATIVES, TYPES, YES_NO, absent_kinds, ask, ask_exist, prompt
from vtw_eval.shapes.scenes import Item, Scene, sample_scene


def naive_answer(question, scene):
    """Answer a question from its text alone, without the package's code."""
    things = [(item.color, item.shape) for item in scene.items]
    text = question.text
    if found := re.fullmatch(r"Is there a (\w+) (\w+) in the image\?", text):
        return "Yes" if found.groups() in things else "No"
    if found := re.fullmatch(r"Is the number of objects in the image (\d)\?", text):
        return "Yes" if int(found[1]) == len(things) else "No"
    if found := re.fullmatch(r"Is the (\w+) (\w+)\?", text):
        (color,) = [c for c, s in things if s == found[1]]
        return "Yes" if color == found[2] else "No"
    if text == "Describe the image.":
        colors = ["red", "green", "blue", "yellow", "purple", "cyan"]
        shapes = ["circle", "square", "triangle", "cross"]
        return " and ".join(f"a {c} {s}" for c in colors for s in shapes for _ in range(things.count((c, s))))
    if found := re.fullmatch(r"What color is the (\w+)\?", text):
        (word,) = [c for c, s in things if s == found[1]]
    elif found := re.fullmatch(r"What shape is the (\w+) object\?", text):
        (word,) = [s for c, s in things if c == found[1]]
    else:
        assert text == "How many objects are there in the image?"
        word = str(len(things))
    if question.type != "choice":
        return word
    assert len(set(question.options)) == 4
    return "ABCD"[question.options.index(word)]


def questions(type, count, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < count:
        scene = sample_scene(rng)
        question = ask(type, scene, rng)
        if question is not None:
            pairs.append((scene, question))
    return pairs


@pytest.mark.parametrize("type", TYPES)
def test_answers_are_right(type):
    for scene, question in questions(type, 500):
        assert question.type == type
        assert question.answer == naive_answer(question, scene), (scene, question)


@pytest.mark.parametrize("type", YES_NO)
def test_yes_and_no_are_balanced_and_the_text_does_not_tell(type):
    pairs = questions(type, 4000, seed=1)
    yes = [question.answer == "Yes" for _, question in pairs]
    assert abs(np.mean(yes) - 0.5) < 0.03
    by_text = {}
    for (_, question), answer in zip(pairs, yes, strict=True):
        by_text.setdefault(question.text, []).append(answer)
    # The best that an answer from the text alone can do, less the luck of fitting small groups.
    guess = sum(max(sum(a), len(a) - sum(a)) for a in by_text.values()) / len(pairs)
    luck = sum(0.4 * len(a) ** 0.5 for a in by_text.values()) / len(pairs)
    assert guess - luck < 0.53


def test_letters_are_balanced():
    letters = [question.answer for _, question in questions("choice", 2000)]
    assert {letter: abs(letters.count(letter) / 2000 - 0.25) < 0.04 for letter in "ABCD"} == dict.fromkeys("ABCD", True)


def test_adversarial_negatives_share_what_they_can():
    scene = Scene((Item(0, "red", "circle"), Item(1, "blue", "cross")))
    assert set(absent_kinds(scene, "adversarial")) == {("red", "cross"), ("blue", "circle")}
    assert len(absent_kinds(scene, "random")) == 22
    single = Scene((Item(0, "red", "circle"),))
    assert all("red" in kind or "circle" in kind for kind in absent_kinds(single, "adversarial"))
    for how in NEGATIVES:
        question = ask_exist(scene, np.random.default_rng(0), False, how)
        assert naive_answer(question, scene) == "No"
    with pytest.raises(ValueError, match="known: random, adversarial"):
        absent_kinds(scene, "popular")


def test_a_question_that_singles_nothing_out_is_not_asked():
    twins = Scene((Item(0, "red", "circle"), Item(1, "red", "circle")))
    rng = np.random.default_rng(0)
    assert ask("color", twins, rng) is None
    assert ask("open_color", twins, rng) is None
    assert ask("open_shape", twins, rng) is None


def test_unknown_type_is_refused():
    with pytest.raises(ValueError, match="known types: exist, count"):
        ask("position", sample_scene(np.random.default_rng(0)), np.random.default_rng(0))


@pytest.mark.parametrize("type", TYPES)
def test_every_word_is_in_the_vocabulary(type):
    tokenizer = build_tokenizer()
    for _, question in questions(type, 200):
        ids = tokenizer([prompt(question), question.answer], add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids[0] + ids[1]
