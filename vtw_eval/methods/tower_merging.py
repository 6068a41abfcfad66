"""What methods share that merge the tower's features into new vision tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import precise
from vtw_eval.methods.image_wise import Image, ImageWise

Self = TypeVar("Self", bound="TowerMerging")


@dataclass(frozen=True, kw_only=True)
class TowerMerging(ImageWise):
    """Base of methods that merge features of the vision tower before the projector.

    :meth:`look` of a subclass begins with :meth:`merged`.

    Parameters
    ----------
    space
        "tower" merges the features that the projector takes, as published, for models that project one patch of the
        last layer but one at a time (LLaVA, LLaVA-NeXT, Video-LLaVA); "decoder" merges what the projector has made of
        them, for all.
    """

    reorders: ClassVar[bool] = True
    reads = Reads.TOWER | Reads.HIDDEN
    question_independent = True

    space: Literal["tower", "decoder"] = "tower"

    def bind(self: Self, anatomy: Anatomy) -> Self:
        """Check the space.

        Raises
        ------
        ValueError
            If the model does not project features of the last layer but one.
        """
        if self.space == "tower" and (layer := getattr(anatomy.model.config, "vision_feature_layer", None)) != -2:
            raise ValueError(
                f"{self.key} merges features of the vision tower's last layer but one and projects them, but this "
                f"model projects {'others' if layer is None else f'those of layer {layer}'}: give space=decoder, "
                "which merges behind the projector."
            )
        return super().bind(anatomy)

    def merged(self, view: LayerView) -> Tensor:
        """Return what is merged, ``[rows, tokens, width]``."""
        return view.tower.features(-2) if self.space == "tower" else precise(view.hidden)

    def entering(self, image: Image, features: Tensor) -> Tensor:
        """Return what enters the decoder for merged features, ``[m, width]``."""
        return image.view.tower.project(features[:, None]) if self.space == "tower" else features
