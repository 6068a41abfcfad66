"""Prompts of documents that were opened before, so that answers of a book are found without opening anything again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from vtw_eval.models.asked import Document
from vtw_eval.models.family import DocumentPrompt
from vtw_eval.models.requests import Numbered, Request

CHECKED = 32
"""Of so many documents one is opened all the same."""


class Remembered:
    """Prompts by what is known of a document before it is opened: its name, its words and the bytes of its media.

    That the same document becomes the same prompt is what every harness relies on; still, one in :data:`CHECKED` is
    opened and compared, and if it differs, nothing is remembered any more.

    Parameters
    ----------
    log
        Told if a document has become another prompt.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._of: Hashable = None
        self._known: dict[Hashable, tuple[DocumentPrompt, str]] = {}
        self._distrusted = False

    def begin(self, of: Hashable) -> None:
        """Forget everything, unless prompts of the same were remembered last."""
        if of != self._of:
            self._of, self._known, self._distrusted = of, {}, False

    def keep(self, request: Request, prompt: DocumentPrompt, shown: str) -> None:
        """Remember the prompt of a request, without its media, and a digest of these."""
        if request.asks and request.media and not self._distrusted:
            without = DocumentPrompt(prompt.text, notes=prompt.notes)
            self._known[_key(request)] = without, shown

    def holds(self, items: Sequence[Numbered]) -> bool:
        """Whether the prompts of all requests are remembered."""
        return all(_key(request) in self._known for _, request in items)

    def find(self, items: Sequence[Numbered], again: Callable[[Request], tuple[str, str]]) -> list[Document] | None:
        """Return documents without media, None if any of them is not remembered, or has changed.

        Parameters
        ----------
        items
            Requests and their places.
        again
            Opens a document; returns its text and the digest of its media.
        """
        found: list[Document] = []
        for place, request in items:
            known = self._known.get(_key(request))
            if known is None:
                return None
            prompt, shown = known
            if place % CHECKED == 0 and again(request) != (prompt.text, shown):
                self._log(f"{request.name} is not asked as before: every document is opened for each method")
                self._known, self._distrusted = {}, True
                return None
            found.append(Document.of(place, request, prompt, shown))
        return found


def _key(request: Request) -> Hashable:
    return request.name, request.asks, request.media, repr(sorted(request.generation.items()))
