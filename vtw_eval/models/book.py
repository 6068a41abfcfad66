"""Answers of several methods, image by image, and an answer book for those that are asked for later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vtw_eval.engine import Trace
from vtw_eval.media import once
from vtw_eval.methods import Method, parse_method
from vtw_eval.models.asked import Asked, Document, entries_of, entry_of, key_in, shown_by
from vtw_eval.models.batching import groups, run_in_batches
from vtw_eval.models.begun import begin
from vtw_eval.models.failures import DocumentError
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.prefetch import AHEAD, Ahead, Ready
from vtw_eval.models.remembered import Remembered
from vtw_eval.models.requests import Answer, Numbered, Request, left_alone, named
from vtw_eval.models.runner import Runner
from vtw_eval.models.shared import Sharer
from vtw_eval.models.sharing import SharingError, why_alone
from vtw_eval.models.traces import Counts
from vtw_eval.models.warm import Warm
from vtw_eval.record.book import Book, Entry, Together
from vtw_eval.record.costs import TimedCosts


@dataclass(frozen=True)
class _Run:
    """One call."""

    book: Book
    asked: Sequence[Asked]
    """The cell's own method first."""
    tell: Callable[[int, Asked], None]
    """Told the place of each answer that is known, and whose it is."""
    family: Family[Any]
    """The model's, which encodes what is at hand."""


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
        self._remembered = Remembered(self.log)

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
        self._remembered.begin((together.book.folder, together.seed))
        own, *others = self._asked(together)
        answers: dict[int, Answer] = {}
        known: set[tuple[int, str]] = set()
        total = len(requests) * (1 + len(others))
        what = f"Answering with {1 + len(others)} methods, image by image" if others else "Answering"
        with tqdm(total=total, disable=not progress, desc=what) as bar:

            def tell(place: int, asked: Asked) -> None:
                if (place, asked.spec) not in known:
                    known.add((place, asked.spec))
                    bar.update()
                    self.on_answer(len(known), total)

            run = _Run(together.book, [own, *others], tell, self.family)
            for group in groups(enumerate(requests), key=lambda item: repr(sorted(item[1].generation.items()))):
                for place, found in self._by_image(run, group):
                    answers[place] = found
        own.failures.check(answers, len(requests))
        self.on_answer(total, total)
        return [answers[place] for place in range(len(requests))]

    def _asked(self, together: Together) -> list[Asked]:
        """Return the methods whose answers are wanted; what is wrong with others is told by their own cells."""
        (spec, decides), *others = together.methods.items()
        asked = [Asked(spec, self.method, self.verdict, decides)]
        for spec, decides in others:
            try:
                method = parse_method(spec).bind(self.anatomy)
                if method.search is None:
                    asked.append(Asked(spec, method, self._verify(method), decides))
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
        with self._images_ahead(run, arguments, group) as ahead:
            process, tell = partial(self._images, run, arguments, ahead), None if ahead is None else ahead.announce
            batches = run_in_batches(images, self.batch_size, process, self._shrink, tell, AHEAD)
            for items, found in zip(images, batches, strict=True):
                if self._preparer is not None:
                    self._preparer.forget([request for _, request in items])
                yield from found.items()

    @contextmanager
    def _images_ahead(
        self, run: _Run, arguments: Mapping[str, Any], group: Sequence[Numbered]
    ) -> Iterator[Ahead[Sequence[Numbered], Ready[Request]] | None]:
        """Let documents be made ready ahead, unless all of them are remembered, or no method shares pictures."""
        waits = self._remembered.holds(group) or all(
            why_alone(self.family, self.anatomy, asked.method, arguments) for asked in run.asked
        )
        preparer = None if waits else self._prepares()
        if preparer is None:
            yield None
            return
        ready = preparer.shared

        def prepare(images: Sequence[Sequence[Numbered]]) -> Ready[Request]:
            return ready(images, least=1 if len(run.asked) > 1 else 2)

        with preparer, Ahead(prepare) as ahead:
            yield ahead

    def _images(
        self,
        run: _Run,
        arguments: Mapping[str, Any],
        ahead: Ahead[Sequence[Numbered], Ready[Request]] | None,
        images: Sequence[Sequence[Numbered]],
    ) -> list[dict[int, Answer]]:
        """Answer all requests about some images with all methods; return the answers of the first one."""
        own, build = run.asked[0], self._build
        prepared = None
        if ahead is None:
            prepared = self._known(run, images)
        else:  # nothing is opened beside the thread
            ready = ahead.take(images)
            build = partial(self._built, {id(request): outcome for request, outcome in ready.prompts})
            run = replace(run, family=ready.family(self.family))
        prepared = prepared or [self._prepared(own, items, build) for items in images]
        documents = [document for items in prepared for document in items]
        for asked in run.asked:
            self._tell(run, asked, documents)
        self._answer_together(run, arguments, documents, last=len(images) == 1)
        left = [d for d in documents if any(self._missing(run, asked, [d]) for asked in run.asked)]
        left.sort(key=lambda document: -document.request.length)
        for _ in run_in_batches(left, self.batch_size, partial(self._answer_alone, run), self._shrink):
            pass
        found: list[dict[int, Answer]] = []
        for items in prepared:
            entries = [(document, run.book.get(key_in(self.family, own, document))) for document in items]
            found.append({d.place: self._served(d, entry) for d, entry in entries if entry is not None})
        if any(found):
            own.failures.succeeded()
        return found

    def _known(self, run: _Run, images: Sequence[Sequence[Numbered]]) -> list[list[Document]] | None:
        """Return documents without their media if all of them were opened before, and answered by every method."""

        def again(request: Request) -> tuple[str, str]:
            try:
                prompt = self._build(request)
                with named(request):
                    return prompt.text, shown_by(prompt)
            except DocumentError:  # raised again when its turn has come
                return "", ""

        found = [self._remembered.find(items, again) for items in images]
        known = [documents for documents in found if documents is not None]
        if len(known) < len(found) or any(self._missing(run, asked, d) for asked in run.asked for d in known):
            return None
        return known

    def _prepared(
        self, own: Asked, items: Sequence[Numbered], build: Callable[[Request], DocumentPrompt]
    ) -> list[Document]:
        """Return the prompts of requests; equal images are kept once."""
        first: dict[str, tuple[Image.Image, ...]] = {}
        found: list[Document] = []
        for place, request in items:
            if place in own.failed:
                continue
            try:
                prompt = build(request)
                with named(request):
                    shown = shown_by(prompt)
            except DocumentError as error:
                own.failed.add(place)
                own.failures.failed(error)
                continue
            self._remembered.keep(request, prompt, shown)
            prompt = replace(prompt, images=first.setdefault(shown, prompt.images))
            found.append(Document.of(place, request, prompt, shown))
        return found

    def _answer_together(
        self, run: _Run, arguments: Mapping[str, Any], documents: Sequence[Document], *, last: bool
    ) -> None:
        """Answer what can go on from what prompts have in common, which is computed once for all methods.

        Parameters
        ----------
        run, arguments, documents
            What is asked.
        last
            Whether there cannot be fewer images, so that running out of memory is no error.
        """
        able: list[Asked] = []
        for asked in run.asked:
            if asked.given_up or not self._missing(run, asked, documents):
                continue
            if reason := why_alone(self.family, self.anatomy, asked.method, arguments):
                self._tell_alone(reason)
            else:
                able.append(asked)
        if reason := self._share(run, arguments, able, documents, last):
            self._tell_alone(reason)
            for asked in able if len(able) > 1 else ():  # one of them may be to blame
                self._share(run, arguments, [asked], documents, last)

    def _share(
        self, run: _Run, arguments: Mapping[str, Any], able: Sequence[Asked], documents: Sequence[Document], last: bool
    ) -> str:
        """Answer with methods that can share; return why they could not, empty if they could."""
        missing = {d.place: d for asked in able for d in self._missing(run, asked, documents)}
        by_image = groups(missing.values(), key=lambda document: document.shown)
        shown = [items for items in by_image if items[0].shown and len(items) * len(able) > 1]
        if not shown:
            return ""
        _, reason = left_alone(partial(self._go_on, run, arguments, able, shown), last=last)
        return reason

    def _go_on(
        self,
        run: _Run,
        arguments: Mapping[str, Any],
        able: Sequence[Asked],
        shown: Sequence[Sequence[Document]],
    ) -> bool:
        """Run what prompts have in common, and answer with one method after the other behind it."""
        requests = [document.request for items in shown for document in items]
        sharer = Sharer(run.family, self.anatomy, self.method, arguments, self.sharing, self.log)
        with named(*requests), torch.no_grad():
            prompts = [[document.request.build(self.family) for document in items] for items in shown]
            begun = begin(sharer, [asked.method for asked in able], prompts)
        for asked in able:
            places = {document.place for items in shown for document in self._missing(run, asked, items)}
            numbers = [[n for n, document in enumerate(items) if document.place in places] for items in shown]
            try:
                with named(*requests):
                    found = begun.answer(asked.method, numbers)
            except DocumentError as error:
                self._tell_alone(str(error))
                continue
            entries: list[Entry] = []
            for items, wanted, answers in zip(shown, numbers, found, strict=True):
                if isinstance(answers, SharingError):
                    self._tell_alone(str(answers))
                elif wanted:
                    entries += entries_of(self.family, asked, [items[n] for n in wanted], answers)
            run.book.add(entries)
            self._tell(run, asked, [document for items in shown for document in items])
        return True

    def _answer_alone(self, run: _Run, batch: Sequence[Document]) -> Sequence[None]:
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
            run.book.add([entry_of(key_in(self.family, asked, document), answer) for document, answer in made])
            self._tell(run, asked, batch)
        return [None] * len(batch)

    def _missing(self, run: _Run, asked: Asked, documents: Sequence[Document]) -> list[Document]:
        """Return the documents that a method has yet to answer; of equal ones the first."""
        found: dict[str, Document] = {}
        for document in documents:
            if document.place not in asked.failed and (key := key_in(self.family, asked, document)) not in run.book:
                found.setdefault(key, document)
        return list(found.values())

    def _tell(self, run: _Run, asked: Asked, documents: Sequence[Document]) -> None:
        for document in documents:
            if key_in(self.family, asked, document) in run.book:
                run.tell(document.place, asked)

    def _served(self, document: Document, entry: Entry) -> Answer:
        """Return an answer of the book under the method that is installed, with its costs as if it had been alone."""
        notes = once((*document.prompt.notes, *entry.notes))
        counts: Any = entry.counts
        (cost,) = self._costs([Counts(**counts)], [entry.output_tokens], None, self.method, [notes])
        self._note(document.request, notes)
        return Answer(entry.text, TimedCosts(**{**dict(cost), "batch_rows": entry.rows}))

    @contextmanager
    def _under(self, asked: Asked) -> Iterator[None]:
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
