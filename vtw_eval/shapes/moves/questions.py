"""Questions about a video, with their answers, in the wording of TGIF-QA and of Video-MME.

A *type* is one of :data:`TYPES`. ``actor`` asks for colour or shape of what does something, as TGIF-QA's frame
questions do; ``repeat`` asks how often, as its counting questions do; ``action`` and ``direction`` ask what an object
does and where it goes; ``order`` and ``exist`` are yes/no questions; ``choice`` has four options, as Video-MME's.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from vtw_eval.shapes.moves.scenes import ACTIONS, DIRECTIONS, TIMES, Item, Scene
from vtw_eval.shapes.questions import Question, absent_kinds, pick, with_options, yes_no
from vtw_eval.shapes.scenes import COLORS, SHAPES

OPEN = ("actor", "action", "direction", "repeat")
"""The types that are answered with one word."""
YES_NO = ("order", "exist")
"""The types that are answered with Yes or No."""
TYPES = (*OPEN, *YES_NO, "choice")
"""Question types."""
VERBS = {
    "move": "moves",
    "blink": "blinks",
    "appear": "appears",
    "vanish": "vanishes",
    "rest": "rests",
}
"""Actions, as they are told of an object."""


def names(item: Item, scene: Scene, hidden: str = "") -> list[str]:
    """Return the descriptions that single an object out: ``red circle``, and ``circle`` or ``red object`` if they do.

    Parameters
    ----------
    item
        The object.
    scene
        Its scene.
    hidden
        An attribute that may not be told: ``color``, ``shape``, or none.
    """
    found = [] if hidden else [f"{item.color} {item.shape}"]
    for attribute, text in (("shape", item.shape), ("color", f"{item.color} object")):
        value = getattr(item, attribute)
        if attribute != hidden and sum(getattr(other, attribute) == value for other in scene.items) == 1:
            found.append(text)
    return found


def _told(item: Item) -> str:
    """Return what an object does: ``moves left``, ``blinks``."""
    return f"moves {item.detail}" if item.action == "move" else VERBS[item.action]


def ask_actor(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for colour or shape of the only object that does something."""
    told = [_told(item) for item in scene.items]
    alone = [item for item in scene.items if told.count(_told(item)) == 1]
    if not alone:
        return None
    item = pick(rng, alone)
    attribute = pick(rng, ("color", "shape"))
    return Question("actor", f"What {attribute} is the object that {_told(item)}?", getattr(item, attribute))


def ask_about(type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask what an object does, where it moves, or how often it blinks."""
    fitting = {"action": ACTIONS, "direction": ("move",), "repeat": ("blink",)}[type]
    items = [item for item in scene.items if item.action in fitting]
    if not items:
        return None
    item = pick(rng, items)
    name = pick(rng, names(item, scene))
    if type == "action":
        return Question(type, f"What does the {name} do?", item.action)
    if type == "direction":
        return Question(type, f"In which direction does the {name} move?", item.detail)
    return Question(type, f"How many times does the {name} blink?", item.detail)


def ask_order(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether an object appears, or vanishes, before another does."""
    pairs = [
        (a, b)
        for a, b in permutations(scene.items, 2)
        if a.action == b.action and a.action in ("appear", "vanish") and a.change < b.change
    ]
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    if not answer:
        first, second = second, first
    one, other = (pick(rng, names(item, scene)) for item in (first, second))
    return Question("order", f"Does the {one} {first.action} before the {other}?", yes_no(answer))


def ask_exist(scene: Scene, rng: np.random.Generator, answer: bool) -> Question:
    """Ask whether a kind of object is in the video; an absent one is easy to confuse in seven of ten cases."""
    kinds = [item.kind for item in scene.items]
    if not answer:
        kinds = absent_kinds(scene, "adversarial" if rng.random() < 0.7 else "random")
    color, shape = pick(rng, kinds)
    return Question("exist", f"Is there a {color} {shape} in the video?", yes_no(answer))


def _values(question: Question) -> tuple[str, ...]:
    """Return what may answer an open question."""
    if question.type == "actor":
        return tuple(COLORS) if question.answer in COLORS else SHAPES
    return {"action": ACTIONS, "direction": tuple(DIRECTIONS), "repeat": (*TIMES, "4")}[question.type]


def ask_choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask an open question with four options; None if the kind drawn cannot be asked about this scene."""
    question = ask(pick(rng, OPEN), scene, rng)
    if question is None:
        return None
    return with_options(question, _values(question), rng)


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
        None if the scene allows no such question.

    Raises
    ------
    ValueError
        If the type is unknown.
    """
    if type not in TYPES:
        raise ValueError(f"unknown question type {type!r}; known types: {', '.join(TYPES)}")
    if type == "actor":
        return ask_actor(scene, rng)
    if type in OPEN:
        return ask_about(type, scene, rng)
    if type == "choice":
        return ask_choice(scene, rng)
    return (ask_order if type == "order" else ask_exist)(scene, rng, bool(rng.integers(2)))
