"""A conversation: its later turns go on from the KV cache that a method has left of the first one.

The method chooses in the first turn, which shows the picture. Text that follows runs on what is left in each layer, so
that a later answer is that of the whole conversation in which the removed tokens are hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine.calls import POSITIONS, cache_of_output, changed, with_cache
from vtw_eval.engine.prefix import Prefix, numbered_from, numbering
from vtw_eval.families import BIDIRECTIONAL


@dataclass(frozen=True)
class Held:
    """What a KV cache holds of a conversation."""

    ids: Tensor
    """Long ``[1, tokens]``: what the cache stands for, removed tokens among them. The last token of an answer is not,
    since it has not run."""
    cache: Cache
    """Keys and values; later turns change it."""
    first: int
    """Tokens of the first turn's prompt, which cannot be forgotten."""
    deltas: Tensor | None
    """Of M-RoPE, see :class:`vtw_eval.engine.prefix.Prefix`."""
    steady: bool
    """Whether an answer stands at the positions that follow those of the words before it."""


class TurnError(ValueError):
    """A conversation cannot go on from its cache: run it from the start; the message says why."""


def first_turn(model: nn.Module, inputs: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[Tensor, Held]:
    """Generate from a prompt, and keep its cache; with a method installed, under it.

    Parameters
    ----------
    model
        A transformers model that generates.
    inputs
        Of ``generate``: ``input_ids`` and ``attention_mask`` of one prompt without padding, and its media.
    arguments
        The other ones: one beam, and a KV cache.

    Returns
    -------
    tokens : Tensor
        The new ones, long ``[new]``.
    held : Held
        What goes on.

    Raises
    ------
    UpstreamChangedError
        If ``generate`` gives back no KV cache, or one of other tokens.
    """
    ids = inputs["input_ids"]
    for module in numbering(model):
        module.rope_deltas = None  # a prompt that shows nothing would go on from those of the last one
    with _watched(model) as steady:
        tokens, cache = _generated(model, inputs, arguments, ids)
    deltas = [module.rope_deltas for module in numbering(model)]
    own = deltas[0].clone() if deltas and deltas[0] is not None else None
    held = Held(torch.cat([ids, tokens[None, :-1]], dim=1), cache, ids.shape[1], own, all(steady))
    return tokens, held


def next_turn(model: nn.Module, held: Held, ids: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, Held]:
    """Go on with text behind what is held; the method of the first turn must be installed.

    Parameters
    ----------
    model, arguments
        As before.
    held
        Of the turn before. It is used up, whatever happens.
    ids
        Long ``[1, tokens]``: the whole conversation up to the new answer; it begins with what is held, or with less of
        it, at least the first prompt.

    Returns
    -------
    tokens : Tensor
        The new ones, long ``[new]``.
    held : Held
        What goes on.

    Raises
    ------
    TurnError
        If the answer would not be that of the whole conversation.
    """
    anatomy = find_anatomy(model)
    if anatomy.model_type in BIDIRECTIONAL:
        raise TurnError(f"tokens of {anatomy.model_type} see some that follow them")
    if not anatomy.plain_cache:
        raise TurnError(f"{anatomy.model_type} keeps more of a prompt than keys and values, or shares them")
    if not held.steady:
        raise TurnError("positions in a video are larger than those of the first words behind it")
    _forget(held, ids)
    prefix = Prefix(held.ids, torch.ones_like(held.ids, dtype=torch.bool), held.cache, held.deltas)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with numbered_from(model, prefix, torch.zeros(1, dtype=torch.long)):
        tokens, cache = _generated(model, with_cache(model, inputs, held.cache), arguments, ids)
    return tokens, Held(torch.cat([ids, tokens[None, :-1]], dim=1), cache, held.first, held.deltas, steady=True)


def common(held: Held, ids: Tensor) -> int:
    """Return with how many of the tokens that are held a conversation, ``[1, tokens]``, begins."""
    most = min(held.ids.shape[1], ids.shape[1])
    differ = (held.ids[0, :most] != ids[0, :most].to(held.ids.device)).nonzero()
    return int(differ[0]) if len(differ) else most


def _forget(held: Held, ids: Tensor) -> None:
    """Take from the cache what the conversation does not begin with: answers whose text has become other tokens."""
    # At least one token has to run.
    same = min(common(held, ids), ids.shape[1] - 1)
    if same < held.first:
        raise TurnError("the conversation begins otherwise than before: its template changes what was said")
    if surplus := held.ids.shape[1] - same:
        try:
            held.cache.crop(-surplus)
        except RuntimeError as error:
            raise TurnError("the template changes an answer, which a sliding window cannot forget") from error


def _generated(
    model: Any, inputs: Mapping[str, Any], arguments: Mapping[str, Any], ids: Tensor
) -> tuple[Tensor, Cache]:
    output = model.generate(**inputs, **{**arguments, "return_dict_in_generate": True})
    tokens, cache = output.sequences[0, ids.shape[1] :], cache_of_output(output)
    if cache is None:
        raise changed("generate() gives back no KV cache")
    if not len(tokens) or cache.get_seq_length() != ids.shape[1] + len(tokens) - 1:
        raise changed(
            f"generate() left {cache.get_seq_length()} tokens in the KV cache of {ids.shape[1]} and {len(tokens)} new"
        )
    return tokens, cache


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[bool]]:
    """Note for each pass whether its last token stands at the largest position, from which an answer goes on."""
    steady: list[bool] = []

    def note(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        positions = kwargs.get(POSITIONS)
        if isinstance(positions, Tensor):
            steady.append(bool((positions.amax(dim=-1) == positions[..., -1]).all()))

    hook = find_anatomy(model).decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield steady
    finally:
        hook.remove()
