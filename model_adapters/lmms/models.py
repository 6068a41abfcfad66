"""lmms-eval's model classes, all of them thin: one for each adapter and protocol, made from the table."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from vtw_eval.media import Found, Media, inspected, noting_damage, once
from vtw_eval.model_adapters.lmms.picture_marks import AtMarks
from vtw_eval.model_adapters.lmms.samples import media_groups
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.failures import DocumentError, Failures, document_errors
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.requests import Answer, Request
from vtw_eval.models.runner import Runner
from vtw_eval.record.costs import TimedCosts, mean_costs
from vtw_eval.runtime import pick_device

Made = TypeVar("Made")


@dataclass
class CostedTokenCounts(TokenCounts):
    """Token counts that carry all costs of a sample into ``samples_*.jsonl``."""

    costs: TimedCosts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all costs."""
        return {} if self.costs is None else self.costs.to_dict()


class VTWModel(lmms):
    """A model with a method installed, under lmms-eval's chat protocol.

    Parameters
    ----------
    arguments
        ``--model_args``, with ``batch_size`` and ``device`` of the command line: options of the adapter and parameters
        of the method.

    Raises
    ------
    ValueError
        For bad arguments, an unsuitable checkpoint, or a distributed set-up other than data parallelism.
    """

    adapter: ClassVar[str]
    runner_class: ClassVar[type[Runner]] = Runner
    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("methods hook whole layers: use plain data parallelism, not FSDP or DeepSpeed.")
        if self._world_size > 1 and arguments.get("device_map"):
            raise ValueError("device_map spreads one model: leave it out when several processes share the documents.")
        self._device = self._choose_device(arguments.get("device"))
        self.runner: Runner | None = self.runner_class(
            self.adapter,
            arguments,
            simple=self.is_simple,
            device=self._device,
            log=self._log,
            warn=self._warn,
            progress=self.rank == 0,
        )
        self._device = self.runner.family.device
        if self._world_size > 1:
            self.runner.refuse_search("several processes, each with other documents")

    def _choose_device(self, asked: str | None) -> torch.device:
        device = pick_device(asked)
        if device.type == "cuda" and (device.index is None or self._world_size > 1):
            return torch.device("cuda", self.accelerator.local_process_index)
        return device

    def _log(self, message: str) -> None:
        if self.rank == 0:
            logger.info(message)

    def _warn(self, message: str) -> None:
        logger.warning(message if self._world_size == 1 else f"process {self.rank}: {message}")

    @property
    def device(self) -> torch.device:
        """Where inputs go; the evaluator gathers results over it."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Documents per forward."""
        return self._runner.batch_size

    @property
    def _runner(self) -> Runner:
        if self.runner is None:
            raise RuntimeError("the model has been cleaned up.")
        return self.runner

    def clean(self) -> None:
        """Free the model, as the evaluator asks before a local judge is started."""
        self.runner = None
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer documents, and log the means of their costs.

        Raises
        ------
        vtw_eval.models.runner.DocumentError
            If a document cannot be answered; it is never turned into an empty answer.
        """
        begin = time.perf_counter()
        try:
            asked = self._with_media(requests)
            answers = self._runner.answer(asked, progress=self.rank == 0)
        finally:
            self._runner.tell_media()
        self._log_costs([answer.costs for answer in answers], time.perf_counter() - begin)
        return [_result(answer) for answer in answers]

    def _with_media(self, requests: Sequence[Instance]) -> list[Request]:
        """Return requests that name what their documents show, without opening it."""
        made = [self._request(request) for request in requests]
        if self._runner.options.sharing == "off":
            return made
        places = [request.args[-3:] for request in requests]
        counts: dict[tuple[str, str], int] = {}
        for doc_id, task, split in places:
            counts[task, split] = max(counts.get((task, split), 0), doc_id + 1)
        shown = {
            (task, split): media_groups(self.task_dict[task][split], count) for (task, split), count in counts.items()
        }
        return [
            replace(request, media=f"{split}: {shown[task, split][doc_id]}")
            for request, (doc_id, task, split) in zip(made, places, strict=True)
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not available: tasks score continuations under the simple protocol only."""
        raise NotImplementedError(f"{self.adapter} scores continuations under --force_simple only.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer documents in rounds, each asking for the next one with the answers so far."""
        self._runner.refuse_search("a task with several rounds")
        try:
            return [self._rounds(request) for request in tqdm(requests, desc="Answering", disable=self.rank != 0)]
        finally:
            self._runner.tell_media()

    def _answer_one(self, request: Request) -> str:
        return self._runner.answer([request], progress=False)[0].text

    def _rounds(self, instance: Instance) -> list[str]:
        _, doc_to_messages, generation, doc_id, task, split = instance.args
        doc, noted = self._document((task, split, doc_id))
        name = document_name(task, split, doc_id)
        messages, outputs, info = doc_to_messages(doc), [], None
        while True:
            shown = functools.partial(_of_chat, given=messages)
            outputs.append(self._answer_one(Request(name, 0, generation, _then(shown, noted))))
            # A task without a next round returns messages only.
            step = doc_to_messages(doc, round_idx=len(outputs), previous_output=list(outputs), previous_round_info=info)
            if not isinstance(step, tuple) or step[1]:
                return outputs
            messages, _, _, info = step

    def _request(self, instance: Instance) -> Request:
        context, doc_to_messages, generation, doc_id, task, split = instance.args
        show = AtMarks(doc_to_messages, self._runner.options.media)
        build = self._builder((task, split, doc_id), show, _of_chat)

        def noted(family: Family[Any]) -> DocumentPrompt:
            prompt = build(family)
            return replace(prompt, notes=once([*prompt.notes, *show.notes]))

        return Request(document_name(task, split, doc_id), len(context), generation, noted, task, asks=context)

    def _builder(
        self,
        place: tuple[str, str, int],
        show: Callable[[Any], Any],
        prompt_of: Callable[[Family[Any], Any], DocumentPrompt],
    ) -> Callable[[Family[Any]], DocumentPrompt]:
        """Return what makes the prompt of a document, with the notes on the pictures that the task's code converts.

        Parameters
        ----------
        place
            Task, split and number.
        show
            The task's function from the document to messages or visuals.
        prompt_of
            Makes the family's prompt of these.
        """

        def build(family: Family[Any]) -> DocumentPrompt:
            given, found, damage = self._read(place, show)
            return _noted(prompt_of(family, given), found, damage, family.options.media)

        return build

    def _read(
        self, place: tuple[str, str, int], show: Callable[[Any], Made]
    ) -> tuple[Made, list[Found], tuple[str, ...]]:
        """Return what a task's code makes of a document, and the notes on its pictures and on damage."""
        task, split, doc_id = place

        def shown() -> tuple[Made, list[Found]]:
            document, found = inspected(self.task_dict[task][split][doc_id], self._runner.options.media)
            return show(document), found

        (given, found), damage = noting_damage(shown)
        return given, found, damage

    def _document(self, place: tuple[str, str, int]) -> tuple[Any, Callable[[DocumentPrompt], DocumentPrompt]]:
        """Return a document that is asked about in rounds, and what adds the notes on it to a prompt."""
        with document_errors(document_name(*place)):
            document, found, damage = self._read(place, lambda document: document)
        media = self._runner.options.media
        return document, lambda prompt: _noted(prompt, found, damage, media)

    def _log_costs(self, costs: Sequence[TimedCosts], elapsed: float) -> None:
        """Log means; where answers have no latency of their own, time and speed are those of the run."""
        tokens = sum(cost.output_tokens for cost in costs)
        latencies = [cost.latency_s for cost in costs if cost.latency_s is not None]
        seconds = sum(latencies) if len(latencies) == len(costs) else elapsed
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={
                "num_requests": len(costs),
                "num_media_noted": sum(bool(cost.media) for cost in costs),
                **mean_costs(costs),
            },
        )


class SimpleVTWModel(VTWModel):
    """The same under the simple protocol: a context and visuals instead of messages."""

    is_simple = True

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return log-probability and greediness of each continuation."""
        failures, scores = Failures(), dict[int, tuple[float, bool]]()
        for place, instance in enumerate(tqdm(requests, desc="Scoring", disable=self.rank != 0)):
            try:
                scores[place] = self._score(instance)
                failures.succeeded()
            except DocumentError as error:
                failures.failed(error)
        self._runner.tell_media()
        failures.check(scores, len(requests))
        return list(scores.values())

    def _score(self, instance: Instance) -> tuple[float, bool]:
        context, target, doc_to_visual, doc_id, task, split = instance.args
        with document_errors(document_name(task, split, doc_id)):
            continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        builder = self._builder((task, split, doc_id), doc_to_visual, functools.partial(_of_simple, context=context))
        request = Request(document_name(task, split, doc_id), len(context), {}, builder)
        return self._runner.log_likelihood(request, continuation)

    def _rounds(self, instance: Instance) -> list[str]:
        context, generation, doc_to_visual, doc_to_text, doc_id, task, split = instance.args
        doc, noted = self._document((task, split, doc_id))
        name = document_name(task, split, doc_id)
        visuals, outputs, info = doc_to_visual(doc), [], None
        while True:
            shown = functools.partial(_of_simple, context=context, given=visuals)
            outputs.append(self._answer_one(Request(name, 0, generation, _then(shown, noted))))
            visuals, context, terminal, outputs, info = doc_to_text(
                doc, previous_output=outputs, round_idx=len(outputs), previous_round_info=info
            )
            if terminal:
                return list(outputs)

    def _request(self, instance: Instance) -> Request:
        context, generation, doc_to_visual, doc_id, task, split = instance.args
        build = self._builder((task, split, doc_id), doc_to_visual, functools.partial(_of_simple, context=context))
        return Request(document_name(task, split, doc_id), len(context), generation, build, task)


def document_name(task: str, split: str, doc_id: int) -> str:
    """Return how messages call a document."""
    return f"task {task}, split {split}, doc_id {doc_id}"


def _noted(prompt: DocumentPrompt, found: Sequence[Found], damage: Sequence[str], media: Media) -> DocumentPrompt:
    """Return a prompt with the notes on the pictures of its document."""
    # A picture that no code of the task has touched was looked at again, by what the adapter does with it.
    again = prompt.images if media == "harness" else ()
    earlier = [note for image, notes in found if not any(image is shown for shown in again) for note in notes]
    return replace(prompt, notes=once([*damage, *earlier, *prompt.notes]))


def _then(
    build: Callable[[Family[Any]], DocumentPrompt], noted: Callable[[DocumentPrompt], DocumentPrompt]
) -> Callable[[Family[Any]], DocumentPrompt]:
    return lambda family: noted(build(family))


def _of_chat(family: Family[Any], given: Sequence[Mapping[str, Any]]) -> DocumentPrompt:
    return family.chat_prompt(ChatMessages(messages=given).model_dump()["messages"])


def _of_simple(family: Family[Any], given: Any, context: str) -> DocumentPrompt:
    return family.simple_prompt(context, [] if given is None else list(given))


def _result(answer: Answer) -> GenerationResult:
    costs = answer.costs
    counts = CostedTokenCounts(input_tokens=costs.input_tokens, output_tokens=costs.output_tokens, costs=costs)
    return GenerationResult(text=answer.text, token_counts=counts)


@functools.cache
def model_class(adapter: str, *, simple: bool = False) -> type[VTWModel]:
    """Return the class of an adapter under the chat protocol, or under the simple one.

    Parameters
    ----------
    adapter
        A key of :data:`vtw_eval.models.adapters.ADAPTERS`.
    simple
        Which protocol.
    """
    base, ending = (SimpleVTWModel, "Simple") if simple else (VTWModel, "")
    about = {"adapter": adapter, "__module__": __name__, "__doc__": f"``{adapter}``{' --force_simple' * simple}."}
    return type(f"{ADAPTERS[adapter].class_name}{ending}", (base,), about)


# lmms-eval imports a class by the module and the name in the manifest.
globals().update(
    {cls.__name__: cls for name in ADAPTERS for cls in (model_class(name), model_class(name, simple=True))}
)
