"""Methods that compare patches with the question in CLIP's space, where a CLIP is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method, precise

if TYPE_CHECKING:
    from vtw_eval.methods.clip_text import TextSide

Self = TypeVar("Self", bound="ClipScored")

PATCHES = -2
"""Layer of the tower whose patches are compared, as ``vision_feature_layer`` of transformers: the last but one."""


class StandInText:
    """For models of random weights: some number of each patch."""

    def compare(self, view: LayerView, row: int, patches: Tensor, *, cosine: bool) -> Tensor:
        """Return their means."""
        return precise(patches).mean(dim=-1)


@dataclass(frozen=True, kw_only=True)
class ClipScored(Method):
    """What methods have in common whose published form reads CLIP's text tower; a second base of them.

    Parameters
    ----------
    text
        CLIP checkpoint whose vision tower the model has, such as ``openai/clip-vit-large-patch14-336``, or its folder.
        None: what enters the decoder is compared instead.
    """

    text: str | None = None

    @property
    def reads(self) -> Reads:
        """Hidden states; with CLIP the vision tower, and ids, of which the question is made."""
        return Reads.HIDDEN if self.text is None else Reads.HIDDEN | Reads.TOWER | Reads.IDS

    @cached_property
    def clip(self) -> TextSide:
        """The text tower, which :meth:`bind` opens."""
        raise ValueError(f"{self}: its text tower is opened for a model, by bind().")

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Open the text tower.

        Raises
        ------
        ValueError
            See :func:`vtw_eval.methods.clip_text.clip_text`.
        """
        bound = super().bind(anatomy)
        if self.text is None:
            return bound
        if "clip" in vars(self):
            return bound._with(self.clip)
        from vtw_eval.methods.clip_text import clip_text  # transformers' CLIP takes a while to load

        return bound._with(clip_text(self.text, anatomy))

    def stand_in(self: Self, anatomy: Anatomy) -> Self:
        """Return the method with something in the place of the text tower."""
        return self if self.text is None else self._with(StandInText())

    def _with(self: Self, clip: TextSide) -> Self:
        """Return the method with a text tower that no parameter holds."""
        twin = replace(self)
        vars(twin)["clip"] = clip
        return twin

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layer of whose patches CLIP's norm and projection make what is compared."""
        return (PATCHES,)
