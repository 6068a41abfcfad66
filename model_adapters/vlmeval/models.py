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
from vtw_eval.models.adapters import Adapter
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.options import parse_options
from vtw_eval.models.runner import Request, Runner
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
        self.reset_frames()

    def set_dump_image(self, dump_image_func: Any) -> None:
        """Take the function by which a dataset writes its pictures, and stand between the two."""
        self.pictures = TablePictures.of(dump_image_func, self.runner.options.media)
        super().set_dump_image(dump_image_func if self.pictures is None else self.pictures.dump_image)

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
        row = self.pictures.asked() if self.pictures else ""
        notes = self.pictures.notes_on(question.values("image")) if self.pictures else ()

        def build(family: Family[Any]) -> DocumentPrompt:
            prompt = kit_family(family).kit_prompt(question)
            return replace(prompt, notes=once([*notes, *prompt.notes]))

        request = Request(
            name=row or _name(question),
            length=0,
            generation=self.family.options.generation,
            build=build,
            task=dataset or "",
        )
        (answer,) = self.runner.answer([request], progress=False)
        costs = answer.costs.to_dict()
        if dataset is None or question.of_video:
            return CostedAnswer(answer.text, costs)
        return {"prediction": answer.text, "extra_records": costs}


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
