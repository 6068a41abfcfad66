"""Questions about boards: answers against an independent computation, balance, wording."""

import re

import numpy as np
import pytest

from vtw_eval.shapes.boards.processor import build_tokenizer
from vtw_eval.shapes.boards.questions import TYPES, YES_NO, ask, names
from vtw_eval.shapes.boards.scenes import Item, Scene, sample_scene
from vtw_eval.shapes.questions import NEGATIVES, absent_kinds, prompt

WORDS = {
    "color": ["red", "green", "blue", "yellow", "purple", "cyan"],
    "shape": ["circle", "square", "triangle", "cross"],
    "size": ["small", "large"],
}
ORDINALS = ["first", "second", "third", "fourth"]


def matching(name, scene):
    """Return the objects that a description of words fits, without the package's code."""
    found = list(scene.items)
    for word in name.split():
        for attribute, words in WORDS.items():
            if word in words:
                found = [item for item in found if getattr(item, attribute) == word]
    return found


def singular(group):
    """Return a group's name as a description: ``crosses`` is ``cross``, ``red objects`` stays."""
    return {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}.get(group, group)


def only(name, scene):
    (item,) = matching(name, scene)
    return item


def naive_answer(question, scene):
    """Answer a question from its text alone."""
    text = question.text
    yes = {True: "Yes", False: "No"}
    if text == "Describe the image.":
        ordered = sorted(scene.items, key=lambda item: (item.row, item.column))
        return " and ".join(f"a {item.color} {item.shape}" for item in ordered)
    if found := re.fullmatch(r"Is there a (\w+ \w+) in the image\?", text):
        return yes[bool(matching(found[1], scene))]
    if found := re.fullmatch(r"Is there both a (\w+ \w+) and a (\w+ \w+) in the image\?", text):
        return yes[all(matching(name, scene) for name in found.groups())]
    if found := re.fullmatch(r"Is the number of (.+) in the image (\d)\?", text):
        return yes[len(matching(singular(found[1]), scene)) == int(found[2])]
    if found := re.fullmatch(r"Is the number on the (.+) (\d)\?", text):
        return yes[only(found[1], scene).mark == found[2]]
    if found := re.fullmatch(r"Is the (.+) (on the left of|on the right of|above|below) the (.+)\?", text):
        a, b = only(found[1], scene), only(found[3], scene)
        (ay, ax), (by, bx) = divmod(a.cell, 4), divmod(b.cell, 4)
        return yes[
            {"on the left of": ax < bx, "on the right of": ax > bx, "above": ay < by, "below": ay > by}[found[2]]
        ]
    if found := re.fullmatch(r"Is the (.+) (\w+)\?", text):
        return yes[only(found[1], scene).color == found[2]]
    if found := re.fullmatch(r"Do the (.+) and the (.+) have the same (color|shape)\?", text):
        a, b = only(found[1], scene), only(found[2], scene)
        assert a is not b
        assert not {getattr(a, found[3]), getattr(b, found[3])} & set(text.replace("?", "").split())
        return yes[getattr(a, found[3]) == getattr(b, found[3])]
    if found := re.fullmatch(
        r"What (color|shape) is the object just (to the left of|to the right of|above|below) the (.+)\?", text
    ):
        step = {"to the left of": -1, "to the right of": 1, "above": -4, "below": 4}[found[2]]
        cell = only(found[3], scene).cell
        assert abs(step) == 4 or cell // 4 == (cell + step) // 4
        (word,) = [getattr(item, found[1]) for item in scene.items if item.cell == cell + step]
    elif found := re.fullmatch(r"What (color|shape) is the (.+)\?", text):
        word = getattr(only(found[2], scene), found[1])
        assert word not in found[2].split()
    elif found := re.fullmatch(r"What number is on the (.+)\?", text):
        word = only(found[1], scene).mark
    elif found := re.fullmatch(r"In which (row|column) is the (.+)\?", text):
        word = ORDINALS[divmod(only(found[2], scene).cell, 4)[found[1] == "column"]]
    else:
        found = re.fullmatch(r"How many (.+) are there\?", text)
        word = str(len(matching(singular(found[1]), scene)))
    if question.type != "choice":
        return word
    assert len(set(question.options)) == 4
    return "ABCD"[question.options.index(word)]


def asked(type, count, seed=0):
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
    for scene, question in asked(type, 300):
        assert question.type == type
        assert question.answer == naive_answer(question, scene), (scene, question)


@pytest.mark.parametrize("type", [*YES_NO, "same", "both"])
def test_yes_and_no_are_balanced_and_the_pattern_of_the_text_does_not_tell(type):
    pairs = asked(type, 2000, seed=1)
    yes = np.array([question.answer == "Yes" for _, question in pairs])
    assert abs(yes.mean() - 0.5) < 0.04
    patterns = {}
    for (_, question), answer in zip(pairs, yes, strict=True):
        pattern = question.text  # what is left when names of values of one attribute are the same word
        for attribute, words in WORDS.items():
            pattern = re.sub("|".join(words), attribute.upper(), pattern)
        patterns.setdefault(pattern, []).append(answer)
    # The best that an answer from the pattern alone can do, less the luck of fitting small groups.
    guess = sum(max(sum(a), len(a) - sum(a)) for a in patterns.values()) / len(pairs)
    luck = sum(0.4 * len(a) ** 0.5 for a in patterns.values()) / len(pairs)
    assert guess < 0.53 + luck


def test_answers_with_several_values_are_spread():
    for type, most in (("choice", 0.3), ("open_row", 0.35), ("open_column", 0.35), ("open_shape", 0.35)):
        answers = [question.answer for _, question in asked(type, 1000)]
        assert max(answers.count(answer) for answer in set(answers)) < most * len(answers)


def test_names_single_objects_out():
    scene = Scene(
        (Item(0, "small", "red", "circle"), Item(1, "large", "red", "circle"), Item(2, "large", "blue", "cross"))
    )
    small, large, cross = scene.items
    assert names(small, scene) == ["small red object", "small circle"]
    assert names(large, scene) == ["large circle", "large red object"][::-1]
    assert names(large, scene, "color") == ["large circle"]
    assert names(cross, scene) == ["blue object", "cross", "large blue object", "large cross", "blue cross"]
    twins = Scene((Item(0, "small", "red", "circle"), Item(1, "small", "red", "circle")))
    assert names(twins.items[0], twins) == []


def test_adversarial_kinds_share_colour_and_shape_with_what_is_there():
    scene = Scene((Item(0, "small", "red", "circle"), Item(3, "large", "blue", "cross")))
    assert absent_kinds(scene, "adversarial") == [("red", "cross"), ("blue", "circle")]
    assert len(absent_kinds(scene, "random")) == 22
    assert NEGATIVES == ("random", "adversarial")
    with pytest.raises(ValueError, match="unknown way"):
        absent_kinds(scene, "popular")


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="unknown question type 'weight'"):
        ask("weight", sample_scene(np.random.default_rng(0)), np.random.default_rng(0))


@pytest.mark.parametrize("type", TYPES)
def test_every_word_is_in_the_vocabulary(type):
    tokenizer = build_tokenizer()
    for _, question in asked(type, 200):
        ids = tokenizer([prompt(question), question.answer], add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids[0] + ids[1]
