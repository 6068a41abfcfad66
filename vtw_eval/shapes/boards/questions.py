"""Questions about a board, with their answers, in the wording of the field's benchmarks.

A *type* is one of :data:`TYPES`: ``exist``, ``count``, ``color``, ``position`` and ``mark`` are yes/no questions as in
MME and POPE, ``choice`` has four options as in AI2D, ``open_*`` want one word as in VQA, ``relate``, ``same`` and
``both`` take two steps as in GQA, ``caption`` names every object.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from vtw_eval.shapes.boards.scenes import MARKS, SIZES, Item, Scene
from vtw_eval.shapes.questions import (
    CAPTION_PROMPT,
    Question,
    absent_kinds,
    exist_text,
    pick,
    with_options,
    yes_no,
)
from vtw_eval.shapes.scenes import COLORS, SHAPES

YES_NO = ("exist", "count", "color", "position", "mark")
"""The types of MME and POPE, answered with Yes or No."""
OPEN = ("open_color", "open_shape", "open_count", "open_mark", "open_row", "open_column")
"""The types of VQA, answered with one word."""
TWO_STEP = ("relate", "same", "both")
"""The types of GQA: the neighbour of an object; whether two objects are alike; whether two kinds are there."""
TYPES = (*YES_NO, "choice", *OPEN, *TWO_STEP, "caption")
"""Question types."""

MOST_COUNTED = 4
"""The largest number that a question about a number of objects asks for."""
NUMBERS = tuple(str(n) for n in range(1, MOST_COUNTED + 1))
ROWS = ("first", "second", "third", "fourth")
"""Words for rows, from the top, and for columns, from the left."""
SIDES: dict[str, tuple[int, int]] = {
    "on the left of": (0, -1),
    "on the right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}
"""Relations and the step, (rows, columns), from an object to its neighbour on that side."""
_OPPOSITE = dict(zip(SIDES, ("on the right of", "on the left of", "below", "above"), strict=True))


def caption_text(scene: Scene) -> str:
    """Return the caption of a scene: its objects in reading order."""
    return " and ".join(f"a {item.color} {item.shape}" for item in scene.items)


def names(item: Item, scene: Scene, hidden: str = "") -> list[str]:
    """Return the descriptions that single an object out, without articles: ``large red circle``, ``blue object``, ...

    Parameters
    ----------
    item
        The object.
    scene
        Its scene.
    hidden
        An attribute that may not be told: ``color``, ``shape``, or none.

    Returns
    -------
    list of str
        Those of at most two attributes; those of three if there are none; possibly empty.
    """
    told = [name for name in ("size", "color", "shape") if name != hidden]
    for most in (2, 3):
        found = []
        for number in range(1, most + 1):
            for attributes in combinations(told, number):
                if attributes == ("size",):
                    continue  # "the large object" alone is rarely right and hardly ever asked
                values = [getattr(item, name) for name in attributes]
                if sum([getattr(other, name) for name in attributes] == values for other in scene.items) == 1:
                    found.append(" ".join(values if "shape" in attributes else [*values, "object"]))
        if found:
            return found
    return []


def _name(rng: np.random.Generator, scene: Scene, items: Sequence[Item], hidden: str = "") -> tuple[Item, str] | None:
    """Draw an object that can be named, and a name of it."""
    named = [(item, found) for item in items if (found := names(item, scene, hidden))]
    if not named:
        return None
    item, found = pick(rng, named)
    return item, pick(rng, found)


def ask_exist(scene: Scene, rng: np.random.Generator, answer: bool, negatives: str = "adversarial") -> Question:
    """Ask whether a kind of object is there; ``negatives`` as in :func:`~vtw_eval.shapes.questions.absent_kinds`."""
    kinds = [item.kind for item in scene.items] if answer else absent_kinds(scene, negatives)
    return Question("exist", exist_text(pick(rng, kinds)), yes_no(answer))


def _groups(scene: Scene) -> dict[str, dict[str, int]]:
    """Return the groups of objects that are counted and how many each holds, by the attribute that makes them."""
    values = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}
    return {
        attribute: {
            plural(value) if attribute == "shape" else f"{value} objects": sum(
                getattr(item, attribute) == value for item in scene.items
            )
            for value in values[attribute]
        }
        for attribute in values
    }


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape == "cross" else "s")


def ask_count(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether a group of objects has a given number, 1 to 4; a wrong number is one off.

    None unless the scene has, by the same attribute, a group of that number and one of a neighbouring number, so that a
    scene is asked about with either answer or not at all, and the text alone tells nothing.
    """
    number = int(rng.integers(1, MOST_COUNTED + 1))
    counts = pick(rng, tuple(_groups(scene).values()))
    fitting = [group for group, n in counts.items() if n == number]
    near = [group for group, n in counts.items() if abs(n - number) == 1]
    if not fitting or not near:
        return None
    group = pick(rng, fitting if answer else near)
    return Question("count", f"Is the number of {group} in the image {number}?", yes_no(answer))


def ask_color(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether an object has a colour; a wrong one is that of another object half of the time."""
    named = _name(rng, scene, scene.items, "color")
    if named is None:
        return None
    item, name = named
    color = item.color
    if not answer:
        others = sorted({other.color for other in scene.items} - {color})
        if not others or rng.random() < 0.5:
            others = [other for other in COLORS if other != color]
        color = pick(rng, others)
    return Question("color", f"Is the {name} {color}?", yes_no(answer))


def ask_position(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether an object is on one side of another, which is in another row or column as the side requires."""
    side = pick(rng, tuple(SIDES))
    first = _name(rng, scene, scene.items)
    if first is None:
        return None
    item, name = first
    down, right = SIDES[side if answer else _OPPOSITE[side]]
    there = [o for o in scene.items if down * (item.row - o.row) + right * (item.column - o.column) > 0]
    second = _name(rng, scene, there)
    if second is None:
        return None
    return Question("position", f"Is the {name} {side} the {second[1]}?", yes_no(answer))


def ask_mark(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether an object carries a digit; a wrong one is that of another object half of the time."""
    named = _name(rng, scene, [item for item in scene.items if item.mark])
    if named is None:
        return None
    item, name = named
    mark = item.mark
    if not answer:
        others = sorted({other.mark for other in scene.items if other.mark} - {mark})
        if not others or rng.random() < 0.5:
            others = [other for other in MARKS if other != mark]
        mark = pick(rng, others)
    return Question("mark", f"Is the number on the {name} {mark}?", yes_no(answer))


def ask_open(type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for an attribute of an object or the number of a group; None if the scene has none to ask for."""
    if type == "open_count":
        number = int(rng.integers(1, MOST_COUNTED + 1))
        counts = {"objects": len(scene.items)} | pick(rng, tuple(_groups(scene).values()))
        fitting = [group for group, n in counts.items() if n == number]
        return Question(type, f"How many {pick(rng, fitting)} are there?", str(number)) if fitting else None
    if type not in OPEN:
        raise ValueError(f"unknown type of open question {type!r}; known: {', '.join(OPEN)}")
    attribute = type.removeprefix("open_")
    items = [item for item in scene.items if item.mark] if attribute == "mark" else scene.items
    named = _name(rng, scene, items, attribute)
    if named is None:
        return None
    item, name = named
    if attribute in ("row", "column"):
        return Question(type, f"In which {attribute} is the {name}?", ROWS[getattr(item, attribute)])
    what = "What number is on" if attribute == "mark" else f"What {attribute} is"
    return Question(type, f"{what} the {name}?", getattr(item, attribute))


def ask_choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask an open question with four options; None if the kind drawn cannot be asked about this scene."""
    type = pick(rng, OPEN)
    question = ask_open(type, scene, rng)
    if question is None:
        return None
    values = dict(zip(OPEN, (tuple(COLORS), SHAPES, NUMBERS, MARKS, ROWS, ROWS), strict=True))[type]
    return with_options(question, values, rng)


def ask_relate(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for colour or shape of the object in the next cell on one side of an object."""
    attribute = pick(rng, ("color", "shape"))
    side, (down, right) = pick(rng, tuple(SIDES.items()))
    cells = {(item.row, item.column): item for item in scene.items}
    pairs = {item: cells.get((item.row + down, item.column + right)) for item in scene.items}
    named = _name(rng, scene, [item for item, next_to in pairs.items() if next_to])
    if named is None:
        return None
    item, name = named
    side = side.removeprefix("on ").replace("the", "to the", 1) if right else side
    return Question(
        "relate", f"What {attribute} is the object just {side} the {name}?", getattr(pairs[item], attribute)
    )


def ask_same(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether two objects have the same colour or the same shape, which their names do not tell."""
    attribute = pick(rng, ("color", "shape"))
    first = _name(rng, scene, scene.items, attribute)
    if first is None:
        return None
    value = getattr(first[0], attribute)
    others = [item for item in scene.items if item is not first[0]]
    like = _name(rng, scene, [item for item in others if getattr(item, attribute) == value], attribute)
    unlike = _name(rng, scene, [item for item in others if getattr(item, attribute) != value], attribute)
    if like is None or unlike is None:  # a scene that allows one answer only would tell it
        return None
    second = like if answer else unlike
    return Question("same", f"Do the {first[1]} and the {second[1]} have the same {attribute}?", yes_no(answer))


def ask_both(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether two kinds of object are there; if not, one of them is, and the other is easy to confuse."""
    present = sorted({item.kind for item in scene.items})
    if len(present) < 2:
        return None
    kinds = [present[i] for i in rng.permutation(len(present))[:2]]
    if not answer:
        kinds[int(rng.integers(2))] = pick(rng, absent_kinds(scene, "adversarial"))
    (color, shape), (other_color, other_shape) = kinds
    text = f"Is there both a {color} {shape} and a {other_color} {other_shape} in the image?"
    return Question("both", text, yes_no(answer))


def ask(type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask a question of a type about a scene.

    Parameters
    ----------
    type
        One of :data:`TYPES`.
    scene
        The scene.
    rng
        Source of randomness. The answer of a yes/no question is Yes half of the time.

    Returns
    -------
    Question or None
        None if the scene allows no such question (no object can be named, say).

    Raises
    ------
    ValueError
        If the type is unknown.
    """
    if type == "exist":
        answer = bool(rng.integers(2))
        return ask_exist(scene, rng, answer, "adversarial" if rng.random() < 0.7 else "random")
    if type in _WITH_ANSWER:
        return _WITH_ANSWER[type](scene, rng, bool(rng.integers(2)))
    if type == "choice":
        return ask_choice(scene, rng)
    if type == "relate":
        return ask_relate(scene, rng)
    if type == "caption":
        return Question(type, CAPTION_PROMPT, caption_text(scene))
    if type in OPEN:
        return ask_open(type, scene, rng)
    raise ValueError(f"unknown question type {type!r}; known types: {', '.join(TYPES)}")


_WITH_ANSWER = {
    "count": ask_count,
    "color": ask_color,
    "position": ask_position,
    "mark": ask_mark,
    "same": ask_same,
    "both": ask_both,
}
