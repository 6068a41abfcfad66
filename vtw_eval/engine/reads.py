"""What a method reads of a model: the one declaration from which hooks, costs and limits follow."""

from __future__ import annotations

from enum import Flag, auto

from torch import nn

from vtw_eval.anatomy import Anatomy


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
    TOWER = auto()
    """Attention or features of the vision tower."""

    @property
    def words(self) -> str:
        """What is read, in words: ``hidden states and keys``."""
        return " and ".join(_WORDS[part] for part in self) or "roles of tokens only"

    @property
    def before_layers(self) -> bool:
        """Whether all of it is known before the first layer runs."""
        return not self & _IN_LAYERS


_IN_LAYERS = Reads.HIDDEN | Reads.KEYS | Reads.ATTENTION | Reads.ATTENTION_BEFORE

_WORDS = {
    Reads.IDS: "token ids",
    Reads.HIDDEN: "hidden states",
    Reads.KEYS: "keys",
    Reads.ATTENTION: "attention of the layer about to run",
    Reads.ATTENTION_BEFORE: "attention of the layer before",
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
        raise ValueError(f"{who} reads the vision tower, which is not possible yet.")
    if Reads.KEYS in reads and not all(map(_has_keys, anatomy.layers)):
        raise ValueError(
            f"{who} reads keys, but this model's layers have no key projection of their own (self_attn.k_proj)."
        )


def _has_keys(layer: nn.Module) -> bool:
    return hasattr(getattr(layer, "self_attn", None), "k_proj")
