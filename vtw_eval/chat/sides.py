"""Conversations side by side: the same questions about the same pictures, each with a method of its own."""

from __future__ import annotations

from collections.abc import Sequence

from vtw_eval.chat.model import ChatModel
from vtw_eval.chat.pictures import Eye
from vtw_eval.chat.session import Session
from vtw_eval.media import Visual, is_video


class Sides:
    """Sessions that are asked the same.

    Parameters
    ----------
    model
        The model.
    specs
        Methods, one or more.

    Raises
    ------
    ValueError
        See :meth:`ChatModel.method`.
    """

    def __init__(self, model: ChatModel, specs: Sequence[str]) -> None:
        self.model = model
        self.eye = Eye()
        self.media: tuple[Visual, ...] = ()
        self.sessions: list[Session] = []
        self.change(specs)

    @property
    def begun(self) -> bool:
        """Whether something was said."""
        return any(session.turns for session in self.sessions)

    def change(self, specs: Sequence[str]) -> None:
        """Take other methods and begin anew, about the same pictures, whose encoding is kept.

        Raises
        ------
        ValueError
            See :meth:`ChatModel.method`; the conversation then stays as it was.
        """
        if not specs:
            raise ValueError("name a method, or several.")
        methods = [self.model.method(spec) for spec in specs]
        self.sessions = [Session(self.model, method, self.media) for method in methods]

    def show(self, *media: Visual) -> None:
        """Begin anew about other pictures or videos, or none.

        Raises
        ------
        FileNotFoundError
            If a file is not there.
        ValueError
            If it is neither a picture nor a video.
        """
        for visual in media:
            is_video(visual)
        self.media = media
        self.sessions = [Session(self.model, session.method, media) for session in self.sessions]
