"""One conversation of a model with one method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from vtw_eval.chat.model import ChatModel
from vtw_eval.chat.stream import Listener, Stop
from vtw_eval.cost.turn import exact_answer_flops, exact_chunk_flops
from vtw_eval.engine import Reads, Trace
from vtw_eval.engine.cache import has_keys
from vtw_eval.engine.turns import Held, TurnError, common, first_turn, next_turn
from vtw_eval.media import Visual, once
from vtw_eval.methods import Method
from vtw_eval.models.family import DocumentPrompt, Encoded, Message, content_of
from vtw_eval.models.sharing import ids_of, stop_ids
from vtw_eval.models.traces import check_trace

Ended = Literal["end", "length", "stopped"]
"""Why an answer is over: the model ended it, it is as long as it may be, somebody has stopped it."""

Encoding = Literal["none", "made", "kept", "read"]
"""What was done about the picture: nothing; it was encoded; its encoding was there; the method reads the tower, which
has run for it."""


@dataclass(frozen=True)
class Turn:
    """A question, its answer and what that cost."""

    question: str
    answer: str
    ended: Ended
    prompt_tokens: int
    """Tokens of the conversation up to the answer, removed ones among them."""
    fresh_tokens: int
    """Those that ran in this turn; others were in the KV cache."""
    new_tokens: int
    """Of the answer."""
    tokens_per_layer: tuple[int, ...]
    """Tokens that each layer's cache holds after it."""
    prefill_flops: float | None
    """Of the language model's matrix products up to the first token of the answer; None without a closed form."""
    answer_flops: float | None
    """Of the decode steps behind it."""
    kv_bytes: int
    """What keys and values take after the answer, measured."""
    kv_share: float
    """That, as a share of what they would take with all tokens."""
    first_seconds: float
    """From the question to the first token, with reading and encoding the picture."""
    rate: float | None
    """Tokens per second behind the first one; None for answers of one token."""
    encoding: Encoding
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, and why."""


@dataclass(frozen=True)
class _State:
    """Where a conversation stands."""

    held: Held
    trace: Trace
    first: Encoded
    """The prompt in which the method has chosen."""
    text: str
    """Its text."""

    @property
    def gone(self) -> Tensor:
        """How many tokens of the prompt each layer's cache lacks, long ``[layers]``."""
        assert self.trace.reduction is not None, "it has run"
        return torch.tensor(self.trace.reduction.gone)


@dataclass(frozen=True)
class _Done:
    """What a turn has run."""

    tokens: Tensor
    """Of the answer, long ``[new]``."""
    length: int
    """Tokens of the conversation before the answer."""
    before: Tensor
    """Tokens that each layer's cache held, long ``[layers]``."""
    fresh: Tensor
    """Tokens that entered each layer up to the first token of the answer, long ``[layers]``."""
    encoding: Encoding
    notes: tuple[str, ...]


@dataclass
class Session:
    """A conversation about pictures or videos, or none, with one method.

    The first question brings the pictures, and the method chooses among their tokens. Later ones go on from what it
    has left. Where a template rewrites what was said, or positions do not allow that, the whole conversation runs
    again, and a note says so.

    Parameters
    ----------
    model
        The model.
    method
        Of :meth:`ChatModel.method`.
    media
        Pictures (opened or their paths) and paths of videos.
    """

    model: ChatModel
    method: Method
    media: Sequence[Visual] = ()
    turns: list[Turn] = field(init=False, default_factory=list)
    """What was said."""
    _messages: list[Message] = field(init=False, default_factory=list)
    _state: _State | None = field(init=False, default=None)

    @property
    def encoded(self) -> Encoded | None:
        """The prompt in which the method has chosen among vision tokens; None before."""
        return None if self._state is None else self._state.first

    @property
    def trace(self) -> Trace | None:
        """What the method has done in it; None before."""
        return None if self._state is None else self._state.trace

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 256,
        told: Callable[[str], None] = lambda text: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Turn:
        """Ask, greedily, and return the turn.

        Parameters
        ----------
        question
            Text.
        max_new_tokens
            Length of the answer.
        told
            Gets the answer so far, while it grows.
        stopped
            Asked after each token whether to end the answer.

        Raises
        ------
        ValueError
            If the question is empty, or marks a picture that is not there; the conversation then stays as it was.
        """
        if not question.strip():
            raise ValueError("the question is empty.")
        family = self.model.family
        # Only the first question shows something.
        content = content_of(question, () if self._messages else self.media)
        messages = [*self._messages, {"role": "user", "content": content}]
        generation = {"max_new_tokens": max_new_tokens}
        listener = Listener(lambda ids: family.decode(ids, generation)[0], told)
        arguments = {
            **family.generation(generation),
            "streamer": listener,
            "stopping_criteria": StoppingCriteriaList([Stop(stopped)]),
        }
        with self.model.lock, torch.no_grad():
            begun = time.perf_counter()  # waiting for others costs this method nothing
            done = self._run(messages, arguments)
        ended = _end(done.tokens.tolist(), stop_ids(arguments)[0], max_new_tokens)
        answer = family.decode(done.tokens[None].cpu(), generation)[0]
        turn = self._turn(question, answer, ended, done, begun, listener.times)
        self._messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.turns.append(turn)
        return turn

    # One turn -----------------------------------------------------------------------------------------------------

    def _run(self, messages: Sequence[Message], arguments: dict[str, Any]) -> _Done:
        """Run a turn, from the cache if that can go on."""
        family = self.model.family
        if not self._messages:
            return self._first(family.chat_prompt(messages), arguments)
        why = "the last answer has failed"
        if (state := self._state) is not None:
            ids = self._ids(state, messages)
            self._state = None  # used up, whatever happens
            try:
                return self._later(state, ids, arguments)
            except TurnError as error:
                why = str(error)
        done = self._first(family.chat_prompt(messages), arguments)
        return replace(done, notes=(*done.notes, f"the whole conversation has run again: {why}"))

    def _first(self, prompt: DocumentPrompt, arguments: dict[str, Any]) -> _Done:
        """Run a conversation from its start."""
        family, features = self.model.family, self.model.features
        encoded = family.encode([prompt])
        ids = encoded.inputs["input_ids"]
        reads = bool(Reads.TOWER in self.method.reads and self.method.layers(self.model.anatomy.num_layers))
        runs = features.runs
        with nullcontext() if reads else features.installed(), self.method(family.model, prompt_ids=ids) as trace:
            tokens, held = first_turn(family.model, encoded.inputs, arguments)
        check_trace(trace, encoded, [prompt])
        encoding: Encoding = "none"
        if prompt.images or prompt.videos:
            encoding = "read" if reads else "made" if features.runs > runs else "kept"
        self._state = _State(held, trace, encoded, prompt.text)
        fresh = trace.tokens_per_layer[0]
        notes = (*prompt.notes, *(note for row in encoded.notes for note in row))
        return _Done(tokens, ids.shape[1], torch.zeros_like(fresh), fresh, encoding, once(notes))

    def _later(self, state: _State, ids: Tensor, arguments: dict[str, Any]) -> _Done:
        """Go on from the cache."""
        same = min(common(state.held, ids), ids.shape[1] - 1)
        with self.method(self.model.family.model, prompt_ids=state.first.inputs["input_ids"]):
            tokens, held = next_turn(self.model.family.model, state.held, ids, arguments)
        self._state = replace(state, held=held)
        before = same - state.gone
        return _Done(tokens, ids.shape[1], before, torch.full_like(before, ids.shape[1] - same), "none", ())

    def _ids(self, state: _State, messages: Sequence[Message]) -> Tensor:
        """Return the ids of a whole conversation; no picture is opened where the tokenizer alone tells them."""
        family, first = self.model.family, state.first.inputs["input_ids"]
        text, rows = family.render(messages), None
        if self.model.plain_ids is not False:
            vision = frozenset(self.model.anatomy.vision_token_ids)
            rows = ids_of(family, first[0].tolist(), [state.text, text], vision)
        if rows is not None and self.model.plain_ids:
            return torch.tensor([rows[1]], device=first.device)
        prompt = family.chat_prompt(messages)
        whole: Tensor = family.encode([prompt]).inputs["input_ids"]
        if rows is not None:
            self.model.plain_ids = prompt.text == text and whole[0].tolist() == rows[1]
        return whole

    def _turn(
        self, question: str, answer: str, ended: Ended, done: _Done, begun: float, times: Sequence[float]
    ) -> Turn:
        """Return what is told of a turn."""
        assert self._state is not None, "it has run"
        held, tokens, geometry = self._state.held, len(done.tokens), self.model.geometry
        if geometry is None or self._state.trace.frozen:  # layers that run on some tokens only have no closed form
            prefill, behind = None, None
        else:
            prefill = float(exact_chunk_flops(done.before, done.fresh, geometry))
            behind = exact_answer_flops(done.before + done.fresh, tokens, geometry)
        kv_bytes, full = _memory(held.cache, held.ids.shape[1])
        return Turn(
            question=question,
            answer=answer,
            ended=ended,
            prompt_tokens=done.length,
            fresh_tokens=int(done.fresh.max()),
            new_tokens=tokens,
            tokens_per_layer=tuple((held.ids.shape[1] - self._state.gone).tolist()),
            prefill_flops=prefill,
            answer_flops=behind,
            kv_bytes=kv_bytes,
            kv_share=kv_bytes / full,
            first_seconds=times[0] - begun,
            rate=(tokens - 1) / (times[-1] - times[0]) if tokens > 1 else None,
            encoding=done.encoding,
            notes=done.notes,
        )


def _end(tokens: Sequence[int], ends: Sequence[int], limit: int) -> Ended:
    return "end" if tokens[-1] in ends else "length" if len(tokens) >= limit else "stopped"


def _memory(cache: Any, total: int) -> tuple[int, float]:
    """Return the bytes of keys and values, and what they would be with all tokens of a sequence."""
    held, full = 0, 0.0
    for layer in filter(has_keys, cache.layers):
        own = sum(part.nelement() * part.element_size() for part in (layer.keys, layer.values))
        window = getattr(layer, "sliding_window", None)
        held += own
        full += own / layer.keys.shape[-2] * (total if window is None else min(total, window - 1))
    return held, full
