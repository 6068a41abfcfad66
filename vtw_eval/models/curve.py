"""Answers of VTW for every k at once, kept for those who ask for one k after another, as harnesses do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vtw_eval.engine.masks import MaskKind, mask_kind
from vtw_eval.media import once
from vtw_eval.methods import VTW, Baseline
from vtw_eval.methods.vtw.curve import Beginnings, CurveAnswers, answer_curve, begin
from vtw_eval.methods.vtw.search import search_layer
from vtw_eval.models.batching import groups, run_in_batches
from vtw_eval.models.failures import DocumentError
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.models.questions import at_once
from vtw_eval.models.requests import Answer, Numbered, Request, answer_lengths, left_alone, named
from vtw_eval.models.runner import Runner
from vtw_eval.models.shared import SharedAnswer, Sharer
from vtw_eval.models.sharing import (
    SharingError,
    Split,
    prefix_inputs,
    stop_ids,
    told_by_config,
    why_alone,
)
from vtw_eval.models.traces import Counts
from vtw_eval.record.costs import TimedCosts

Key = tuple[str, str]
"""A document and how it is answered."""


@dataclass(frozen=True)
class CurveAnswer(SharedAnswer):
    """The answers to one question; ``tokens`` are ``[ks + 1, new]``, ``counts`` those of the unchanged model."""

    divergence: tuple[float, ...] = ()
    """KL of the first word by k, nats."""


@dataclass(frozen=True)
class CurveSharer(Sharer):
    """Answers prompts that show the same at every k; see :func:`vtw_eval.methods.vtw.curve.answer_curve`.

    Parameters
    ----------
    ks
        In ascending order, each below the number of layers.
    kind
        Which masks the model's attention takes.
    """

    ks: Sequence[int] = ()
    kind: MaskKind = "boolean"

    def _answered(
        self, encoded: Encoded, shown: Sequence[Sequence[DocumentPrompt]], splits: Sequence[Split]
    ) -> list[list[SharedAnswer]]:
        inputs = prefix_inputs(encoded.inputs, [each.length for each in splits])
        beginnings = begin(self.anatomy, inputs, self.ks)
        most = max(len(each.own) for each in splits)
        questions = min(at_once(splits), self.state.questions or most)
        chunks = run_in_batches(range(most), questions, partial(self._chunk, beginnings, splits), self._fewer)
        by_number = list(chunks)
        vision = self.anatomy.is_vision(beginnings.prefix.ids) & beginnings.prefix.valid
        notes = encoded.notes or ((),) * len(splits)
        found: list[list[SharedAnswer]] = []
        for image, each in enumerate(splits):
            seen, answers = int(vision[image].sum()), [by_number[number][image] for number in range(len(each.own))]
            found.append([])
            for own, (tokens, divergence) in zip(each.own, answers, strict=True):
                counts = _counts(each.length + len(own), seen, self.anatomy.num_layers, self.anatomy.num_layers)
                found[-1].append(CurveAnswer(tokens, counts, notes[image], tuple(divergence.tolist())))
        return found

    def _chunk(
        self, beginnings: Beginnings, splits: Sequence[Split], numbers: Sequence[int]
    ) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """Answer the questions of some numbers about all images; return for each number tokens and KL by image."""
        own = [[each.own[n] for n in numbers if n < len(each.own)] for each in splits]
        eos, pad = stop_ids(self.arguments)
        new = int(self.arguments["max_new_tokens"])
        made: list[CurveAnswers] = answer_curve(
            self.anatomy, beginnings, own, self.ks, kind=self.kind, max_new_tokens=new, eos=eos, pad=pad
        )
        return [
            {
                image: (answers.tokens[:, place].cpu(), answers.divergence[:, place].cpu())
                for image, answers in enumerate(made)
                if place < len(own[image])
            }
            for place in range(len(numbers))
        ]


@dataclass(frozen=True)
class _Kept:
    """What is known of a document: by place of the k, the unchanged model's last."""

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    counts: Counts
    notes: tuple[str, ...]
    rows: int


class CurveRunner(Runner):
    """A runner that is asked for the same documents at one k of VTW after another.

    When it is first asked about documents, it answers them at all :attr:`ks`, and keeps the answers. Where a model or a
    prompt does not allow that, each k is run for itself; the log tells why, once. So it is if the first document is
    answered otherwise than by a run of its own.
    """

    ks: tuple[int, ...] = ()
    """Those that will be asked for, in ascending order, each below the number of layers; the unchanged model, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forget()

    @classmethod
    def beside(cls, runner: Runner, ks: Iterable[int]) -> CurveRunner:
        """Return one for the model that another runner has loaded.

        Parameters
        ----------
        runner
            The other one, which stays as it is.
        ks
            See :attr:`ks`.
        """
        made = cls.__new__(cls)
        vars(made).update(vars(runner), ks=tuple(ks))
        made._forget()
        return made

    def _forget(self) -> None:
        self._book: dict[Key, _Kept] = {}
        self._asked: dict[Key, str] = {}
        """Tasks of the documents that were asked about."""
        self._compared = False
        self._unlike = ""
        """How answers at all k at once differ from those of one k, if they do."""
        self.apart: set[str] = set()
        """Why documents were answered at each k for itself."""
        self.divergence: dict[Key, tuple[float, ...]] = {}
        """By document: KL(withdrawn || unchanged) of the first word at each of :attr:`ks`, nats."""

    def answer(self, requests: Sequence[Request], *, progress: bool) -> list[Answer]:
        """Answer requests, in their order, as :class:`Runner` does."""
        placed = [
            (i, request, place) for i, request in enumerate(requests) if (place := self._place(request)) is not None
        ]
        if not placed:
            return super().answer(requests, progress=progress)
        self._learn([request for _, request, _ in placed if _key(request) not in self._asked], progress)
        answers = {i: self._kept(request, place) for i, request, place in placed if _key(request) in self._book}
        rest = [i for i in range(len(requests)) if i not in answers]
        if rest:
            try:
                others = super().answer([requests[i] for i in rest], progress=progress)
            except DocumentError as error:
                found = {rest[i]: answer for i, answer in error.answers.items()}
                raise DocumentError(str(error), {**answers, **found}) from error
            answers.update(zip(rest, others, strict=True))
        self.on_answer(len(answers), len(requests))
        return [answers[i] for i in range(len(requests))]

    def mean_divergence(self, task: str) -> dict[int, float]:
        """Return the mean KL of the first word by k over the documents of a task, in nats; empty if none is known."""
        known = [self.divergence[key] for key, of in self._asked.items() if of == task and key in self.divergence]
        means = torch.tensor(known, dtype=torch.float64).mean(dim=0).tolist() if known else []
        return dict(zip(self.ks, means, strict=False))

    def _place(self, request: Request) -> int | None:
        """Return where the method of a document stands among the answers that are kept, None if it is none of these."""
        method, layers = self._method(request), self.anatomy.num_layers
        if isinstance(method, Baseline) or (isinstance(method, VTW) and method.k == layers):
            return len(self.ks)
        return self.ks.index(method.k) if isinstance(method, VTW) and method.k in self.ks and _keeps(method) else None

    def _kept(self, request: Request, place: int) -> Answer:
        """Return an answer with its costs as if it had been alone."""
        kept, layers = self._book[_key(request)], self.anatomy.num_layers
        k = layers if place == len(self.ks) else self.ks[place]
        counts = _counts(kept.counts.input_tokens, kept.counts.vision_tokens, k, layers)
        (cost,) = self._costs([counts], [kept.lengths[place]], None, self._method(request), [kept.notes])
        self._note(request, kept.notes)
        return Answer(kept.texts[place], TimedCosts(**{**dict(cost), "batch_rows": kept.rows}))

    def _learn(self, requests: Sequence[Request], progress: bool) -> None:
        """Answer documents at all k, as far as the model allows it, and keep that."""
        self._asked |= {_key(request): request.task for request in requests}
        with tqdm(total=len(requests), disable=not progress or not requests, desc="All k at once") as bar:
            for group in groups(enumerate(requests), key=lambda item: _key(item[1])[1]):
                arguments = self.family.generation(group[0][1].generation)
                kind = mask_kind(self.anatomy.attention)
                reason = why_alone(self.family, self.anatomy, VTW(k=0), arguments) or self._why_not_packed(kind)
                if reason or self._unlike:
                    self._tell_apart(reason or self._unlike)
                    continue
                sharer = CurveSharer(
                    self.family, self.anatomy, VTW(k=0), arguments, self.sharing, self.log, self.ks, kind
                )
                asked = groups(group, key=lambda item: (item[1].task, item[1].media or f"alone: {item[0]}"))
                asked.sort(key=len, reverse=True)
                for learned in run_in_batches(asked, self.batch_size, partial(self._together_at, sharer), self._shrink):
                    bar.update(learned)
                    self.on_answer(len(self._book), len(self._asked))
                if self._unlike:
                    self._tell_apart(self._unlike)
        for request in requests:
            if _key(request) not in self._book:
                self._search_divergence(request)

    def _why_not_packed(self, kind: MaskKind) -> str:
        """Return why questions cannot be told apart in one row, empty if they can."""
        if self.options.sharing == "off":
            return "sharing=off"
        if kind == "validity":
            return (
                "FlashAttention takes no mask that tells questions apart: load the model with sdpa or eager attention"
            )
        return "a repetition penalty needs a row for each prompt" if told_by_config(self.family) else ""

    def _together_at(self, sharer: CurveSharer, asked: Sequence[Sequence[Numbered]]) -> list[int]:
        """Learn the documents of some groups; return for each how many of them are known now."""
        if self._unlike:
            return [0 for _ in asked]
        learn = partial(self._learn_groups, sharer, asked)
        known, reason = left_alone(learn, last=len(asked) == 1)
        if known is None:
            self._tell_apart(reason)
            return [0 for _ in asked]
        return known

    def _learn_groups(self, sharer: CurveSharer, asked: Sequence[Sequence[Numbered]]) -> list[int]:
        self._learn_together(sharer, [images for items in asked for images in self._by_media(items)])
        return [sum(_key(request) in self._book for _, request in items) for items in asked]

    def _learn_together(
        self, sharer: CurveSharer, shown: Sequence[Sequence[tuple[int, Request, DocumentPrompt]]]
    ) -> None:
        if not shown:
            return
        with named(*(request for images in shown for _, request, _ in images)):
            found = sharer.answer([[prompt for _, _, prompt in images] for images in shown])
            for images, answers in zip(shown, found, strict=True):
                if not isinstance(answers, SharingError):
                    self._keep(sharer, images, answers)
                elif len(shown) == len(images) == 1:
                    self._tell_apart(str(answers))
                else:  # apart from the others, or each question for itself
                    for part in [[each] for each in images] if len(shown) == 1 else [images]:
                        self._learn_together(sharer, [part])

    def _keep(
        self,
        sharer: CurveSharer,
        images: Sequence[tuple[int, Request, DocumentPrompt]],
        answers: Sequence[SharedAnswer],
    ) -> None:
        eos, _ = stop_ids(sharer.arguments)
        for (_, request, prompt), answer in zip(images, answers, strict=True):
            assert isinstance(answer, CurveAnswer)
            self._book[_key(request)] = _Kept(
                tuple(self.family.decode(answer.tokens, request.generation)),
                tuple(answer_lengths(answer.tokens, eos)),
                answer.counts,
                once((*prompt.notes, *answer.notes)),
                len(images),
            )
            self.divergence[_key(request)] = answer.divergence

        if not self._compared:
            self._compared = True
            self._compare(sharer, *images[0][1:])

    def _compare(self, sharer: CurveSharer, request: Request, prompt: DocumentPrompt) -> None:
        """Compare a document at one k with a run of its own; in half precision, answers may differ by rounding."""
        if not self.ks or not self.family.exact:
            return
        place = len(self.ks) // 2
        encoded, method = self.family.encode([prompt]), VTW(k=self.ks[place]).bind(self.anatomy)
        with self._installed(method, encoded):
            tokens = self.family.generate(encoded, sharer.arguments)
        (text,) = self.family.decode(tokens, request.generation)
        if text != (found := self._book[_key(request)].texts[place]):
            self._unlike = f"{request.name} is answered {found!r} with all k at once and {text!r} by {method} alone"
            self._book.clear()
            self.divergence.clear()

    def _search_divergence(self, request: Request) -> None:
        """Find the divergence of a document that is answered at each k for itself, where its family can be searched."""
        if self.family.auto_class == "AutoModel" or not self.ks:
            return
        try:
            prompt = self._build(request)
            with named(request):
                result = search_layer(self.family.model, [self.family.encode([prompt]).inputs], start=self.ks[0])
        except DocumentError as error:  # told when the document is answered, if it cannot be
            self._tell_apart(f"no KL of {error}")
            return
        self.divergence[_key(request)] = tuple(result.per_sample[0, list(self.ks)].tolist())

    def _tell_apart(self, reason: str) -> None:
        if reason not in self.apart:
            self.apart.add(reason)
            self.log(f"each k is run for itself: {reason}")


def _key(request: Request) -> Key:
    return request.name, repr(sorted(request.generation.items()))


def _keeps(method: VTW) -> bool:
    return method.position == "keep"


def _counts(tokens: int, vision: int, k: int, layers: int) -> Counts:
    """Return the counts of a prompt whose vision tokens leave before layer k."""
    gone = layers - k
    return Counts(tokens, vision, (tokens,) * k + (tokens - vision,) * gone, (vision,) * k + (0,) * gone)
