"""Answers from a model with a method installed: the part of the adapters that no harness and no family changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost import eq1_prefill_flops
from vtw_eval.engine import Trace
from vtw_eval.media import BLANK, once, summary
from vtw_eval.methods import Method
from vtw_eval.methods.base import LayerSearch, MetricSearch
from vtw_eval.methods.sockets import foreign_code
from vtw_eval.methods.vtw.method import DEFAULT_START, VTW
from vtw_eval.methods.vtw.search import Direction, SearchResult, search_layer
from vtw_eval.models.adapters import ADAPTERS, Adapter
from vtw_eval.models.batching import groups, run_in_batches
from vtw_eval.models.blank import as_asked
from vtw_eval.models.failures import DocumentError, Failures
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.models.loading import load
from vtw_eval.models.options import parse_options
from vtw_eval.models.prefetch import AHEAD, Ahead, Preparer, Ready
from vtw_eval.models.requests import Answer, Numbered, Request, answer_lengths, left_alone, named
from vtw_eval.models.shared import SharedAnswer, Sharer, Sharing
from vtw_eval.models.sharing import SharingError, digest, stop_ids, why_alone
from vtw_eval.models.traces import Counts, check_trace, counts_of
from vtw_eval.models.weights import described
from vtw_eval.record.costs import TimedCosts
from vtw_eval.verify.verdict import Verdict, skipped, verify
from vtw_eval.versions import UpstreamChangedError

BY_METRIC = (
    "k=search,by=metric chooses k by scores, which only a sweep knows: put it into a plan for vtw-eval sweep, or look "
    "at all k with vtw-eval curve and pass one."
)


class Runner:
    """A model with a method, answering requests in batches.

    Parameters
    ----------
    adapter
        A key of ``adapters``.
    arguments
        Options of the adapter and parameters of the method by name, as a harness parsed them.
    simple
        Whether prompts follow lmms-eval's simple protocol.
    device
        Where the model goes, unless a device map is given.
    log
        Told what is run, what a search has found and when batches get smaller.
    warn
        Told which documents' media the model is shown otherwise than a viewer shows them. ``None``: ``log`` is.
    progress
        Whether searches show a progress bar.
    adapters
        The adapters by name: those of lmms-eval, or those of another harness.

    Raises
    ------
    ValueError
        For bad arguments and for a checkpoint that the adapter cannot open.
    VerificationError
        If the method does not compute what it should with the installed packages.
    """

    def __init__(
        self,
        adapter: str,
        arguments: Mapping[str, Any],
        *,
        simple: bool,
        device: torch.device,
        log: Callable[[str], None],
        warn: Callable[[str], None] | None = None,
        progress: bool = False,
        adapters: Mapping[str, Adapter] = ADAPTERS,
    ) -> None:
        self.progress = progress
        self.options, method = parse_options(adapter, adapters[adapter].options, arguments)
        if isinstance(method.search, MetricSearch):
            raise ValueError(BY_METRIC)
        self.log = log
        self.warn = warn or log
        self.family = load(adapter, self.options, simple=simple, device=device, adapters=adapters)
        self.anatomy = find_anatomy(self.family.model)
        self.method = method.bind(self.anatomy)
        self.verdict = self._verify(self.method)
        """Whether the method does what it should with the installed packages."""
        self.batch_size = self.options.batch_size
        self.found: dict[str, Method] = {}
        """The method of each task for which a search has found its parameter."""
        self.chosen: dict[str, Method] = {}
        """By name of a document: the method that a search by metric has chosen on others."""
        self.sharing = Sharing()
        """What is known about prompts that share what they have in common."""
        self.noted: dict[str, dict[str, None]] = {}
        """By note on media: the documents that have it."""
        self.on_answer: Callable[[int, int], None] = lambda answered, of: None
        """Told how many documents of a call of :meth:`answer` are answered; a sweep shows it."""
        self._preparer: Preparer[Request] | None = None
        self._ahead: Ahead[Request, Ready[Request]] | None = None
        """While requests are answered one by one: what makes them ready."""
        log(
            f"{adapter}: method {self.method} on {self.options.pretrained} ({self.family.model_type}, "
            f"{self.anatomy.num_layers} decoder layers, {self.family.model.dtype}, batch size {self.batch_size}), "
            f"{self.verdict}{'; ' if (weights := described(self.family.model)) else ''}{weights}"
        )

    def exchange(self, method: Method) -> None:
        """Go on with another method on the same model; what a search has found for the last one is forgotten.

        Raises
        ------
        ValueError
            If the method is impossible for this model; the last one then stays.
        VerificationError
            If it does not compute what it should with the installed packages.
        """
        method = method.bind(self.anatomy)
        self.verdict = self._verify(method)
        self.method = method
        self.found, self.chosen = {}, {}
        self.sharing.told.clear()

    def _verify(self, method: Method) -> Verdict:
        return verify(self.family.model, method) if self.options.verify else skipped("verify=False")

    def answer(self, requests: Sequence[Request], *, progress: bool) -> list[Answer]:
        """Answer requests, in their order.

        Requests with the same generation arguments are batched, longest first, so that memory runs out at the start
        if it does. The batch size is halved for good each time. Before that, what prompts that show the same have in
        common is computed once for all of them, where that changes no answer.

        Parameters
        ----------
        requests
            What to answer.
        progress
            Whether to show a progress bar.

        Raises
        ------
        DocumentError
            If a document cannot be answered for another reason than memory; the others are answered first, and the
            error holds their answers.
        """
        failures = Failures()
        for task, own in self._by_task(requests):
            self.found[task] = self._search(task, own)
        answers: dict[int, Answer] = {}
        with tqdm(total=len(requests), disable=not progress, desc="Answering") as bar:

            def keep(place: int, answer: Answer) -> None:
                answers[place] = answer
                self.on_answer(len(answers), len(requests))

            numbered = list(enumerate(requests))
            for group in groups(
                numbered, key=lambda item: (self._method(item[1]), repr(sorted(item[1].generation.items())))
            ):
                for place, found in self._group(group, failures):
                    bar.update()
                    if found is not None:
                        keep(place, found)
        failures.check(answers, len(requests))
        return [answers[place] for place in range(len(requests))]

    def _group(self, group: Sequence[Numbered], failures: Failures) -> Iterator[tuple[int, Answer | None]]:
        """Answer requests with the same generation arguments; None stands for those that fail."""
        answered = set[int]()
        for place, answer in self._together(group):
            answered.add(place)
            yield place, answer
        alone = sorted((item for item in group if item[0] not in answered), key=lambda item: -item[1].length)
        requests = [request for _, request in alone]
        with self._one_by_one(len(requests)) as ahead:
            process = partial(self._answers, failures=failures)
            tell = None if ahead is None else ahead.announce
            batches = run_in_batches(requests, self.batch_size, process, self._shrink, tell, AHEAD)
            for (place, _), found in zip(alone, batches, strict=True):
                yield place, found

    @contextmanager
    def _one_by_one(self, count: int) -> Iterator[Ahead[Request, Ready[Request]] | None]:
        """Let requests be made ready ahead, if they are."""
        preparer = self._prepares() if count else None
        if preparer is None:
            yield None
            return
        with preparer, Ahead(preparer.alone) as self._ahead:
            try:
                yield self._ahead
            finally:
                self._ahead = None

    def _prepares(self) -> Preparer[Request] | None:
        """Return what makes documents ready while the model runs, None if nothing does."""
        family, asked = self.family, self.options.prefetch
        if asked == "off" or (asked == "auto" and family.device.type != "cuda") or family.auto_class == "AutoModel":
            return None
        if self._preparer is None:
            self._preparer = Preparer(family, lambda request, own: as_asked(request.build(own), self.options))
        return self._preparer

    def _answers(self, requests: Sequence[Request], failures: Failures) -> list[Answer | None]:
        """Answer a batch, or its documents one by one if one of them fails; None stands for those that do."""
        try:
            answers: list[Answer | None] = list(self._batch(requests))
        except DocumentError as error:
            if len(requests) > 1 and not isinstance(error.__cause__, UpstreamChangedError):
                return [answer for request in requests for answer in self._answers([request], failures)]
            failures.failed(error)
            return [None]
        failures.succeeded()
        return answers

    def _together(self, group: Sequence[Numbered]) -> Iterator[tuple[int, Answer]]:
        """Answer those requests of a group that can share a pass over their images; the others are left."""
        asked = groups((item for item in group if item[1].media), key=lambda item: (item[1].task, item[1].media))
        asked = sorted((items for items in asked if len(items) > 1), key=len, reverse=True)
        request = group[0][1]
        if not asked or not self.shares(request):
            return
        method, arguments = self._method(request), self.family.generation(request.generation)
        sharer = Sharer(self.family, self.anatomy, method, arguments, self.sharing, self.log)
        preparer = self._prepares()
        if preparer is None:
            for answers in run_in_batches(asked, self.batch_size, partial(self._shared, sharer), self._shrink):
                yield from answers.items()
            return
        with preparer, Ahead(preparer.shared) as ahead:
            process = partial(self._shared, sharer, ahead=ahead)
            batches = run_in_batches(asked, self.batch_size, process, self._shrink, ahead.announce, AHEAD)
            for items, answers in zip(asked, batches, strict=True):
                preparer.forget([request for _, request in items])
                yield from answers.items()

    def shares(self, request: Request) -> bool:
        """Tell whether requests like this one that show the same share a pass; if not, the log says once why."""
        if self.options.sharing == "off":
            return False
        arguments = self.family.generation(request.generation)
        if reason := why_alone(self.family, self.anatomy, self._method(request), arguments):
            self._tell_alone(reason)
        return not reason

    def _tell_alone(self, reason: str) -> None:
        if reason not in self.sharing.told:
            self.sharing.told.add(reason)
            self.log(f"prompts about one image are computed one by one: {reason}")

    def _shared(
        self,
        sharer: Sharer,
        asked: Sequence[Sequence[Numbered]],
        ahead: Ahead[Sequence[Numbered], Ready[Request]] | None = None,
    ) -> list[dict[int, Answer]]:
        """Answer requests about some images, as far as they can share; what goes wrong is left to the usual way."""
        made, reason = left_alone(partial(self._answers_shared, sharer, asked, ahead), last=len(asked) == 1)
        if made is None:
            self._tell_alone(reason)
            return [{} for _ in asked]
        return made

    def _answers_shared(
        self,
        sharer: Sharer,
        asked: Sequence[Sequence[Numbered]],
        ahead: Ahead[Sequence[Numbered], Ready[Request]] | None,
    ) -> list[dict[int, Answer]]:
        build = self._build
        if ahead is not None:
            ready = ahead.take(asked)
            build = partial(self._built, {id(request): outcome for request, outcome in ready.prompts})
            sharer = replace(sharer, family=ready.family(self.family))
        shown = [images for items in asked for images in self._by_media(items, build) if len(images) > 1]
        made: dict[int, Answer] = {}
        if not shown:
            return [made for _ in asked]
        requests = [request for images in shown for _, request, _ in images]
        with named(*requests):
            found = sharer.answer([[prompt for _, _, prompt in images] for images in shown])
            for images, answers in zip(shown, found, strict=True):
                if isinstance(answers, SharingError):
                    self._tell_alone(str(answers))
                else:
                    made |= self._of_shared(sharer, images, answers)
        return [{place: made[place] for place, _ in items if place in made} for items in asked]

    def _of_shared(
        self, sharer: Sharer, images: Sequence[tuple[int, Request, DocumentPrompt]], answers: Sequence[SharedAnswer]
    ) -> dict[int, Answer]:
        notes = [once((*prompt.notes, *each.notes)) for (_, _, prompt), each in zip(images, answers, strict=True)]
        eos, pad = stop_ids(sharer.arguments)
        tokens = torch.nn.utils.rnn.pad_sequence([each.tokens for each in answers], True, pad)
        texts = self.family.decode(tokens, images[0][1].generation)
        lengths = answer_lengths(tokens, eos)
        costs = self._costs([each.counts for each in answers], lengths, None, sharer.method, notes)
        for (_, request, _), found in zip(images, notes, strict=True):
            self._note(request, found)
        return {place: Answer(text, cost) for (place, _, _), text, cost in zip(images, texts, costs, strict=True)}

    def _by_media(
        self, items: Sequence[Numbered], build: Callable[[Request], DocumentPrompt] | None = None
    ) -> list[list[tuple[int, Request, DocumentPrompt]]]:
        """Return the prompts of requests by what they really show; those that show nothing are left out."""
        first: dict[bytes, DocumentPrompt] = {}
        found: dict[bytes, list[tuple[int, Request, DocumentPrompt]]] = {}
        for place, request in items:
            try:
                prompt = (build or self._build)(request)
            except DocumentError:  # raised again when its turn has come
                continue
            if shown := digest(prompt):
                # Equal images are kept once.
                prompt = prompt.holding(first.setdefault(shown, prompt))
                found.setdefault(shown, []).append((place, request, prompt))
        return list(found.values())

    def tell_media(self) -> None:
        """Warn of each note on media with the documents that have it, and forget them."""
        if blank := self.noted.pop(BLANK, None):
            self.warn(f"image=blank: {summary({BLANK: list(blank)})[0]}")
        for line in summary({note: list(names) for note, names in self.noted.items()}):
            shown = "as the harness's own adapter does" if self.options.media == "harness" else "all the same"
            advice = "; media=upright shows what a viewer shows" if self.options.media == "harness" else ""
            self.warn(f"{line}, shown {shown}{advice}")
        self.noted = {}

    def _note(self, request: Request, notes: Iterable[str]) -> None:
        for note in notes:
            self.noted.setdefault(note, {})[request.name] = None

    def log_likelihood(self, request: Request, continuation: str) -> tuple[float, bool]:
        """Return the log-probability of a continuation of a prompt, and whether greedy decoding would give it.

        Raises
        ------
        DocumentError
            See :meth:`answer`.
        NotImplementedError
            For remote code, whose ``forward`` is made for training.
        """
        if self.family.auto_class == "AutoModel":
            raise NotImplementedError(f"{self.family.model_type} checkpoints cannot score continuations.")
        prompt = self._build(request)
        with named(request):
            before = self.family.encode([prompt]).inputs["input_ids"][0]
            encoded = self.family.encode([replace(prompt, text=prompt.text + continuation)])
            ids = encoded.inputs["input_ids"][0]
            # A tokenizer may merge the end of the prompt with the continuation: count from where they differ.
            shared = min(len(before), len(ids) - 1)
            same = before[:shared] == ids[:shared]
            start = shared if bool(same.all()) else int((~same).int().argmax())
            answer = torch.arange(len(ids), device=ids.device)[None] >= start  # no part of what a method chooses by
            with torch.inference_mode(), self._installed(self.method, encoded, answer) as trace:
                logits = self.family.model(**encoded.inputs).logits[0, start - 1 : -1].float()
            check_trace(trace, encoded, [prompt])
        target = ids[start:]
        scores = logits.log_softmax(-1).gather(1, target[:, None])
        return float(scores.sum()), bool((logits.argmax(-1) == target).all())

    def refuse_search(self, where: str) -> None:
        """Raise ``ValueError`` if the method has a parameter to search, which ``where`` does not allow."""
        if self.method.search is not None:
            raise ValueError(f"k=search does not work with {where}: find k with vtw-eval search-k and pass it.")

    def search(
        self, requests: Sequence[Request], eta: float, *, start: int = DEFAULT_START, direction: Direction = "vtw_full"
    ) -> SearchResult:
        """Search the withdrawal layer on some documents.

        Parameters
        ----------
        requests
            The documents.
        eta, start, direction
            See :func:`vtw_eval.methods.vtw.search.search_layer`.

        Raises
        ------
        ValueError
            For remote code, whose prompts do not go through the model's forward.
        VerificationError
            If the search does not find what it should with the installed packages.
        """
        verdict = self._verify(VTW(k="search", start=start).bind(self.anatomy))
        result = self._searched(requests, eta, start, direction)
        self.tell_media()
        return replace(result, verified=str(verdict))

    def _searched(self, requests: Sequence[Request], eta: float, start: int, direction: Direction) -> SearchResult:
        def prompts() -> Iterator[Mapping[str, Any]]:
            for request in tqdm(requests, desc="Searching k", disable=not self.progress):
                prompt = self._build(request)
                with named(request):
                    encoded = self.family.encode([prompt])
                if encoded.vision_mask is not None:
                    raise ValueError("k=search does not work with remote code: pass a number for k.")
                yield encoded.inputs

        return search_layer(self.family.model, prompts(), eta, start, direction=direction)

    def _by_task(self, requests: Sequence[Request]) -> list[tuple[str, list[Request]]]:
        """Return the tasks that still need a search, with their requests."""
        if self.method.search is None:
            return []
        if isinstance(self.method.search, MetricSearch) and any(r.name not in self.chosen for r in requests):
            raise ValueError(BY_METRIC)
        left = (r for r in requests if r.task not in self.found and r.name not in self.chosen)
        tasks = groups(left, key=lambda request: request.task)
        return [(own[0].task, own) for own in tasks]

    def _search(self, task: str, requests: Sequence[Request]) -> Method:
        asked = self.method.search
        assert isinstance(asked, LayerSearch)
        result = self._searched(requests[: asked.samples], asked.eta, asked.start, "vtw_full")
        method = self.method.found(result.k)
        self.log(
            f"{task}: {method} by search on {len(result.per_sample)} documents, eta {asked.eta}. " + result.advice()
        )
        return method

    def _method(self, request: Request) -> Method:
        return self.chosen.get(request.name) or self.found.get(request.task, self.method)

    def _installed(
        self, method: Method, encoded: Encoded, answer_mask: Tensor | None = None
    ) -> AbstractContextManager[Trace]:
        ids, vision = encoded.inputs["input_ids"], encoded.vision_mask
        return method(self.family.model, vision_mask=vision, prompt_ids=ids, answer_mask=answer_mask)

    def _shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.log(f"out of memory: going on with batch size {batch_size}")

    def _build(self, request: Request) -> DocumentPrompt:
        with named(request):
            prompt = as_asked(request.build(self.family), self.options)
        self._note(request, prompt.notes)
        return prompt

    def _built(self, known: Mapping[int, DocumentPrompt | DocumentError], request: Request) -> DocumentPrompt:
        """Return a prompt that was made ahead, as if it had been built now."""
        prompt = known[id(request)]
        if isinstance(prompt, DocumentError):
            raise prompt
        self._note(request, prompt.notes)
        return prompt

    def _encoded(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        return self.family.encode(prompts)

    def _batch(self, requests: Sequence[Request]) -> list[Answer]:
        ready = None if self._ahead is None else self._ahead.take(requests)
        known = {} if ready is None else {id(request): outcome for request, outcome in ready.prompts}
        build = self._build if ready is None else partial(self._built, known)
        prompts = [build(request) for request in requests]
        with named(*requests):
            generation = requests[0].generation
            arguments = self.family.generation(generation)
            encoded = self._encoded(prompts) if ready is None else ready.encode(self.family, prompts)
            notes = _notes(prompts, encoded)
            start = self._now()
            method = self._method(requests[0])
            with self._installed(method, encoded) as trace:
                tokens = self.family.generate(encoded, arguments)
            seconds = self._now() - start
            check_trace(trace, encoded, prompts)
            texts = self.family.decode(tokens, generation)
            lengths = answer_lengths(tokens.cpu(), arguments["eos_token_id"])
            beams = len(trace.tokens_per_layer) // len(lengths)  # generate repeats each row once per beam
            costs = self._costs(counts_of(trace, beams), lengths, seconds / len(lengths), method, notes)
        for request, found in zip(requests, notes, strict=True):
            self._note(request, found)
        if self._preparer is not None:
            self._preparer.forget(requests)
        return [Answer(text, cost) for text, cost in zip(texts, costs, strict=True)]

    def _now(self) -> float:
        if self.family.device.type == "cuda":
            torch.cuda.synchronize(self.family.device)
        return time.perf_counter()

    def _costs(
        self,
        counts: Sequence[Counts],
        lengths: Sequence[int],
        latency: float | None,
        method: Method,
        notes: Sequence[tuple[str, ...]],
    ) -> list[TimedCosts]:
        tokens = torch.tensor([each.tokens_per_layer for each in counts])
        updated = torch.tensor([each.updated_per_layer or each.tokens_per_layer for each in counts])
        width = self.anatomy.hidden_size
        return [
            TimedCosts(
                **vars(each),
                output_tokens=length,
                prefill_flops=flops,
                latency_s=latency,
                batch_rows=len(counts),
                method=str(method),
                asked=str(self.method),
                method_code=foreign_code(method),
                verified=str(self.verdict),
                media=noted,
            )
            for each, length, flops, noted in zip(
                counts, lengths, eq1_prefill_flops(tokens, width, updated).tolist(), notes, strict=True
            )
        ]


def _notes(prompts: Sequence[DocumentPrompt], encoded: Encoded) -> list[tuple[str, ...]]:
    """Return the notes on each row's media, each once."""
    added = encoded.notes or ((),) * len(prompts)
    return [once((*p.notes, *more)) for p, more in zip(prompts, added, strict=True)]
