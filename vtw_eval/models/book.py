"""Answers of several methods, image by image, and an answer book for those that are asked for later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vtw_eval.engine import Trace
from vtw_eval.media import once
from vtw_eval.methods import Method, parse_method
from vtw_eval.models.batching import groups, run_in_batches
from vtw_eval.models.failures import DocumentError, Failures
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.runner import Answer, Numbered, Request, Runner, answer_lengths, left_alone, named
from vtw_eval.models.shared import SharedAnswer, Sharer, SharingError, stop_ids
from vtw_eval.models.sharing import digest, why_alone
from vtw_eval.models.traces import Counts
from vtw_eval.models.warm import Warm
from vtw_eval.record.book import Book, Entry, Together, key_of
from vtw_eval.record.costs import TimedCosts
from vtw_eval.verify.verdict import Verdict


@dataclass
class _Asked:
    """A method whose answers are wanted."""

    spec: str
    method: Method
    verdict: Verdict
    decides: str
    """Digest of what decides its answers beside the prompts."""
    failures: Failures = field(default_factory=Failures)
    failed: set[int] = field(default_factory=set)
    """Places of documents that it cannot answer."""
    given_up: bool = False
    """Whether the rest is left to its own cell."""


@dataclass(frozen=True)
class _Document:
    """A request whose turn has come."""

    place: int
    request: Request
    """Gives the prompt that is ready, without notes."""
    prompt: DocumentPrompt
    shown: str
    """Digest of the media; empty if there are none."""


@dataclass(frozen=True)
class _Run:
    """One call."""

    book: Book
    asked: Sequence[_Asked]
    """The cell's own method first."""
    tell: Callable[[int, _Asked], None]
    """Told the place of each answer that is known, and whose it is."""


class BookRunner(Runner):
    """A runner that may be told what is going to be asked of other methods.

    Then it answers for all of them while it has an image at hand, keeps the answers of each in an answer book as soon
    as they are made, and takes from there what it is asked for later. No answer has a latency then. Methods that
    search a parameter, and samples, are answered as by :class:`vtw_eval.models.runner.Runner`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.together: Together | None = None
        """The book, and the methods; None: as usual."""
        self.by_book = False
        """Whether the last call took answers from a book."""
        self.warm = Warm(self.family, self.anatomy)

    def answer(self, requests: Sequence[Request], *, progress: bool) -> list[Answer]:
        """Answer requests, in their order, see :meth:`vtw_eval.models.runner.Runner.answer`."""
        usual = self.together is None or self.method.search is not None or self.options.sharing == "off"
        self.by_book = not usual
        if usual or self.together is None:
            return super().answer(requests, progress=progress)
        try:
            return self._answer_all(self.together, requests, progress)
        finally:
            self.warm.forget()

    def _answer_all(self, together: Together, requests: Sequence[Request], progress: bool) -> list[Answer]:
        own, *others = self._asked(together)
        answers: dict[int, Answer] = {}
        known: set[tuple[int, str]] = set()
        total = len(requests) * (1 + len(others))
        what = f"Answering with {1 + len(others)} methods, image by image" if others else "Answering"
        with tqdm(total=total, disable=not progress, desc=what) as bar:

            def tell(place: int, asked: _Asked) -> None:
                if (place, asked.spec) not in known:
                    known.add((place, asked.spec))
                    bar.update()
                    self.on_answer(len(known), total)

            run = _Run(together.book, [own, *others], tell)
            for group in groups(enumerate(requests), key=lambda item: repr(sorted(item[1].generation.items()))):
                for place, found in self._by_image(run, group):
                    answers[place] = found
        own.failures.check(answers, len(requests))
        self.on_answer(total, total)
        return [answers[place] for place in range(len(requests))]

    def _asked(self, together: Together) -> list[_Asked]:
        """Return the methods whose answers are wanted; what is wrong with others is told by their own cells."""
        (spec, decides), *others = together.methods.items()
        asked = [_Asked(spec, self.method, self.verdict, decides)]
        for spec, decides in others:
            try:
                method = parse_method(spec).bind(self.anatomy)
                if method.search is None:
                    asked.append(_Asked(spec, method, self._verify(method), decides))
            except Exception as error:
                self.log(f"{spec} is left to a run of its own: {' '.join(str(error).split())}")
        return asked

    def _by_image(self, run: _Run, group: Sequence[Numbered]) -> Iterator[tuple[int, Answer]]:
        """Answer requests with the same generation arguments."""
        arguments = self.family.generation(group[0][1].generation)
        if arguments["do_sample"]:
            for place, answer in self._group(group, run.asked[0].failures):
                run.tell(place, run.asked[0])
                if answer is not None:
                    yield place, answer
            return
        images = groups(group, key=lambda item: (item[1].task, item[1].media or f"alone: {item[0]}"))
        images.sort(key=lambda items: (-len(items), -items[0][1].length))
        for found in run_in_batches(images, self.batch_size, partial(self._images, run, arguments), self._shrink):
            yield from found.items()

    def _images(
        self, run: _Run, arguments: Mapping[str, Any], images: Sequence[Sequence[Numbered]]
    ) -> list[dict[int, Answer]]:
        """Answer all requests about some images with all methods; return the answers of the first one."""
        own = run.asked[0]
        prepared = [self._prepared(own, items) for items in images]
        documents = [document for items in prepared for document in items]
        for asked in run.asked:
            self._tell(run, asked, documents)
        self._answer_together(run, arguments, documents)
        left = [d for d in documents if any(self._missing(run, asked, [d]) for asked in run.asked)]
        left.sort(key=lambda document: -document.request.length)
        for _ in run_in_batches(left, self.batch_size, partial(self._answer_alone, run), self._shrink):
            pass
        return [
            {d.place: self._served(d, entry) for d in items if (entry := run.book.get(self._key(own, d))) is not None}
            for items in prepared
        ]

    def _prepared(self, own: _Asked, items: Sequence[Numbered]) -> list[_Document]:
        """Return the prompts of requests; equal images are kept once."""
        first: dict[str, DocumentPrompt] = {}
        found: list[_Document] = []
        for place, request in items:
            if place in own.failed:
                continue
            try:
                prompt = self._build(request)
                with named(request):
                    shown = _shown(prompt)
            except DocumentError as error:
                own.failed.add(place)
                own.failures.failed(error)
                continue
            prompt = replace(prompt, images=first.setdefault(shown, prompt).images)
            ready = replace(request, build=partial(_ready, replace(prompt, notes=())))
            found.append(_Document(place, ready, prompt, shown))
        return found

    def _answer_together(self, run: _Run, arguments: Mapping[str, Any], documents: Sequence[_Document]) -> None:
        """Answer what can share a pass, each method for all images."""
        able = []
        for asked in run.asked:
            reason = why_alone(self.family, self.anatomy, asked.method, arguments)
            if reason:
                self._tell_alone(reason)
            elif not asked.given_up:
                able.append(asked)
        for asked in able:
            by_image = groups(self._missing(run, asked, documents), key=lambda document: document.shown)
            shown = [items for items in by_image if items[0].shown and len(items) > 1]
            if not shown:
                continue
            work = partial(self._shared_answers, run, arguments, asked, shown)
            _, reason = left_alone(work, last=len(shown) == 1)
            if reason:
                self._tell_alone(reason)

    def _shared_answers(
        self, run: _Run, arguments: Mapping[str, Any], asked: _Asked, shown: Sequence[Sequence[_Document]]
    ) -> bool:
        sharer = Sharer(self.family, self.anatomy, asked.method, arguments, self.sharing, self.log)
        with named(*(document.request for items in shown for document in items)):
            found = sharer.answer([[document.request.build(self.family) for document in items] for items in shown])
            entries: list[Entry] = []
            for items, answers in zip(shown, found, strict=True):
                if isinstance(answers, SharingError):
                    self._tell_alone(str(answers))
                else:
                    entries += self._of_image(asked, arguments, items, answers)
        run.book.add(entries)
        self._tell(run, asked, [document for items in shown for document in items])
        return True

    def _of_image(
        self,
        asked: _Asked,
        arguments: Mapping[str, Any],
        items: Sequence[_Document],
        answers: Sequence[SharedAnswer],
    ) -> list[Entry]:
        eos, pad = stop_ids(arguments)
        tokens = torch.nn.utils.rnn.pad_sequence([each.tokens for each in answers], True, pad)
        texts = self.family.decode(tokens, items[0].request.generation)
        lengths = answer_lengths(tokens, eos)
        return [
            _entry(self._key(asked, document), text, length, each.counts, each.notes, len(items))
            for document, text, length, each in zip(items, texts, lengths, answers, strict=True)
        ]

    def _answer_alone(self, run: _Run, batch: Sequence[_Document]) -> Sequence[None]:
        """Answer a batch with each method as usual, but encode it and make its vision features once."""
        for asked in run.asked:
            missing = [] if asked.given_up else self._missing(run, asked, batch)
            if not missing:
                continue
            try:
                with self._under(asked):
                    answers = self._answers([document.request for document in missing], asked.failures)
            except DocumentError as error:
                if asked is run.asked[0]:
                    raise
                asked.given_up = True
                self.log(f"{asked.spec} is left to a run of its own: {error}")
                continue
            asked.failed |= {d.place for d, answer in zip(missing, answers, strict=True) if answer is None}
            made = [(d, answer) for d, answer in zip(missing, answers, strict=True) if answer is not None]
            run.book.add([_entry_of(self._key(asked, document), answer) for document, answer in made])
            self._tell(run, asked, batch)
        return [None] * len(batch)

    def _missing(self, run: _Run, asked: _Asked, documents: Sequence[_Document]) -> list[_Document]:
        """Return the documents that a method has yet to answer; of equal ones the first."""
        found: dict[str, _Document] = {}
        for document in documents:
            if document.place not in asked.failed and (key := self._key(asked, document)) not in run.book:
                found.setdefault(key, document)
        return list(found.values())

    def _key(self, asked: _Asked, document: _Document) -> str:
        """Return the key of an answer in the book."""
        model = [self.family.device.type, str(self.family.model.dtype), self.options.batch_size, self.family.simple]
        prompt = [document.prompt.text, document.shown, repr(sorted(document.request.generation.items()))]
        return key_of(asked.decides, model, prompt)

    def _tell(self, run: _Run, asked: _Asked, documents: Sequence[_Document]) -> None:
        for document in documents:
            if self._key(asked, document) in run.book:
                run.tell(document.place, asked)

    def _served(self, document: _Document, entry: Entry) -> Answer:
        """Return an answer of the book under the method that is installed, with its costs as if it had been alone."""
        notes = once((*document.prompt.notes, *entry.notes))
        counts: Any = entry.counts
        (cost,) = self._costs([Counts(**counts)], [entry.output_tokens], None, self.method, [notes])
        self._note(document.request, notes)
        return Answer(entry.text, TimedCosts(**{**dict(cost), "batch_rows": entry.rows}))

    @contextmanager
    def _under(self, asked: _Asked) -> Iterator[None]:
        """Go on with another method within."""
        before = self.method, self.verdict, self.found
        self.method, self.verdict, self.found = asked.method, asked.verdict, {}
        try:
            yield
        finally:
            self.method, self.verdict, self.found = before

    def _encoded(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        return self.warm.encode(prompts) if self.by_book else super()._encoded(prompts)

    @contextmanager
    def _remembering(self, method: Method, encoded: Encoded, answer_mask: Tensor | None) -> Iterator[Trace]:
        with self.warm.features(method), super()._installed(method, encoded, answer_mask) as trace:
            yield trace

    def _installed(
        self, method: Method, encoded: Encoded, answer_mask: Tensor | None = None
    ) -> AbstractContextManager[Trace]:
        usual = super()._installed
        return self._remembering(method, encoded, answer_mask) if self.by_book else usual(method, encoded, answer_mask)

    def _shrink(self, batch_size: int) -> None:
        self.warm.forget()
        super()._shrink(batch_size)


def _ready(prompt: DocumentPrompt, family: Family[Any]) -> DocumentPrompt:
    return prompt


def _shown(prompt: DocumentPrompt) -> str:
    """Return a digest of what a prompt shows that outlives this process: a video may become another one."""
    times = [os.stat(video).st_mtime_ns for video in prompt.videos]
    return digest(prompt).hex() + "".join(f" {time}" for time in times)


def _entry(key: str, text: str, output_tokens: int, counts: Counts, notes: tuple[str, ...], rows: int) -> Entry:
    return Entry(key=key, text=text, output_tokens=output_tokens, counts=vars(counts), notes=notes, rows=rows)


def _entry_of(key: str, answer: Answer) -> Entry:
    costs = answer.costs
    counts = Counts(**{part.name: getattr(costs, part.name) for part in fields(Counts)})
    return _entry(key, answer.text, costs.output_tokens, counts, costs.media, costs.batch_rows)
