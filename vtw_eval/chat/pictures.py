"""What a method has kept of the picture in a conversation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vtw_eval.chat.session import Session
from vtw_eval.models.family import Encoded
from vtw_eval.report.render.patches import drawn, sheet
from vtw_eval.show.overlays import overlays
from vtw_eval.show.sight import Sight, look
from vtw_eval.show.steps import steps


@dataclass(frozen=True)
class Kept:
    """The picture as some layers get it."""

    caption: str
    """Which layers, and how many vision tokens."""
    pixels: NDArray[np.uint8]
    """``[height, width, 3]``; tiles and frames side by side."""


class Eye:
    """Draws what was kept; what a model sees of a prompt is looked up once for all methods."""

    def __init__(self) -> None:
        self._seen: tuple[Encoded, Sight] | None = None

    def pictures(self, session: Session) -> list[Kept]:
        """Return a picture for each set of tokens that layers get; none where nothing is shown.

        Runs the first prompt once more the first time, to see the pictures as the tower gets them.

        Raises
        ------
        ValueError
            If the model's tower cannot be read.
        """
        encoded, trace = session.encoded, session.trace
        if encoded is None or trace is None or trace.reduction is None or not bool(trace.reduction.prompt.vision.any()):
            return []
        sight, vision = self._sight(session, encoded), trace.reduction.prompt.vision[0].cpu()
        found = steps(trace)
        return [
            Kept(
                f"{step.layers}: {int((step.kept & vision).sum())} of {int(vision.sum())} vision tokens",
                sheet([drawn(panel.pixels, over) for panel, over in zip(sight.panels, each, strict=True)]),
            )
            for step, each in zip(found, overlays(sight, found), strict=True)
        ]

    def _sight(self, session: Session, encoded: Encoded) -> Sight:
        if self._seen is None or not torch.equal(self._seen[0].inputs["input_ids"], encoded.inputs["input_ids"]):
            with session.model.lock:
                self._seen = (encoded, look(session.model.family, encoded))
        return self._seen[1]
