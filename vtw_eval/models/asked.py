"""What is asked of several methods, and how answers stand in a book."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch

from vtw_eval.methods import Method
from vtw_eval.models.failures import Failures
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.requests import Answer, Request, answer_lengths
from vtw_eval.models.shared import SharedAnswer
from vtw_eval.models.sharing import digest, stop_ids
from vtw_eval.models.traces import Counts
from vtw_eval.record.book import Entry, key_of
from vtw_eval.verify.verdict import Verdict


@dataclass
class Asked:
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
class Document:
    """A request whose turn has come."""

    place: int
    request: Request
    """Gives the prompt that is ready, without notes."""
    prompt: DocumentPrompt
    shown: str
    """Digest of the media; empty if there are none."""

    @classmethod
    def of(cls, place: int, request: Request, prompt: DocumentPrompt, shown: str) -> Document:
        """Return the document of a request whose prompt is ready."""
        ready = replace(request, build=partial(_ready, replace(prompt, notes=())))
        return cls(place, ready, prompt, shown)


def key_in(family: Family[Any], asked: Asked, document: Document) -> str:
    """Return the key of an answer in a book."""
    model = [family.device.type, str(family.model.dtype), family.options.batch_size, family.simple]
    prompt = [document.prompt.text, document.shown, repr(sorted(document.request.generation.items()))]
    return key_of(asked.decides, model, prompt)


def shown_by(prompt: DocumentPrompt) -> str:
    """Return a digest of what a prompt shows that outlives this process: a video may become another one."""
    times = [os.stat(video).st_mtime_ns for video in prompt.videos]
    return digest(prompt).hex() + "".join(f" {time}" for time in times)


def entry_of(key: str, answer: Answer) -> Entry:
    """Return what a book keeps of an answer; its notes must be those of encoding alone."""
    costs = answer.costs
    counts = Counts(**{part.name: getattr(costs, part.name) for part in fields(Counts)})
    return _entry(key, answer.text, costs.output_tokens, counts, costs.media, costs.batch_rows)


def entries_of(
    family: Family[Any],
    asked: Asked,
    documents: Sequence[Document],
    answers: Sequence[SharedAnswer],
) -> list[Entry]:
    """Return what a book keeps of answers that were made together; the documents' generation arguments are equal."""
    generation = documents[0].request.generation
    eos, pad = stop_ids(family.generation(generation))
    tokens = torch.nn.utils.rnn.pad_sequence([each.tokens for each in answers], True, pad)
    texts, lengths = family.decode(tokens, generation), answer_lengths(tokens, eos)
    return [
        _entry(key_in(family, asked, document), text, length, each.counts, each.notes, len(documents))
        for document, text, length, each in zip(documents, texts, lengths, answers, strict=True)
    ]


def _ready(prompt: DocumentPrompt, family: Family[Any]) -> DocumentPrompt:
    return prompt


def _entry(key: str, text: str, output_tokens: int, counts: Counts, notes: tuple[str, ...], rows: int) -> Entry:
    return Entry(key=key, text=text, output_tokens=output_tokens, counts=vars(counts), notes=notes, rows=rows)
