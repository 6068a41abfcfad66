"""VLMEvalKit's model classes, all of them thin: one for each adapter, made from the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

from vlmeval.smp import get_logger
from vlmeval.vlm.base import BaseModel

from vtw_eval.media import once
from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
from vtw_eval.model_adapters.vlmeval.pictures import TablePictures
from vtw_eval.model_adapters.vlmeval.prompts.base import KitFamily, KitQuestion, Part, kit_family
from vtw_eval.model_adapters.vlmeval.rows import ImageRows, Known, Rows, VideoRows, has_rows
from vtw_eval.models.adapters import Adapter
from vtw_eval.models.failures import DocumentError
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.options import parse_options
from vtw_eval.models.requests import Answer, Request
from vtw_eval.models.runner import Runner
from vtw_eval.runtime import pick_device


class CostedAnswer(str):
    """An answer that carries its costs; where only its text is used, it is the text."""

    costs: dict[str, Any]

    def __new__(cls, text: str, costs: dict[str, Any] | None = None) -> CostedAnswer:
        """Make it of a text and the costs by name."""
        answer = super().__new__(cls, text)
        answer.costs = costs or {}
        return answer


def rename_model_path(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with the checkpoint as ``pretrained``, which the kit's own classes call ``model_path``."""
    if "model_path" not in arguments:
        return arguments
    if "pretrained" in arguments:
        raise ValueError("pretrained and model_path are the same option: give one of them.")
    return {("pretrained" if name == "model_path" else name): value for name, value in arguments.items()}


def check_arguments(adapter: str, arguments: dict[str, Any]) -> None:
    """Raise ``ValueError`` for arguments that are wrong whatever the checkpoint is, before anything is loaded."""
    arguments = rename_model_path(arguments)
    if "pretrained" not in arguments:
        raise ValueError(
            f"{adapter} needs a checkpoint: pretrained=FOLDER_OR_HUB_ID, or pretrained=shapes (with vtw-vlmeval "
            f"--model-args pretrained=...,method=vtw,k=16), or a named model such as LLaVA-1.5-7B-VTW."
        )
    _, method = parse_options(adapter, KIT_ADAPTERS[adapter].options, arguments)
    if method.search is not None:
        raise ValueError(
            "k=search does not work with VLMEvalKit, which asks one question at a time: find k with "
            "vtw-eval search-k and pass it."
        )


class VTWKitModel(BaseModel):
    """A model with a method installed, under VLMEvalKit.

    The kit asks one question at a time. Where its dataset is known, the questions to come about the same image are
    answered with the first of them, if that changes no answer (``sharing``).

    Parameters
    ----------
    arguments
        Options of the adapter and parameters of the method by name, for instance ``pretrained="...", method="vtw",
        k=16``. ``model_path`` is another name of ``pretrained``; ``use_vllm``, which the kit passes to models by their
        names, must be false.

    Raises
    ------
    ValueError
        For bad arguments and for a checkpoint that the adapter cannot open.
    """

    adapter: ClassVar[str]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        if arguments.pop("use_vllm", False):
            raise ValueError("--use-vllm is not possible: methods hook the layers of transformers models.")
        check_arguments(self.adapter, arguments)
        self.runner = Runner(
            self.adapter,
            rename_model_path(arguments),
            simple=False,
            device=pick_device(arguments.get("device")),
            log=get_logger("vtw_eval").info,
            warn=get_logger("vtw_eval").warning,
            adapters=KIT_ADAPTERS,
        )
        self.VIDEO_LLM = self.family.takes_video
        self.INTERLEAVE = self.family.interleaves
        self.pictures: TablePictures | None = None
        """Stands before the image dataset that is asked about."""
        self.rows: Rows | None = None
        """Of the dataset that is asked about."""
        self.reset_frames()

    def set_dump_image(self, dump_image_func: Any) -> None:
        """Take the function by which a dataset writes its pictures, and stand between the two."""
        self.pictures = TablePictures.of(dump_image_func, self.runner.options.media)
        known = self.pictures is not None and has_rows(self.pictures.dataset)
        self.rows = ImageRows(self.pictures, self) if self.pictures is not None and known else None
        super().set_dump_image(dump_image_func if self.pictures is None else self.pictures.dump_image)

    def show_videos(self, dataset: Any) -> None:
        """Take the video dataset that is asked about next."""
        self.pictures = None
        self.rows = VideoRows(dataset, self) if has_rows(dataset) else None

    def reset_frames(self) -> None:
        """Forget what the last video dataset asked for.

        The kit sets ``nframe`` and ``fps`` to what a dataset asks for, where they have a value, and leaves them so:
        the frames of the next dataset would depend on the one before it.
        """
        self.nframe, self.fps = self.family.default_frames

    @property
    def family(self) -> KitFamily:
        """The loaded checkpoint."""
        return kit_family(self.runner.family)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether :meth:`build_prompt` words the questions of a dataset."""
        return self.family.has_own_prompt(dataset)

    def build_prompt(self, line: Any, dataset: str) -> list[dict[str, str]]:
        """Return the message for a row of a dataset, as the kit's class for the family words it."""
        with self.pictures.asking(line) if self.pictures else nullcontext():
            images = self.dump_image(line, dataset)
            return self.family.own_prompt(line, dataset, [images] if isinstance(images, str) else images)

    def generate_inner(self, message: Sequence[Part], dataset: str | None = None) -> CostedAnswer | dict[str, Any]:
        """Answer a message.

        Returns
        -------
        CostedAnswer or dict
            For image datasets ``{"prediction": ..., "extra_records": costs}``, which the kit writes in two columns;
            otherwise, because it knows no such thing for videos, a string that carries the costs.

        Raises
        ------
        vtw_eval.models.runner.DocumentError
            If the question cannot be answered; it is never turned into an empty answer.
        """
        self.runner.refuse_search("VLMEvalKit, which asks one question at a time")
        question = KitQuestion(message, dataset, self.nframe, self.fps)
        index = self.rows.asked() if self.rows else ""
        answer = self._known(index, question) or self._answered(index, question)
        costs = answer.costs.to_dict()
        if dataset is None or question.of_video:
            return CostedAnswer(answer.text, costs)
        return {"prediction": answer.text, "extra_records": costs}

    def _known(self, index: str, question: KitQuestion) -> Answer | None:
        """Return the answer to a row, if it was made with that to another."""
        if self.rows is None:
            return None
        foreseen = self.rows.foreseen
        answer = self.rows.take(index, question, self.runner.method)
        if foreseen and not self.rows.foreseen:
            self.runner.log(
                f"{question.dataset}: one question after another: VLMEvalKit asks others than its table lets expect"
            )
        return answer

    def _answered(self, index: str, question: KitQuestion) -> Answer:
        """Answer a row together with those to come that show the same, whose answers are kept."""
        asked = [(index, question)]
        requests = [self._request(index, question)]
        if self.rows is not None and (places := self.rows.behind(index, self.runner.batch_size)):
            if self.runner.batch_size > 1 or self.runner.shares(requests[0]):
                asked += self.rows.questions(places)
            requests += [self._request(*each) for each in asked[1:]]
        answers = self._answers(requests)
        if self.rows is not None:
            for place, (row, other) in enumerate(asked[1:], start=1):
                if place in answers:
                    self.rows.known[row] = Known(other, self.runner.method, answers[place])
        return answers[0]

    def _answers(self, requests: Sequence[Request]) -> Mapping[int, Answer]:
        """Return answers by place, that of the first request among them; what else fails does so in its turn."""
        try:
            return dict(enumerate(self.runner.answer(requests, progress=False)))
        except DocumentError as error:
            if 0 in error.answers:
                return error.answers
            if len(requests) == 1:
                raise
        return self._answers(requests[:1])

    def _request(self, index: str, question: KitQuestion) -> Request:
        """Return the request for an answer to a question, which may be a row's."""
        notes = self.pictures.notes_on(question.values("image")) if self.pictures else ()

        def build(family: Family[Any]) -> DocumentPrompt:
            prompt = kit_family(family).kit_prompt(question)
            return replace(prompt, notes=once([*notes, *prompt.notes]))

        return Request(
            name=(self.rows.name(index) if self.rows and index else "") or _name(question),
            length=sum(map(len, question.values("text"))),
            generation=self.family.options.generation,
            build=build,
            task=question.dataset or "",
            media=self.rows.media.get(index, "") if self.rows else "",
        )


def _name(question: KitQuestion) -> str:
    words = " ".join(" ".join(question.values("text")).split())
    media = [part["value"].rsplit("/", 1)[-1] for part in question.parts if part["type"] != "text"]
    return f"{question.dataset or 'a message'}: {' '.join(media[:1])} {words[:60]!r}"


def _class(name: str, adapter: Adapter) -> type[VTWKitModel]:
    about = {"adapter": name, "__module__": __name__, "__doc__": f"``{name}``."}
    return type(adapter.class_name, (VTWKitModel,), about)


CLASSES: Mapping[str, type[VTWKitModel]] = {name: _class(name, adapter) for name, adapter in KIT_ADAPTERS.items()}
"""Class of each adapter."""

globals().update({cls.__name__: cls for cls in CLASSES.values()})  # as modules of the kit hold theirs
