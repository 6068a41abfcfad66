"""Scores of an open answer without a judge. Both harnesses use them.

An answer of TGIF-QA's frame questions is one word: a thing, a number, a colour or a place. Before answers are compared
they are brought to one form: lower case; apostrophes deleted, other punctuation to spaces; the articles a, an, the
deleted; the words zero to twenty to digits.
"""

from __future__ import annotations

import re
import string

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_SPACES = re.compile(rf"[{re.escape(string.punctuation)}\s]+")


def words(text: str) -> list[str]:
    """Return the words of an answer in the form in which answers are compared."""
    found = _SPACES.sub(" ", text.lower().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).split()
    return [_NUMBERS.get(word, word) for word in found if word not in _ARTICLES]


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 if prediction and answer have the same words, else 0."""
    return float(words(prediction) == words(answer))


def contains_match(prediction: str, answer: str) -> float:
    """Return 1 if the answer's words stand together somewhere in the prediction, else 0.

    Lenient towards sentences ("It is a cat."), but also towards a model that lists many things.
    """
    told, wanted = words(prediction), words(answer)
    places = range(len(told) - len(wanted) + 1)
    return float(bool(wanted) and any(told[i : i + len(wanted)] == wanted for i in places))


def scores(prediction: str, answer: str) -> dict[str, float]:
    """Return both scores by name."""
    return {"exact_match": exact_match(prediction, answer), "contains_match": contains_match(prediction, answer)}
