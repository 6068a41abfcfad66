"""Conversations of several people about one model."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vtw_eval.chat.model import ChatModel
from vtw_eval.chat.sides import Sides
from vtw_eval.media import is_video

PIXELS = 50_000_000
"""The largest picture that is opened: a small file can hold one that fills the memory."""


@dataclass
class Seat:
    """Where one person talks."""

    sides: Sides
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end the answer under way."""


class Desk:
    """Holds a number of conversations, whose KV caches take memory; the one unused for longest goes first.

    Parameters
    ----------
    model
        The model.
    specs
        Methods of a new conversation.
    size
        Conversations that are held.
    """

    def __init__(self, model: ChatModel, specs: Sequence[str], size: int) -> None:
        self.model = model
        self.specs = tuple(specs)
        self.size = size
        self._seats: OrderedDict[str, Seat] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._seats)

    def seat(self, person: str) -> Seat:
        """Return the conversation of a person; a new one if there is none, or none any more."""
        with self._lock:
            if person in self._seats:
                self._seats.move_to_end(person)
                return self._seats[person]
        made = Seat(Sides(self.model, self.specs))
        with self._lock:
            self._seats[person] = made
            while len(self._seats) > self.size:
                self._seats.popitem(last=False)
        return made

    def stop(self, person: str) -> None:
        """End the answer that somebody gets, if any."""
        with self._lock:
            if person in self._seats:
                self._seats[person].stop.set()

    def leave(self, person: str) -> None:
        """End a conversation, and free what it holds."""
        with self._lock:
            if person in self._seats:
                self._seats.pop(person).stop.set()


def check_upload(path: str, megabytes: float) -> None:
    """Refuse a file that is no picture or video, or too big.

    Raises
    ------
    ValueError
        With the limit.
    """
    size = Path(path).stat().st_size / 1e6
    if size > megabytes:
        raise ValueError(f"the file has {size:.1f} MB; up to {megabytes:g} MB are taken.")
    if is_video(path):
        return
    with Image.open(path) as image:  # reads its head only
        if image.width * image.height > PIXELS:
            raise ValueError(
                f"the picture has {image.width} x {image.height} pixels; up to {PIXELS / 1e6:g} million are taken."
            )
