"""What a method reads of a model: the one declaration from which hooks, costs and limits follow."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Flag, auto

from torch import nn

from vtw_eval.anatomy import Anatomy, UnsupportedModelError, find_tower
from vtw_eval.families import DECODER_TESTED


class Reads(Flag):
    """What a method looks at beside the roles of tokens: which are text, vision, padding, and where they stand.

    Those that a method declares together are joined by ``|``. :class:`~vtw_eval.engine.LayerView` hands out what was
    declared, and nothing else.
    """

    ROLES = 0
    """Nothing but roles and places."""
    IDS = auto()
    """Token ids of the prompt, from which random numbers are drawn."""
    HIDDEN = auto()
    """Hidden states that enter the layer about to run."""
    KEYS = auto()
    """Keys of the layer about to run, before the rotary embedding."""
    ATTENTION = auto()
    """Attention of the prompt's last token in the layer about to run."""
    ATTENTION_BEFORE = auto()
    """The same in the layer before it."""
    EMBEDDINGS = auto()
    """Hidden states of the whole prompt that enter the first layer."""
    NORMED = auto()
    """Hidden states that enter the layer about to run, through the norm behind the last layer."""
    KEYS_BEFORE = auto()
    """Keys of the layer before, after the rotary embedding."""
    UNROTATED_BEFORE = auto()
    """Attention of the prompt's last token in the layer before, without the rotary embedding."""
    MEAN_QUERY = auto()
    """Attention of the mean query of some tokens in the layer about to run, without the rotary embedding."""
    ROTATED_KEYS = auto()
    """Keys of the layer about to run, after the rotary embedding."""
    VALUES_BEFORE = auto()
    """Values of the layer before."""
    ROTATION = auto()
    """Cosines and sines of the rotary embedding of the layer about to run."""
    TOWER = auto()
    """Features, attention, keys and places of the vision tower, see :class:`~vtw_eval.engine.tower.TowerView`."""

    @property
    def words(self) -> str:
        """What is read, in words: ``hidden states and keys``."""
        return " and ".join(_WORDS[part] for part in self) or "roles of tokens only"

    @property
    def before_layers(self) -> bool:
        """Whether all of it is known before the first layer runs."""
        return not self & _IN_LAYERS

    @property
    def layer_before(self) -> bool:
        """Whether any of it is of the layer before, so that what entered that has to be kept."""
        return bool(self & _BEFORE)


@dataclass(frozen=True)
class Look:
    """One time that a method read something which had to be computed for it."""

    what: Reads
    layer: int
    """Of which layer."""
    slots: int
    """Tokens of each row that the layer computed on, padding included."""
    queries: int | None = None
    """How many of each row's tokens were queries, the most of any row; None for the last token of the prompt alone.
    Of the vision tower: 1 for a CLS token, 0 for keys alone, None for the projector."""
    flops: int | None = None
    """FLOPs of its matrix products over the batch, where only the look itself can tell: of the vision tower."""


_BEFORE = Reads.ATTENTION_BEFORE | Reads.KEYS_BEFORE | Reads.UNROTATED_BEFORE | Reads.VALUES_BEFORE
_ROTARY = Reads.UNROTATED_BEFORE | Reads.MEAN_QUERY | Reads.ROTATION
_ABOUT_TO_RUN = Reads.KEYS | Reads.ATTENTION | Reads.MEAN_QUERY | Reads.ROTATED_KEYS | Reads.ROTATION
_IN_LAYERS = Reads.HIDDEN | Reads.EMBEDDINGS | Reads.NORMED | _ABOUT_TO_RUN | _BEFORE

_WORDS = {
    Reads.IDS: "token ids",
    Reads.HIDDEN: "hidden states",
    Reads.KEYS: "keys",
    Reads.ATTENTION: "attention of the layer about to run",
    Reads.ATTENTION_BEFORE: "attention of the layer before",
    Reads.EMBEDDINGS: "embeddings of the prompt",
    Reads.NORMED: "hidden states behind the last norm",
    Reads.KEYS_BEFORE: "rotated keys of the layer before",
    Reads.UNROTATED_BEFORE: "unrotated attention of the layer before",
    Reads.MEAN_QUERY: "unrotated attention of a mean query",
    Reads.ROTATED_KEYS: "rotated keys",
    Reads.VALUES_BEFORE: "values of the layer before",
    Reads.ROTATION: "rotary angles",
    Reads.TOWER: "the vision tower",
}


def check_readable(reads: Reads, anatomy: Anatomy, who: str) -> None:
    """Check that a model has what is read of it, before it runs.

    Parameters
    ----------
    reads
        What is read.
    anatomy
        The model.
    who
        The method, for messages.

    Raises
    ------
    ValueError
        If it has not.
    """
    if Reads.TOWER in reads:
        if anatomy.model_type in DECODER_TESTED:
            raise ValueError(f"{who} reads the vision tower, and nothing is tested of that of {anatomy.model_type}.")
        try:
            find_tower(anatomy)
        except UnsupportedModelError as error:
            raise ValueError(f"{who} reads the vision tower: {error}") from None
    attending = [layer for i, layer in enumerate(anatomy.layers) if anatomy.has_own_keys(i)]
    if Reads.KEYS in reads and not all(map(_has_keys, attending)):
        raise ValueError(
            f"{who} reads keys, but this model's layers have no key projection of their own (self_attn.k_proj)."
        )
    if Reads.NORMED in reads and not hasattr(anatomy.decoder, "norm"):
        raise ValueError(f"{who} reads hidden states behind the last norm, but this model's decoder has no .norm.")
    if (rotary := reads & _ROTARY) and not all(map(_gets_rotation, anatomy.layers)):
        raise ValueError(
            f"{who} reads {rotary.words}, but this model's layers do not get the rotary embedding from the decoder "
            "(position_embeddings)."
        )


def _has_keys(layer: nn.Module) -> bool:
    return hasattr(getattr(layer, "self_attn", None), "k_proj")


def _gets_rotation(layer: nn.Module) -> bool:
    return "position_embeddings" in inspect.signature(layer.forward).parameters
