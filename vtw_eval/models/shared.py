"""Answers to several questions about each of some images: one pass for what an image's prompts begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import Trace
from vtw_eval.engine.entry import UnchangedPrefix
from vtw_eval.engine.prefix import Prefix, PrefixError, run_prefix
from vtw_eval.methods import Method
from vtw_eval.models.batching import run_in_batches
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.late import answer_late, need_of, unchanged_for
from vtw_eval.models.questions import Continuation
from vtw_eval.models.sharing import SharingError, Split, fits_windows, ids_of, packing, prefix_inputs, split
from vtw_eval.models.soundness import check_choice, check_late
from vtw_eval.models.traces import Counts, check_trace, counts_of


@dataclass
class Sharing:
    """What is remembered between calls: how much fits in memory, and what was compared."""

    questions: int | None = None
    """Most questions about an image in a pass, if memory has run out; None before."""
    prompts: int | None = None
    """Most prompts in a pass that have rows of their own, if memory has run out; None before."""
    compared: bool = False
    """Whether token ids were compared with the processor's."""
    sound: set[str] = field(default_factory=set)
    """Methods that did the same to prompts that share as to a prompt alone."""
    unsound: dict[str, str] = field(default_factory=dict)
    """Methods that did not, and what they did."""
    told: set[str] = field(default_factory=set)
    """Reasons for which prompts went alone, each told once."""


@dataclass(frozen=True)
class SharedAnswer:
    """One answer."""

    tokens: Tensor
    """New tokens, long ``[new]`` on the CPU, padded behind the end."""
    counts: Counts
    """Of its prompt, as if it had been alone."""
    notes: tuple[str, ...]
    """What encoding added to the notes on the media."""


@dataclass(frozen=True)
class Sharer:
    """Answers prompts that show the same together.

    Parameters
    ----------
    family, anatomy
        The model.
    method
        What to install.
    arguments
        Of ``generate``: greedy decoding with a KV cache.
    state
        Remembered between calls, and changed.
    log
        Told when memory runs out.
    """

    family: Family[Any]
    anatomy: Anatomy
    method: Method
    arguments: Mapping[str, Any]
    state: Sharing
    log: Callable[[str], None]

    def answer(self, shown: Sequence[Sequence[DocumentPrompt]]) -> list[list[SharedAnswer] | SharingError]:
        """Answer all prompts.

        Parameters
        ----------
        shown
            By what they show: the prompts, two or more each; those of equal images come one after the other.

        Returns
        -------
        list of list of SharedAnswer, or SharingError
            For each image its answers, or why there are none.
        """
        encoded, found = self.split(shown)
        usable = [row for row, each in enumerate(found) if isinstance(each, Split)]
        if not usable:
            return [each for each in found if isinstance(each, SharingError)]
        if len(usable) < len(found):
            answered = iter(self.answer([shown[row] for row in usable]))
            return [each if isinstance(each, SharingError) else next(answered) for each in found]
        try:
            return list(self._answered(encoded, shown, [each for each in found if isinstance(each, Split)]))
        except (PrefixError, SharingError) as error:
            return [SharingError(str(error)) for _ in shown]

    def split(self, shown: Sequence[Sequence[DocumentPrompt]]) -> tuple[Encoded, list[Split | SharingError]]:
        """Encode the first prompt about each image, and cut all behind what they have in common, where they have."""
        encoded = self.family.encode([prompts[0] for prompts in shown])
        found: list[Split | SharingError] = []
        for row, prompts in enumerate(shown):
            try:
                found.append(self._split(encoded, row, prompts))
            except SharingError as error:
                found.append(error)
        return encoded, found

    def _split(self, encoded: Encoded, row: int, prompts: Sequence[DocumentPrompt]) -> Split:
        """Return what the prompts of an image have in common, and what not."""
        vision = frozenset(self.anatomy.vision_token_ids)
        inputs = encoded.inputs
        first = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        rows = [first] if len(prompts) == 1 else self._ids(first, prompts, vision)
        cut = split(rows, vision)
        if cut is None:
            raise SharingError("questions stand in front of the image, or right behind it")
        if not fits_windows(self.anatomy, cut.longest + int(self.arguments["max_new_tokens"])):
            raise SharingError("a sliding window is shorter than the prompt and its answer")
        return cut

    def _ids(self, first: list[int], prompts: Sequence[DocumentPrompt], vision: frozenset[int]) -> list[list[int]]:
        """Return token ids of prompts about an image, given those of the first one."""
        rows = ids_of(self.family, first, [prompt.text for prompt in prompts], vision)
        if rows is None:
            raise SharingError("prompts about one image differ in front of it")
        if not self.state.compared:
            ids = self.family.encode([prompts[-1]]).inputs["input_ids"][0].tolist()
            if ids != rows[-1]:
                raise SharingError("the processor makes other tokens of a question than the tokenizer")
            self.state.compared = True
        return rows

    def _answered(
        self, encoded: Encoded, shown: Sequence[Sequence[DocumentPrompt]], splits: Sequence[Split]
    ) -> list[list[SharedAnswer]]:
        inputs = prefix_inputs(encoded.inputs, [each.length for each in splits])
        self.check(splits)
        if not self.method.question_independent:
            with torch.no_grad():
                unchanged = unchanged_for(self.anatomy, inputs, need_of(self.method, self.anatomy))
            return self.answer_late(unchanged, encoded, shown, splits)
        with torch.no_grad(), self._installed(inputs) as trace:
            tokens = self.generate(run_prefix(self.family.model, inputs), splits)
        self.check_prefixes(trace, encoded, shown, splits)
        return self.answer_behind(trace, tokens, encoded, splits)

    def check(self, splits: Sequence[Split]) -> None:
        """Check that nothing is known to go wrong: a method, or a sliding window that is shorter than a row with gaps.

        Raises
        ------
        SharingError
            If something is.
        """
        if reason := self.state.unsound.get(str(self.method)):
            raise SharingError(reason)
        longest = max(each.length for each in splits) + max(len(own) for each in splits for own in each.own)
        if not fits_windows(self.anatomy, longest + int(self.arguments["max_new_tokens"])):
            raise SharingError("a sliding window is shorter than prompts about several images and their answers")

    def check_prefixes(
        self,
        trace: Trace,
        encoded: Encoded,
        shown: Sequence[Sequence[DocumentPrompt]],
        splits: Sequence[Split],
    ) -> None:
        """Check what a method has left of prefixes; no method is installed any more.

        Parameters
        ----------
        trace
            Of the prefixes.
        encoded, shown, splits
            The prompts, those about one image in one place.

        Raises
        ------
        SharingError
            If the method keeps something else when a question follows.
        """
        inputs = prefix_inputs(encoded.inputs, [each.length for each in splits])
        check_trace(trace, Encoded(inputs), [prompts[0] for prompts in shown])
        longest = max(range(len(shown[0])), key=lambda number: len(splits[0].own[number]))
        self._once(partial(check_choice, self.family, self.method, trace, splits[0].length, shown[0][longest]))

    def answer_behind(
        self, trace: Trace, tokens: Sequence[Sequence[Tensor]], encoded: Encoded, splits: Sequence[Split]
    ) -> list[list[SharedAnswer]]:
        """Return the answers that were generated behind what the method has left of prefixes.

        Parameters
        ----------
        trace
            Of the prefixes.
        tokens
            New tokens of each question about each image.
        encoded, splits
            The prompts, those about one image in one place.
        """
        counts = counts_of(trace, 1)
        notes = encoded.notes or ((),) * len(splits)
        return [
            [
                SharedAnswer(new, counts[image].behind(len(own)), notes[image])
                for own, new in zip(splits[image].own, tokens[image], strict=True)
            ]
            for image in range(len(splits))
        ]

    def answer_late(
        self,
        unchanged: UnchangedPrefix,
        encoded: Encoded,
        shown: Sequence[Sequence[DocumentPrompt]],
        splits: Sequence[Split],
    ) -> list[list[SharedAnswer]]:
        """Answer questions in rows of their own, which enter the decoder where the method removes something.

        Parameters
        ----------
        unchanged
            What they begin with, run as far as the method needs it.
        encoded, shown, splits
            The prompts, those about one image in one place.

        Raises
        ------
        SharingError
            If the method does something else to a prompt alone.
        """
        places = [(image, number) for image, each in enumerate(splits) for number in range(len(each.own))]
        places.sort(key=lambda place: -len(splits[place[0]].own[place[1]]))
        rows = self.state.prompts or self.family.options.batch_size
        process = partial(self._late_batch, unchanged, encoded, shown, splits)
        made = dict(zip(places, run_in_batches(places, rows, process, self._fewer_prompts), strict=True))
        return [[made[image, number] for number in range(len(each.own))] for image, each in enumerate(splits)]

    def _late_batch(
        self,
        unchanged: UnchangedPrefix,
        encoded: Encoded,
        shown: Sequence[Sequence[DocumentPrompt]],
        splits: Sequence[Split],
        places: Sequence[tuple[int, int]],
    ) -> list[SharedAnswer]:
        own = [splits[image].own[number] for image, number in places]
        rows = [image for image, _ in places]
        late = answer_late(self.family.model, self.method, unchanged, rows, own, self.arguments)
        prompts = [shown[image][number] for image, number in places]
        check_trace(late.trace, Encoded(dict(late.inputs)), prompts)
        tokens = late.tokens.cpu()
        # The shortest prompt of the batch, the last one: the most padding stands between its parts.
        check = partial(check_late, self.family, self.method, self.arguments, late.trace, tokens)
        self._once(partial(check, len(places) - 1, prompts[-1]))
        notes = encoded.notes or ((),) * len(splits)
        counts = counts_of(late.trace, 1)
        return [SharedAnswer(tokens[i], counts[i], notes[image]) for i, image in enumerate(rows)]

    def _once(self, check: Callable[[], None]) -> None:
        """Check the method, unless that was done; a reason not to share is remembered."""
        if str(self.method) in self.state.sound:
            return
        try:
            check()
        except SharingError as error:
            self.state.unsound[str(self.method)] = str(error)
            raise
        self.state.sound.add(str(self.method))

    def _installed(self, inputs: Mapping[str, Any]) -> AbstractContextManager[Trace]:
        return self.method(self.family.model, prompt_ids=inputs["input_ids"])

    def generate(self, prefix: Prefix, splits: Sequence[Split]) -> list[list[Tensor]]:
        """Return new tokens of each question about each image, under the method that is installed."""
        kind = packing(self.family, self.anatomy)
        behind = Continuation(self.family.model, self.arguments, kind, self.state.questions, self._fewer)
        return behind.answers(prefix, splits)

    def _fewer(self, questions: int) -> None:
        self.state.questions = questions
        self.log(f"out of memory: going on with {questions} questions about an image at a time")

    def _fewer_prompts(self, prompts: int) -> None:
        self.state.prompts = prompts
        self.log(f"out of memory: going on with {prompts} prompts at a time")
