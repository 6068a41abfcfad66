"""Several methods answer prompts that show the same: media are encoded once, what is common runs once and unchanged.

What a method removes below the layer of its first choice is nothing, so each of them goes on from there: a method that
does not look at the question with what prompts have in common, others with each prompt
(:mod:`vtw_eval.models.late`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vtw_eval.engine import Trace, install
from vtw_eval.engine.entry import Entry, UnchangedPrefix
from vtw_eval.engine.layout import Prompt, Reduction
from vtw_eval.engine.prefix import PrefixError, run_prefix
from vtw_eval.engine.view import asked_layers
from vtw_eval.methods import Method
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.models.late import need_of, unchanged_for
from vtw_eval.models.shared import SharedAnswer, Sharer
from vtw_eval.models.sharing import SharingError, Split, prefix_inputs

Answers = list[list[SharedAnswer] | SharingError]
"""By image: its answers, or why there are none."""


def begin(sharer: Sharer, methods: Sequence[Method], shown: Sequence[Sequence[DocumentPrompt]]) -> Begun:
    """Run what prompts have in common, as far as any of several methods needs it.

    Parameters
    ----------
    sharer
        Knows the model and how to generate; its own method is not looked at.
    methods
        Bound; those for which :func:`vtw_eval.models.sharing.why_alone` knows no reason.
    shown
        By what they show: the prompts, one or more each; those of equal images come one after the other.
    """
    encoded, found = sharer.split(shown)
    usable = [image for image, each in enumerate(found) if isinstance(each, Split)]
    if len(usable) < len(found) and usable:
        encoded, again = sharer.split([shown[image] for image in usable])
        splits = [each for each in again if isinstance(each, Split)]
        if len(splits) < len(usable):
            raise ValueError("prompts were cut once and cannot be cut again.")
    else:
        splits = [each for each in found if isinstance(each, Split)]
    why: list[SharingError | None] = [each if isinstance(each, SharingError) else None for each in found]
    if not usable:
        return Begun(sharer, encoded, [], [], why, None)
    inputs = prefix_inputs(encoded.inputs, [each.length for each in splits])
    need = functools.reduce(operator.or_, (need_of(method, sharer.anatomy) for method in methods))
    try:
        unchanged = unchanged_for(sharer.anatomy, inputs, need)
    except PrefixError as error:
        return Begun(sharer, encoded, [], [], [each or SharingError(str(error)) for each in why], None)
    return Begun(sharer, encoded, [shown[image] for image in usable], splits, why, unchanged)


@dataclass(frozen=True)
class Begun:
    """What has run of prompts, and goes on under one method after another."""

    sharer: Sharer
    encoded: Encoded
    """The first prompt about each image that can share."""
    shown: Sequence[Sequence[DocumentPrompt]]
    """The prompts about each of these."""
    splits: Sequence[Split]
    why: Sequence[SharingError | None]
    """Of each image: why it cannot; None where it can."""
    unchanged: UnchangedPrefix | None
    """What the unchanged model has computed; None if no image can share."""

    def answer(self, method: Method, wanted: Sequence[Sequence[int]] | None = None) -> Answers:
        """Answer prompts under one of the methods.

        Parameters
        ----------
        method
            The method.
        wanted
            Of each image: numbers of the prompts to answer, in that order; None for all prompts.

        Returns
        -------
        list of list of SharedAnswer, or SharingError
            For each image its answers, or why there are none.
        """
        able = [image for image, reason in enumerate(self.why) if reason is None]
        if self.unchanged is None or not able:
            return [reason or SharingError("nothing has run") for reason in self.why]
        numbers = [list(range(len(prompts))) for prompts in self.shown]
        if wanted is not None:
            numbers = [list(wanted[image]) for image in able]
        made: Sequence[list[SharedAnswer] | SharingError]
        try:
            made = self._answered(replace(self.sharer, method=method), self.unchanged, numbers)
        except (PrefixError, SharingError) as error:
            made = [SharingError(str(error)) for _ in able]
        found = dict(zip(able, made, strict=True))
        return [found[image] if reason is None else reason for image, reason in enumerate(self.why)]

    def _answered(
        self, sharer: Sharer, unchanged: UnchangedPrefix, numbers: Sequence[Sequence[int]]
    ) -> list[list[SharedAnswer]]:
        if not any(numbers):
            return [[] for _ in numbers]
        chosen = zip(self.splits, numbers, strict=True)
        splits = [replace(each, own=[each.own[number] for number in wanted]) for each, wanted in chosen]
        shown = [[prompts[number] for number in wanted] for prompts, wanted in zip(self.shown, numbers, strict=True)]
        sharer.check(splits)
        if not sharer.method.question_independent:
            return sharer.answer_late(unchanged, self.encoded, shown, splits)
        trace, tokens = _behind(sharer, unchanged, splits)
        sharer.check_prefixes(trace, self.encoded, self.shown, self.splits)
        return sharer.answer_behind(trace, tokens, self.encoded, splits)


@torch.no_grad()
def _behind(
    sharer: Sharer, unchanged: UnchangedPrefix, splits: Sequence[Split]
) -> tuple[Trace, list[list[torch.Tensor]]]:
    """Let a method that does not look at questions remove what it removes of the prefixes, and answer behind that."""
    method, model, old = sharer.method, sharer.family.model, unchanged.prefix
    layers = sharer.anatomy.num_layers
    if not asked_layers(method, layers):
        prompt = Prompt(old.valid, sharer.anatomy.is_vision(old.ids) & old.valid, old.ids)
        with method(model):
            tokens = sharer.generate(old, splits)
        return Trace(method, Reduction(prompt, [None] * layers), prefills=1), tokens
    # A pass needs a token; the last one of a prefix is text behind what it shows.
    entry = Entry(unchanged.without_last(), range(len(old.ids)), old.ids[:, -1:].tolist())
    with install(method, model, prompt_ids=entry.inputs["input_ids"], entry=entry) as trace:
        prefix = replace(run_prefix(model, entry.inputs), deltas=old.deltas)
        tokens = sharer.generate(prefix, splits)
    return trace, tokens
