"""What prompts begin with, computed once: rows for each continuation of it.

A prefix is run under a method; its KV cache then holds what the method has left, and each row of a later pass goes on
from the row of its prefix. Only right for methods whose choice among the tokens of a prefix depends on these alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine.calls import POSITIONS, cache_of, cache_of_output, changed, with_cache


@dataclass(frozen=True)
class Prefix:
    """What a pass over prefixes has left, a row for each."""

    ids: Tensor
    """Long ``[prefixes, tokens]``, padded on the left."""
    valid: Tensor
    """Boolean ``[prefixes, tokens]``, False for padding."""
    cache: Cache
    """Keys and values of the tokens that the method has left."""
    deltas: Tensor | None
    """Of M-RoPE: the next position minus the number of tokens, ``[prefixes, 1]``; None for other models."""

    @property
    def length(self) -> int:
        """Tokens of the longest prefix."""
        return self.ids.shape[1]


class PrefixError(ValueError):
    """Nothing can go on from a prefix as if it had been there from the start; the message says why."""


class _Enough(Exception):
    """As many layers have run as were wanted."""


def run_prefix(model: nn.Module, inputs: Mapping[str, Any], *, depth: int | None = None) -> Prefix:
    """Run the beginnings of prompts; with a method installed, under it.

    Parameters
    ----------
    model
        A transformers model that generates.
    inputs
        Keyword arguments of ``generate``: ``input_ids`` and ``attention_mask``, padded on the left, and the media.
    depth
        How many decoder layers to run; the cache then holds those. None for all of them.

    Raises
    ------
    PrefixError
        If some layers keep no keys and values of their own, or if what follows would not stand where it stands in the
        whole prompt. Qwen2.5-VL numbers the frames of a video
        beyond the first words behind it, and an answer from the largest number on.
    UpstreamChangedError
        If ``generate`` gives no KV cache back, or one that holds other tokens.
    """
    generating: Any = model
    anatomy = find_anatomy(model)
    if not anatomy.plain_cache:
        raise PrefixError(f"{anatomy.model_type} keeps more of a prompt than keys and values, or shares them")
    depth = anatomy.num_layers if depth is None else depth
    ids = inputs["input_ids"]
    behind: list[bool] = []
    cache: Cache | None = None

    def numbered(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        nonlocal cache
        cache = cache_of(kwargs)
        positions = kwargs.get(POSITIONS)
        if isinstance(positions, Tensor):
            behind.append(bool((positions.amax(dim=-1) == positions[..., -1]).all()))

    def stop(module: nn.Module, args: Any) -> None:
        raise _Enough

    handles = [anatomy.decoder.register_forward_pre_hook(numbered, with_kwargs=True)]
    if depth < anatomy.num_layers:
        handles.append(anatomy.layers[depth].register_forward_pre_hook(stop))
    try:
        # By generate() and not by forward(), which would number the padding of some models too.
        output = generating.generate(
            **inputs, max_new_tokens=1, do_sample=False, num_beams=1, use_cache=True, return_dict_in_generate=True
        )
        cache = cache_of_output(output)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not all(behind):
        raise PrefixError("positions in a video are larger than those of the first words behind it")
    if cache is None:
        raise changed("generate() gives back no KV cache")
    if cache.get_seq_length() != (ids.shape[1] if depth else 0):
        raise changed(f"generate() left {cache.get_seq_length()} tokens in the KV cache of {ids.shape[1]}")
    deltas = [module.rope_deltas for module in numbering(model)]
    return Prefix(ids, inputs["attention_mask"].bool(), cache, deltas[0].clone() if deltas else None)


def generate_behind(
    model: nn.Module, prefix: Prefix, rows: Sequence[int], own: Sequence[Sequence[int]], arguments: Mapping[str, Any]
) -> Tensor:
    """Generate behind prefixes, each continuation in a row of its own.

    Parameters
    ----------
    model
        The model, with the method of the prefix installed.
    prefix
        The prefixes; they can be used again.
    rows
        Which prefix each continuation belongs to.
    own
        Token ids of each, one or more.
    arguments
        Of ``generate``, with ``use_cache``; one beam.

    Returns
    -------
    Tensor
        New tokens, long ``[continuations, new]``.
    """
    index = torch.tensor(rows, device=prefix.ids.device)
    inputs = behind(prefix, index, own)
    generating: Any = model
    with numbered_from(model, prefix, index):
        output = generating.generate(**with_cache(model, inputs, select(prefix.cache, index)), **arguments)
    return output[:, inputs["input_ids"].shape[1] :]


def behind(prefix: Prefix, rows: Tensor, own: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return ids and mask of whole prompts, padded on the left and between prefix and own tokens.

    Parameters
    ----------
    prefix
        The prefixes.
    rows
        Long ``[n]``, which of them each prompt begins with.
    own
        Token ids that follow in each, one or more.
    """
    width = max(map(len, own))
    # What stands in a gap is no token of the prompt, but logits processors look at it, as at what is there already.
    ids = prefix.ids[rows, -1:].repeat(1, width)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(own):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, device=ids.device)
        valid[row, width - len(tokens) :] = True
    return {
        "input_ids": torch.cat([prefix.ids[rows], ids], dim=1),
        "attention_mask": torch.cat([prefix.valid[rows], valid], dim=1).long(),
    }


def select(cache: Cache, rows: Tensor) -> Cache:
    """Return a cache of some rows of another one, which stays as it is.

    Parameters
    ----------
    cache
        Of layers that hold keys and values of all tokens.
    rows
        Long ``[n]``, which of its rows; a row may be there several times.
    """
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    made.batch_select_indices(rows)
    return made


@contextmanager
def numbered_from(model: nn.Module, prefix: Prefix, rows: Tensor) -> Iterator[None]:
    """Let M-RoPE go on from some prefixes within: a model remembers the positions of its last prompt only.

    Parameters
    ----------
    model
        The model.
    prefix
        The prefixes.
    rows
        Long ``[n]``, the prefix of each row of the passes within.
    """
    modules = numbering(model)
    before = [module.rope_deltas for module in modules]
    for module in modules:
        module.rope_deltas = None if prefix.deltas is None else prefix.deltas[rows.to(prefix.deltas.device)]
    try:
        yield
    finally:
        for module, deltas in zip(modules, before, strict=True):
            module.rope_deltas = deltas


def numbering(model: nn.Module) -> list[Any]:
    """Return the modules that remember how far M-RoPE's positions are from the number of tokens."""
    return [module for module in model.modules() if hasattr(module, "rope_deltas")]
