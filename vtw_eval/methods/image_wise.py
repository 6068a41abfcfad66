"""Methods that choose among the vision tokens of each image, before the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads
from vtw_eval.engine.calls import parameters
from vtw_eval.engine.reads import Look
from vtw_eval.methods.base import Method, Position, kept_count, precise
from vtw_eval.methods.budget import checked_share, runs

Self = TypeVar("Self", bound="ImageWise")


@dataclass(frozen=True)
class Image:
    """An image of a prompt, or a frame of a video, as a method sees it: its n vision tokens in order."""

    view: LayerView = field(repr=False)
    row: int
    slots: Tensor
    """Which of the row's tokens, long ``[n]``."""
    values: tuple[Tensor, ...]
    """What :meth:`ImageWise.look` gave, at these tokens, ``[n, ...]`` each."""

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def hidden(self) -> Tensor:
        """What enters the decoder for them, ``[n, width]``, float32 or finer; the method declares ``Reads.HIDDEN``."""
        return precise(self.view.hidden[self.row, self.slots.to(self.view.hidden.device)])

    @property
    def question(self) -> Tensor:
        """The same for the text behind the row's last vision token, ``[words, width]``."""
        return precise(self.view.hidden[self.row, self.view.instruction[self.row].to(self.view.hidden.device)])

    def cosines(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the cosine of each of ``one``, ``[a, width]``, with each of ``other``, ``[b, width]``; ``[a, b]``."""
        flops = 2 * len(one) * len(other) * one.shape[1]
        self.view.looks.append(Look(Reads.HIDDEN, self.view.layer, self.view.index.shape[1], flops=flops))
        return normalize(precise(one), dim=-1) @ normalize(precise(other), dim=-1).T


@dataclass(frozen=True)
class Picked:
    """What is left of an image of n vision tokens."""

    at: Tensor
    """Where each of m tokens that are left stands, by number 0..n-1, all different; long ``[m]``."""
    states: Tensor | None = None
    """What they are, ``[m, width]``, in the order in which a method puts them; None for what they were."""


@dataclass(frozen=True, kw_only=True)
class ImageWise(Method):
    """Base of methods that choose among the vision tokens of each image for itself, before the first layer.

    A subclass declares its key, :meth:`look` and :meth:`choose`. Images are those that the tower tells apart, a frame
    of a video counts as one; where a method does not read the tower, unbroken runs of vision tokens. The tiles of an
    image are one set, ranked together. Newlines between them, which carry a placeholder and show nothing, go first.

    Parameters
    ----------
    r
        Share of the vision tokens of each image that is removed, halves of what stays rounded up.
    tokens
        Number of vision tokens that stay for each image, all where it has no more, instead of ``r``.
    position
        "rearrange" numbers tokens anew without gaps, as codes for LLaVA do; "keep" keeps rotary positions, as codes
        for Qwen2.5-VL do. The latter is the default where positions have several axes (M-RoPE) or the decoder adds
        vision features by place (DeepStack), else the former.
    """

    default_r: ClassVar[float | None] = None
    """Share that is removed where neither it nor a number is given."""
    default_tokens: ClassVar[int | None] = None
    """Number that stays where neither is given; a method without both defaults decides itself."""
    reorders: ClassVar[bool] = False
    """Whether states that go on are not those of the tokens at whose places they stand."""
    needs_vision: ClassVar[bool] = True
    reads = Reads.TOWER

    r: float | None = None
    tokens: int | None = None
    position: Position | None = None

    def __post_init__(self) -> None:
        if self.r is None and self.tokens is None:
            object.__setattr__(self, "r", self.default_r)
            object.__setattr__(self, "tokens", self.default_tokens)
        if self.r is not None or self.tokens is not None:
            checked_share(self.r, self.tokens)

    def look(self, view: LayerView) -> tuple[Tensor, ...]:
        """Return what the choice needs of the vision tokens of all images, ``[rows, tokens, ...]`` each."""
        raise NotImplementedError

    def choose(self, image: Image, count: int) -> Picked:
        """Choose among the tokens of an image.

        Parameters
        ----------
        image
            The image, of two tokens or more.
        count
            How many stay, from 1 to one less than there are. A method without defaults is asked with 0 where it shall
            decide itself.
        """
        raise NotImplementedError

    @property
    def positions(self) -> Position:
        """The ``position`` parameter."""
        return self.position or "rearrange"

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Fill in the position.

        Raises
        ------
        ValueError
            If tokens would be put in another order where the decoder adds vision features by place (DeepStack).
        """
        by_place = "deepstack_visual_embeds" in parameters(anatomy.decoder)
        fixed = by_place or _has_axes(anatomy.text_config)
        bound = replace(self, position=self.position or ("keep" if fixed else "rearrange"))
        if self.reorders and by_place and bound.position == "rearrange":
            raise ValueError(
                f"{self.key} puts vision tokens in another order, but this model adds vision features to its first "
                "layers token by token: give position=keep."
            )
        return bound

    def scaled(self: Self, strength: float, num_layers: int) -> Self | None:
        """Remove this share."""
        return replace(self, r=round(strength, 6), tokens=None)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Before the first layer."""
        return (0,)

    def empty_from(self, num_layers: int) -> int:
        """Layer 0 if all vision tokens are removed."""
        return 0 if self.r == 1 or self.tokens == 0 else num_layers

    def count(self, total: int) -> int | None:
        """Return how many of ``total`` vision tokens of an image stay, None where the method decides itself."""
        if self.tokens is not None:
            return min(self.tokens, total)
        return None if self.r is None else int(kept_count(torch.tensor(total), self.r))

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Ask :meth:`choose` for each image of which something goes."""
        acting = [
            (row, slots, count)
            for row, images in enumerate(self._images(view))
            for slots in images
            if (count := self.count(len(slots))) is None or count < len(slots)
        ]
        if not acting:
            return view.valid
        values = self.look(view) if any(count != 0 for _, _, count in acting) else ()
        keep, hidden = view.valid.clone(), None
        for row, slots, count in acting:
            shows = view.tower.places[row, slots, 0] >= 0 if Reads.TOWER in self.reads else torch.ones_like(slots) > 0
            shown, rest = slots[shows], slots[~shows]
            keep[row, slots] = False
            if count is not None and count >= len(shown):
                keep[row, torch.cat([shown, rest[: count - len(shown)]])] = True
            elif count != 0:
                image = Image(view, row, shown, tuple(value[row, shown.to(value.device)] for value in values))
                picked = self.choose(image, count or 0)
                at = shown[picked.at.to(shown.device)]
                keep[row, at] = True
                if picked.states is not None:
                    hidden = view.hidden.clone() if hidden is None else hidden
                    at = at.sort().values if self.positions == "rearrange" else at
                    hidden[row, at.to(hidden.device)] = picked.states.to(hidden)
        return keep if hidden is None else Merge(keep, hidden)

    def _images(self, view: LayerView) -> list[list[Tensor]]:
        """Return the vision tokens of each image of each row."""
        if Reads.TOWER not in self.reads:
            return [runs(vision) for vision in view.vision]
        return [_by_place(places, vision) for places, vision in zip(view.tower.places, view.vision, strict=True)]


def _by_place(places: Tensor, vision: Tensor) -> list[Tensor]:
    """Return the vision tokens of each image and frame of a row; a newline belongs to what stands before it."""
    slots = vision.nonzero().flatten()
    images: dict[tuple[int, ...], list[int]] = {}
    current: tuple[int, ...] | None = None
    leading: list[int] = []
    for slot, place in zip(slots.tolist(), places[slots, :2].tolist(), strict=True):
        current = tuple(place) if place[0] >= 0 else current
        (leading if current is None else images.setdefault(current, [])).append(slot)
    found = list(images.values()) or [[]]
    found[0] = leading + found[0]
    return [slots.new_tensor(image) for image in found if image]


def _has_axes(config: Any) -> bool:
    """Whether rotary positions have several axes."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return "mrope_section" in rope
