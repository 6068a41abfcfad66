"""Methods that look at a video frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.engine.reads import Look
from vtw_eval.methods.base import Method
from vtw_eval.methods.budget import checked_share

Self = TypeVar("Self", bound="VideoMethod")
Reduced = tuple[Tensor, Tensor | None]
"""Which tokens of a video stay, and their hidden states if they change."""

_UNTOLD = frozenset({"smolvlm"})
"""Families that show tiles of an image and frames of a video alike."""


@dataclass(frozen=True, kw_only=True)
class VideoMethod(Method):
    """Base of methods that know the frames of a video.

    A frame is what the model makes tokens of: a pair of frames where the tower joins two (Qwen). An image, with all its
    tiles, is a video of one frame. InternVL shows the frames of a video as images: there, images of one size and
    without tiles that follow each other are the frames of a video. Tokens that stand for no patch (newlines) stay.
    """

    needs_vision: ClassVar[bool] = True
    also_needs: ClassVar[str] = "a video (an image is one frame)"

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Refuse models in which nobody can tell what a frame is.

        Raises
        ------
        ValueError
            For SmolVLM.
        """
        if anatomy.model_type in _UNTOLD:
            raise ValueError(
                f"{self.key} needs to know the frames of a video, and {anatomy.model_type} shows them as images, "
                "which nothing tells from the tiles of one image."
            )
        return self

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the first, since it is enough to know places."""
        return (0,)


@dataclass(frozen=True, kw_only=True)
class FrameMethod(VideoMethod):
    """Base of methods that reduce each video of a prompt on its own, before the first layer.

    A subclass declares its key and :meth:`reduce`.
    """

    reads = Reads.HIDDEN | Reads.TOWER
    question_independent = True

    def layers(self, num_layers: int) -> Sequence[int]:
        """Before the first layer."""
        return (0,)

    def score(self, view: LayerView) -> Tensor | None:
        """Return a number for each token of the prompt, ``[rows, tokens]``, that :meth:`reduce` needs, or None."""
        return None

    def reduce(self, view: LayerView, states: Tensor, score: Tensor) -> Reduced:
        """Return which tokens of a video stay, and what they become.

        Parameters
        ----------
        view
            What else may be looked at.
        states
            Hidden states of the video's tokens, ``[frames, tokens, width]``, the same place of all frames in a column;
            of width 0 if they are not read.
        score
            What :meth:`score` gave of them, ``[frames, tokens]``; zeros if nothing.

        Returns
        -------
        keep : Tensor
            Boolean ``[frames, tokens]``.
        states : Tensor or None
            Hidden states ``[frames, tokens, width]`` with which they go on; None if they do not change.
        """
        raise NotImplementedError

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Reduce each video."""
        if not bool(view.vision.any()):
            return view.valid
        states = view.hidden if Reads.HIDDEN in self.reads else torch.zeros(*view.index.shape, 0)
        score = self.score(view)
        score = torch.zeros_like(view.index, dtype=torch.float32) if score is None else score
        keep, hidden = view.valid.clone(), None
        for row in range(view.rows):
            for video in videos(view, row):
                stays, changed = self.reduce(view, states[row, video.to(states.device)], score[row, video])
                keep[row, video] = stays.to(keep.device)
                if changed is not None:
                    hidden = states.clone() if hidden is None else hidden
                    hidden[row, video.to(hidden.device)] = changed.to(hidden)
        return keep if hidden is None else Merge(keep, hidden)


@dataclass(frozen=True, kw_only=True)
class FrameBudget(FrameMethod):
    """Base of those to which a share or a number of tokens for each frame is given.

    Parameters
    ----------
    r
        Share of the vision tokens that is removed.
    tokens
        Number of vision tokens that stay for each frame, in the mean over a video, instead of ``r``.
    """

    published: ClassVar[float] = 0.5
    """Share that is removed where neither is given."""

    r: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        share = checked_share(self.r, self.tokens)
        object.__setattr__(self, "r", self.published if self.r is None and self.tokens is None else share)

    def scaled(self, strength: float, num_layers: int) -> FrameBudget:
        """Remove this share."""
        return replace(self, r=round(strength, 6), tokens=None)

    def share(self, tokens: int) -> float:
        """Return the share that stays of frames of so many tokens, 0..1."""
        if self.tokens is not None:
            return min(self.tokens / tokens, 1.0)
        assert self.r is not None, "__post_init__ fills it in"
        return 1 - self.r


def videos(view: LayerView, row: int) -> list[Tensor]:
    """Return the places of each video's tokens, long ``[frames, tokens]``, of a row of the prompt.

    Raises
    ------
    ValueError
        If the frames of a video have different numbers of tokens, or do not stand one after another.
    """
    image, frame, tile = view.tower.places[row, :, :3].unbind(-1)
    found: list[Tensor] = []
    joins = False
    for number in range(int(image.max()) + 1):
        own = (image == number).nonzero().flatten()
        frames = int(frame[own].max()) + 1
        video = own.view(frames, -1) if len(own) % frames == 0 else own[None]
        if not torch.equal(frame[video], torch.arange(frames, device=own.device)[:, None].expand_as(video)):
            raise ValueError(f"{view.method}: the frames of a video do not have as many tokens each.")
        joined = joins
        joins = view.tower.frames_are_images and not bool(tile[own].any())
        if joins and joined and found[-1].shape[1] == video.shape[1]:
            found[-1] = torch.cat([found[-1], video])
        else:
            found.append(video)
    return found


def note_products(view: LayerView, flops: int) -> None:
    """Note the FLOPs of matrix products of a method's own whose sizes only the prompt tells."""
    if flops:
        view.looks.append(Look(Reads.HIDDEN, view.layer, view.index.shape[1], flops=flops))
