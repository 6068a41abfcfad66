"""Marks such as ``<image 2>`` in the questions of MMMU and its kin, and what lmms-eval makes of them.

Its chat protocol puts the pictures of a question into its text in the order of their numbers, one for each number.
Where a picture is named twice, the words between the last two pictures are lost; where pictures are named out of order,
they stand at each other's marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vtw_eval.media import Media

WORDS_LOST = "words between the marks of pictures are lost"
PICTURES_SWAPPED = "pictures stand at each other's marks"
"""Reasons, as they stand in results."""

_MARK = re.compile(r"<image (\d+)>")
_MOST = 7
"""Pictures of a question, by lmms-eval's code and the dataset's columns."""


class AtMarks:
    """Stands for a task's function from a document to messages.

    Parameters
    ----------
    show
        The function.
    media
        "harness": as the function shows a document, and :attr:`notes` tells what is wrong. "upright": each picture
        stands at its mark, and as often as it is named.
    """

    def __init__(self, show: Callable[[Any], Any], media: Media) -> None:
        self.show = show
        self.media = media
        self.notes: tuple[str, ...] = ()
        """Reasons why the last document was shown otherwise than it is written."""

    def __call__(self, document: Any) -> Any:
        """Return the messages of a document."""
        self.notes = ()
        given = self.show(document)
        other = renumber_marks(document)
        if other is None or not _is_interleaved(given):
            return given
        right = self.show(other)
        if self.media == "upright":
            return right
        reasons = []
        if _texts(given) != _texts(right):
            reasons.append(WORDS_LOST)
        if not _same_pictures(_pictures(given), _pictures(right)):
            reasons.append(PICTURES_SWAPPED)
        self.notes = tuple(reasons)
        return given


def renumber_marks(document: Any) -> dict[str, Any] | None:
    """Return a document whose marks have the numbers 1, 2, ... in their order, each with its picture.

    Parameters
    ----------
    document
        ``question`` and ``options`` with marks, and a column ``image_1`` for the mark ``<image 1>``, and so on.

    Returns
    -------
    dict or None
        None if the marks have these numbers already, if there is no such column, or if there are more than seven marks,
        which lmms-eval's code does not know.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("question"), str):
        return None
    texts = {name: document[name] for name in ("question", "options") if name in document}
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    numbers = [number for text in texts.values() for number in _MARK.findall(text)]
    if numbers == [str(i + 1) for i in range(len(numbers))] or len(numbers) > _MOST:
        return None
    if any(document.get(f"image_{number}") is None for number in numbers):
        return None
    places = iter(range(1, len(numbers) + 1))
    marked = {name: _MARK.sub(lambda _: f"<image {next(places)}>", text) for name, text in texts.items()}
    pictures = {f"image_{i}": document[f"image_{number}"] for i, number in enumerate(numbers, start=1)}
    return {**document, **marked, **pictures}


def _parts(messages: Any, kind: str) -> list[Any]:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return []
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") == kind]


def _texts(messages: Any) -> list[str]:
    return " ".join(str(part.get("text")) for part in _parts(messages, "text")).split()


def _pictures(messages: Any) -> list[Any]:
    return [part.get("url") for part in _parts(messages, "image")]


def _is_interleaved(messages: Any) -> bool:
    """Tell whether pictures stand in place of their marks, which else stay in the text and name them."""
    texts = [str(part.get("text")) for part in _parts(messages, "text")]
    return bool(_parts(messages, "image")) and not any(_MARK.search(text) for text in texts)


def _same_pictures(given: Sequence[Any], right: Sequence[Any]) -> bool:
    """Tell whether the first pictures are those that belong there; how many there are does not matter."""
    return all(_content(a) == _content(b) for a, b in zip(given, right, strict=False))


def _content(picture: Any) -> Any:
    return (picture.size, picture.mode, picture.tobytes()) if hasattr(picture, "tobytes") else picture
