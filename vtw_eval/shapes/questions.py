"""Questions about a scene, with their answers, in the wording of the field's benchmarks.

A *type* is one of :data:`TYPES`. ``exist``, ``count`` and ``color`` are yes/no questions, ``choice`` has four options,
``open_*`` want one word, ``caption`` names every object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from vtw_eval.shapes.scenes import COLORS, KINDS, MAX_ITEMS, SHAPES, Item, Scene

_T = TypeVar("_T")

TYPES = ("exist", "count", "color", "choice", "open_color", "open_shape", "open_count", "caption")
"""Question types."""
YES_NO = ("exist", "count", "color")
"""The types that are answered with Yes or No."""
OPEN = ("open_color", "open_shape", "open_count")
"""The types that are answered with one word."""
NEGATIVES = ("random", "adversarial")
"""How the absent kind of an ``exist`` question may be drawn from a scene alone."""

SHORT_PROMPT = "\nAnswer the question using a single word or phrase."
"""What MME's, POPE's and VQA's tasks append to a question."""
LETTER_PROMPT = "\nAnswer with the option's letter from the given choices directly."
"""What AI2D's task appends to a question."""
CAPTION_PROMPT = "Describe the image."

_NUMBERS = tuple(str(n) for n in range(1, MAX_ITEMS + 1))
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes
    ----------
    type
        One of :data:`TYPES`.
    text
        The question without options and without the benchmark's appended instruction.
    answer
        What the model should say: ``Yes``/``No``, a word, an option's letter, or a caption.
    options
        The four options of a ``choice`` question, else empty.
    """

    type: str
    text: str
    answer: str
    options: tuple[str, ...] = ()


def prompt(question: Question) -> str:
    """Return the full user text of a question, as lmms-eval's tasks compose it.

    Parameters
    ----------
    question
        The question.

    Returns
    -------
    str
        Question, options and instruction.
    """
    if question.type == "caption":
        return question.text
    if question.type == "choice":
        lines = "\n".join(f"{letter}. {o}" for letter, o in zip(_LETTERS, question.options, strict=True))
        return f"{question.text}\n{lines}{LETTER_PROMPT}"
    return f"{question.text}{SHORT_PROMPT}"


def exist_text(kind: tuple[str, str]) -> str:
    """Return the wording of an ``exist`` question about a (colour, shape) pair."""
    return f"Is there a {kind[0]} {kind[1]} in the image?"


def caption_text(scene: Scene) -> str:
    """Return the caption of a scene: its objects in the order of :data:`~vtw_eval.shapes.scenes.KINDS`."""
    kinds = sorted((item.kind for item in scene.items), key=KINDS.index)
    return " and ".join(f"a {color} {shape}" for color, shape in kinds)


class Kinded(Protocol):
    """An object of any sort of scene."""

    @property
    def kind(self) -> tuple[str, str]:
        """The (colour, shape) pair."""


class Shown(Protocol):
    """A scene of any sort."""

    @property
    def items(self) -> Sequence[Kinded]:
        """Its objects."""


def absent_kinds(scene: Shown, how: str) -> list[tuple[str, str]]:
    """Return the kinds that an ``exist`` question with answer No may ask about.

    Parameters
    ----------
    scene
        The scene.
    how
        ``random``: every absent kind. ``adversarial``: the absent kinds that are easiest to confuse, that is, those
        whose colour and whose shape both occur in the scene (on different objects), or, failing that, one of the two.

    Returns
    -------
    list of (str, str)
        Never empty, as a scene cannot hold all kinds.
    """
    if how not in NEGATIVES:
        raise ValueError(f"unknown way to draw negatives {how!r}; known: {', '.join(NEGATIVES)}")
    present = {item.kind for item in scene.items}
    absent = [kind for kind in KINDS if kind not in present]
    if how == "random":
        return absent
    colors, shapes = {c for c, _ in present}, {s for _, s in present}
    likeness = [(kind[0] in colors) + (kind[1] in shapes) for kind in absent]
    return [kind for kind, same in zip(absent, likeness, strict=True) if same == max(likeness)]


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """Draw one of some options."""
    return options[int(rng.integers(len(options)))]


def _unique(scene: Scene, attribute: str) -> list[Item]:
    """Items that their value of an attribute singles out."""
    counts = Counter(getattr(item, attribute) for item in scene.items)
    return [item for item in scene.items if counts[getattr(item, attribute)] == 1]


def yes_no(answer: bool) -> str:
    """Return Yes or No."""
    return "Yes" if answer else "No"


def ask_exist(scene: Scene, rng: np.random.Generator, answer: bool, negatives: str = "adversarial") -> Question:
    """Ask whether a kind of object is there. ``negatives`` is explained in :func:`absent_kinds`."""
    kinds = [item.kind for item in scene.items] if answer else absent_kinds(scene, negatives)
    kind = pick(rng, kinds)
    return Question("exist", exist_text(kind), yes_no(answer))


def ask_count(scene: Scene, rng: np.random.Generator, answer: bool) -> Question:
    """Ask whether the number of objects is a given one.

    A wrong number is one off, with 1 and 5 as neighbours: then every number is asked about equally often whatever the
    answer, and the text alone tells nothing. The scene must hold 1 to 5 objects.
    """
    count = len(scene.items)
    if not answer:
        count = (count - 1 + int(rng.choice([-1, 1]))) % MAX_ITEMS + 1
    return Question("count", f"Is the number of objects in the image {count}?", yes_no(answer))


def ask_color(scene: Scene, rng: np.random.Generator, answer: bool) -> Question | None:
    """Ask whether an object, named by its shape, has a colour; None if no shape occurs just once."""
    items = _unique(scene, "shape")
    if not items:
        return None
    item = pick(rng, items)
    color = item.color
    if not answer:
        others = sorted({other.color for other in scene.items} - {color})
        if not others or rng.random() < 0.5:
            others = [name for name in COLORS if name != color]
        color = pick(rng, others)
    return Question("color", f"Is the {item.shape} {color}?", yes_no(answer))


def ask_open(type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for a colour, a shape or the number of objects; None if no object can be singled out."""
    if type == "open_count":
        return Question(type, "How many objects are there in the image?", str(len(scene.items)))
    if type not in OPEN:
        raise ValueError(f"unknown type of open question {type!r}; known: {', '.join(OPEN)}")
    items = _unique(scene, "shape" if type == "open_color" else "color")
    if not items:
        return None
    item = pick(rng, items)
    if type == "open_color":
        return Question(type, f"What color is the {item.shape}?", item.color)
    return Question(type, f"What shape is the {item.color} object?", item.shape)


def with_options(question: Question, values: Sequence[str], rng: np.random.Generator) -> Question:
    """Return an open question as one with four options: its answer and three others of some values, in any order."""
    wrong = [value for value in values if value != question.answer]
    options = [question.answer, *rng.permutation(wrong)[: len(_LETTERS) - 1].tolist()]
    options = [options[i] for i in rng.permutation(len(options))]
    return Question("choice", question.text, _LETTERS[options.index(question.answer)], tuple(options))


def ask_choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask an open question with four options; None if the kind drawn cannot be asked about this scene."""
    type = OPEN[int(rng.integers(len(OPEN)))]
    question = ask_open(type, scene, rng)
    if question is None:
        return None
    values = {"open_color": tuple(COLORS), "open_shape": SHAPES, "open_count": _NUMBERS}[type]
    return with_options(question, values, rng)


def ask(type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask a question of a type about a scene.

    Parameters
    ----------
    type
        One of :data:`TYPES`.
    scene
        The scene, 1 to 5 objects.
    rng
        Source of randomness. The answer of a yes/no question is Yes half of the time.

    Returns
    -------
    Question or None
        None if the scene allows no such question (no object can be singled out).

    Raises
    ------
    ValueError
        If the type is unknown.
    """
    if type == "exist":
        answer = bool(rng.integers(2))
        return ask_exist(scene, rng, answer, "adversarial" if rng.random() < 0.7 else "random")
    if type == "count":
        return ask_count(scene, rng, bool(rng.integers(2)))
    if type == "color":
        return ask_color(scene, rng, bool(rng.integers(2)))
    if type == "choice":
        return ask_choice(scene, rng)
    if type == "caption":
        return Question(type, CAPTION_PROMPT, caption_text(scene))
    if type in OPEN:
        return ask_open(type, scene, rng)
    raise ValueError(f"unknown question type {type!r}; known types: {', '.join(TYPES)}")
