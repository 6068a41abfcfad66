"""Answers under methods whose choice depends on the question, behind what unchanged prompts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy, find_tower
from vtw_eval.engine import Reads, Trace, install
from vtw_eval.engine.entry import Entry, UnchangedPrefix, looked_layers, run_unchanged
from vtw_eval.engine.view import asked_layers
from vtw_eval.methods import Method
from vtw_eval.methods.composite import parts_of


@dataclass(frozen=True)
class Need:
    """What methods need of an unchanged prefix."""

    layers: frozenset[int]
    """Layers of which they have to know what enters them."""
    depth: int
    """How many layers have to run."""
    tower_layers: frozenset[int] = frozenset()
    """Layers of the vision tower that they look at, as they name them."""

    def __or__(self, other: Need) -> Need:
        """Return what both need."""
        return Need(self.layers | other.layers, max(self.depth, other.depth), self.tower_layers | other.tower_layers)


def need_of(method: Method, anatomy: Anatomy) -> Need:
    """Return what a bound method needs: to its first choice or, where all vision tokens leave at once, to its last.

    Parameters
    ----------
    method
        The method.
    anatomy
        The model.
    """
    asked = asked_layers(method, anatomy.num_layers)
    if not asked:
        return Need(frozenset(), anatomy.num_layers)
    waits = method.leaves_whole and not method.question_independent
    last = max(asked) if waits else min(asked)
    layers = frozenset(i for i in looked_layers(method, anatomy.num_layers) if i <= last)
    reading = [part for part in parts_of(method) if Reads.TOWER in part.reads]
    count = find_tower(anatomy).num_layers if reading else 0
    tower = frozenset(layer for part in reading for layer in part.tower_layers(count))
    return Need(layers, last, tower)


def unchanged_for(anatomy: Anatomy, inputs: Mapping[str, Any], need: Need) -> UnchangedPrefix:
    """Run what prompts begin with, by the unchanged model, as far as it is needed; see :func:`run_unchanged`."""
    return run_unchanged(anatomy, inputs, need.layers, need.depth, need.tower_layers)


@dataclass(frozen=True)
class LateAnswers:
    """Answers to some prompts, and what the method did to these."""

    tokens: Tensor
    """New tokens, long ``[prompts, new]``, padded behind the end."""
    trace: Trace
    """Of the whole prompts."""
    inputs: Mapping[str, Tensor]
    """Ids and mask of the whole prompts."""


def answer_late(
    model: Any,
    method: Method,
    unchanged: UnchangedPrefix,
    rows: Sequence[int],
    own: Sequence[Sequence[int]],
    arguments: Mapping[str, Any],
) -> LateAnswers:
    """Answer prompts in one batch, each in a row of its own.

    Parameters
    ----------
    model
        The model; no method is installed on it.
    method
        The method, bound.
    unchanged
        What the prompts begin with, run as far as the method needs it (:func:`need_of`).
    rows
        Which prefix each prompt begins with.
    own
        Token ids that follow in each, one or more.
    arguments
        Of ``generate``: a KV cache, one beam.
    """
    entry = Entry(unchanged, rows, own)
    with torch.no_grad(), install(method, model, prompt_ids=entry.inputs["input_ids"], entry=entry) as trace:
        output = model.generate(**entry.inputs, **arguments)
    return LateAnswers(output[:, entry.length :], trace, entry.inputs)
