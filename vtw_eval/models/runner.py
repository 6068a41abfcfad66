"""Answers from a model with a method installed: the part of the adapters that no harness and no family changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost import eq1_prefill_flops
from vtw_eval.engine import Trace
from vtw_eval.media import once, summary
from vtw_eval.methods import Method
from vtw_eval.methods.sockets import foreign_code
from vtw_eval.methods.vtw.method import DEFAULT_START, VTW
from vtw_eval.methods.vtw.search import Direction, SearchResult, search_layer
from vtw_eval.models.adapters import ADAPTERS, Adapter
from vtw_eval.models.batching import groups, run_in_batches
from vtw_eval.models.failures import DocumentError, Failures, document_errors
from vtw_eval.models.family import DocumentPrompt, Encoded, Family
from vtw_eval.models.loading import load
from vtw_eval.models.options import parse_options
from vtw_eval.record.costs import TimedCosts
from vtw_eval.verify.verdict import Verdict, skipped, verify
from vtw_eval.versions import UpstreamChangedError


@dataclass(frozen=True)
class Request:
    """One document to answer."""

    name: str
    """Task, split and number of the document, for messages."""
    length: int
    """Rough length of the prompt, to put prompts of similar length into a batch."""
    generation: Mapping[str, Any]
    """Generation arguments of the task."""
    build: Callable[[Family[Any]], DocumentPrompt]
    """Makes the prompt; called when its turn has come, because it opens images."""
    task: str = ""
    """Name of the task, for methods that search a parameter on its first documents."""


@dataclass(frozen=True)
class Answer:
    """Text and what it cost."""

    text: str
    costs: TimedCosts


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
        self.noted: dict[str, dict[str, None]] = {}
        """By note on media: the documents that have it."""
        self.on_answer: Callable[[int, int], None] = lambda answered, of: None
        """Told how many documents of a call of :meth:`answer` are answered; a sweep shows it."""
        log(
            f"{adapter}: method {self.method} on {self.options.pretrained} ({self.family.model_type}, "
            f"{self.anatomy.num_layers} decoder layers, {self.family.model.dtype}, batch size {self.batch_size}), "
            f"{self.verdict}"
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
        self.found = {}

    def _verify(self, method: Method) -> Verdict:
        return verify(self.family.model, method) if self.options.verify else skipped("verify=False")

    def answer(self, requests: Sequence[Request], *, progress: bool) -> list[Answer]:
        """Answer requests, in their order.

        Requests with the same generation arguments are batched, longest first, so that memory runs out at the start
        if it does. The batch size is halved for good each time.

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

        def process(batch: Sequence[Request]) -> list[Answer | None]:
            return self._answers(batch, failures)

        for task, own in self._by_task(requests):
            self.found[task] = self._search(task, own)
        answers: dict[int, Answer] = {}
        with tqdm(total=len(requests), disable=not progress, desc="Answering") as bar:
            numbered = list(enumerate(requests))
            for group in groups(
                numbered, key=lambda item: (self._method(item[1]), repr(sorted(item[1].generation.items())))
            ):
                order = sorted(group, key=lambda item: -item[1].length)
                batches = run_in_batches([request for _, request in order], self.batch_size, process, self._shrink)
                for (place, _), answer in zip(order, batches, strict=True):
                    bar.update()
                    if answer is None:
                        continue
                    answers[place] = answer
                    self.on_answer(len(answers), len(requests))
        failures.check(answers, len(requests))
        return [answers[place] for place in range(len(requests))]

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

    def tell_media(self) -> None:
        """Warn of each note on media with the documents that have it, and forget them."""
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
        with _named(request):
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
                with _named(request):
                    encoded = self.family.encode([prompt])
                if encoded.vision_mask is not None:
                    raise ValueError("k=search does not work with remote code: pass a number for k.")
                yield encoded.inputs

        return search_layer(self.family.model, prompts(), eta, start, direction=direction)

    def _by_task(self, requests: Sequence[Request]) -> list[tuple[str, list[Request]]]:
        """Return the tasks that still need a search, with their requests."""
        if self.method.search is None:
            return []
        tasks = groups((r for r in requests if r.task not in self.found), key=lambda request: request.task)
        return [(own[0].task, own) for own in tasks]

    def _search(self, task: str, requests: Sequence[Request]) -> Method:
        asked = self.method.search
        assert asked is not None
        result = self._searched(requests[: asked.samples], asked.eta, asked.start, "vtw_full")
        method = self.method.found(result.k)
        self.log(
            f"{task}: {method} by search on {len(result.per_sample)} documents, eta {asked.eta}. " + result.advice()
        )
        return method

    def _method(self, request: Request) -> Method:
        return self.found.get(request.task, self.method)

    def _installed(
        self, method: Method, encoded: Encoded, answer_mask: Tensor | None = None
    ) -> AbstractContextManager[Trace]:
        ids, vision = encoded.inputs["input_ids"], encoded.vision_mask
        return method(self.family.model, vision_mask=vision, prompt_ids=ids, answer_mask=answer_mask)

    def _shrink(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.log(f"out of memory: going on with batch size {batch_size}")

    def _build(self, request: Request) -> DocumentPrompt:
        with _named(request):
            prompt = request.build(self.family)
        self._note(request, prompt.notes)
        return prompt

    def _batch(self, requests: Sequence[Request]) -> list[Answer]:
        prompts = [self._build(request) for request in requests]
        with _named(*requests):
            generation = requests[0].generation
            arguments = self.family.generation(generation)
            encoded = self.family.encode(prompts)
            notes = _notes(prompts, encoded)
            start = self._now()
            method = self._method(requests[0])
            with self._installed(method, encoded) as trace:
                tokens = self.family.generate(encoded, arguments)
            seconds = self._now() - start
            check_trace(trace, encoded, prompts)
            texts = self.family.decode(tokens, generation)
            lengths = _answer_lengths(tokens.cpu(), arguments["eos_token_id"])
            costs = self._costs(trace, lengths, seconds, method, notes)
        for request, found in zip(requests, notes, strict=True):
            self._note(request, found)
        return [Answer(text, cost) for text, cost in zip(texts, costs, strict=True)]

    def _now(self) -> float:
        if self.family.device.type == "cuda":
            torch.cuda.synchronize(self.family.device)
        return time.perf_counter()

    def _costs(
        self, trace: Trace, lengths: Sequence[int], seconds: float, method: Method, notes: Sequence[tuple[str, ...]]
    ) -> list[TimedCosts]:
        rows = len(lengths)
        beams = trace.tokens_per_layer.shape[0] // rows  # generate repeats each row once per beam, side by side
        tokens = trace.tokens_per_layer[::beams]
        vision = trace.vision_per_layer[::beams]
        assert trace.reduction is not None, "generate has run"
        prompt = trace.reduction.prompt
        return [
            TimedCosts(
                input_tokens=int(prompt.valid[i * beams].sum()),
                output_tokens=lengths[i],
                vision_tokens=int(prompt.vision[i * beams].sum()),
                tokens_per_layer=tuple(tokens[i].tolist()),
                vision_per_layer=tuple(vision[i].tolist()),
                prefill_flops=flops,
                latency_s=seconds / rows,
                batch_rows=rows,
                method=str(method),
                asked=str(self.method),
                method_code=foreign_code(method),
                verified=str(self.verdict),
                media=notes[i],
            )
            for i, flops in enumerate(eq1_prefill_flops(tokens, self.anatomy.hidden_size).tolist())
        ]


def check_trace(trace: Trace, encoded: Encoded, prompts: Sequence[DocumentPrompt]) -> None:
    """Check that a trace is that of one generation from these prompts.

    Parameters
    ----------
    trace
        After the generation.
    encoded, prompts
        What it was for.

    Raises
    ------
    UpstreamChangedError
        If the prompts ran more than once or not at all, if other tokens entered the decoder than those that are not
        padding, or if an image or video has no vision tokens.
    """
    if trace.reduction is None or trace.prefills != 1:
        raise UpstreamChangedError(f"a generation counts as {trace.prefills} prompts", "transformers")
    prompt, mask = trace.reduction.prompt, encoded.inputs["attention_mask"].bool()
    beams = len(prompt.valid) // len(mask)  # generate repeats each row once per beam, side by side
    valid, vision = prompt.valid[::beams].to(mask.device), prompt.vision[::beams]
    if not torch.equal(valid, mask):
        entered, given = valid.sum(dim=1).tolist(), mask.sum(dim=1).tolist()
        raise UpstreamChangedError(f"{entered} tokens entered the decoder for prompts of {given}", "transformers")
    for row, (shown, document) in enumerate(zip(vision.any(dim=1).tolist(), prompts, strict=True)):
        if not shown and (document.images or document.videos):
            raise UpstreamChangedError(f"prompt {row} of the batch has media, but no vision tokens", "transformers")


def _notes(prompts: Sequence[DocumentPrompt], encoded: Encoded) -> list[tuple[str, ...]]:
    """Return the notes on each row's media, each once."""
    added = encoded.notes or ((),) * len(prompts)
    return [once((*p.notes, *more)) for p, more in zip(prompts, added, strict=True)]


def _answer_lengths(tokens: Tensor, eos: int | Sequence[int]) -> list[int]:
    """Count each row's tokens up to the first end of sequence, which counts too."""
    ends = torch.isin(tokens, torch.tensor(eos))
    lengths = torch.full((tokens.shape[0],), tokens.shape[1])
    first = ends.int().argmax(dim=1) + 1 if tokens.shape[1] else lengths
    return torch.where(ends.any(dim=1), first, lengths).tolist()


def _named(*requests: Request) -> AbstractContextManager[None]:
    return document_errors(*(request.name for request in requests))
