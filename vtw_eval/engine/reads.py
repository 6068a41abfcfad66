"""What a method reads of a model: the one declaration from which hooks, costs and limits follow."""

from __future__ import annotations

from enum import Flag, auto


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
