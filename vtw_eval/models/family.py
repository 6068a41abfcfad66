"""What the core needs to know of a model family: how a document becomes tensors, and tokens an answer."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vtw_eval.media import Visual, is_video, once, open_picture
from vtw_eval.models.options import Options
from vtw_eval.models.weights import bits

AnyOptions = TypeVar("AnyOptions", bound=Options)

Message = Mapping[str, Any]
"""``{"role": ..., "content": [{"type": "text" | "image" | "video", ...}, ...]}``."""


@dataclass(frozen=True)
class DocumentPrompt:
    """One document, ready to be encoded: text with the family's placeholders, and media in their order."""

    text: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """A short reason for each way in which the model is shown something else than a viewer shows."""

    @property
    def video_count(self) -> int:
        """Number of videos."""
        return len(self.videos)

    @property
    def held(self) -> tuple[object, ...]:
        """The media that are opened, in their order."""
        return self.images

    def holding(self, other: Self) -> Self:
        """Return the prompt with the opened media of another that shows the same, so that they are kept once."""
        return replace(self, images=other.images)

    def beside(self) -> Iterator[bytes]:
        """Yield what tells apart how prompts are shown, beside the pixels of images and the files of videos."""
        yield from ()


@dataclass(frozen=True)
class Encoded:
    """A left-padded batch."""

    inputs: dict[str, Any]
    """Keyword arguments of ``forward`` and ``generate``; ``input_ids`` and ``attention_mask`` are among them."""
    vision_mask: Tensor | None = None
    """Boolean ``[rows, tokens]`` for models whose decoder never sees the ids, else None."""
    notes: tuple[tuple[str, ...], ...] = ()
    """For each row what encoding it added to its prompt's notes, such as those on videos; empty: nothing for any."""


def media_of(messages: Sequence[Message]) -> tuple[tuple[Visual, ...], tuple[str, ...]]:
    """Return the images, not opened yet, and the video paths of chat messages, each in order.

    Raises
    ------
    TypeError
        For other media.
    """
    images: list[Visual] = []
    videos: list[str] = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                images.append(part["url"])
            elif part["type"] == "video" and isinstance(part["url"], str):
                videos.append(part["url"])
            elif part["type"] != "text":
                raise TypeError(f"only text, images and video files are supported, this document has {part['type']}.")
    return tuple(images), tuple(videos)


def content_of(context: str, visuals: Sequence[Visual]) -> list[dict[str, Any]]:
    """Return the content of a chat message that shows visuals before a text."""
    shown = [{"type": "video" if is_video(visual) else "image", "url": visual} for visual in visuals]
    return [*shown, {"type": "text", "text": context}]


def processor_rgb(image: Image.Image) -> Image.Image:
    """Return a picture in mode RGB as the image processors of transformers make it: transparent parts white, mostly."""
    from transformers.image_transforms import convert_to_rgb

    convert: Any = convert_to_rgb
    if "return_numpy" in inspect.signature(convert).parameters:  # it will return nothing else some day
        return Image.fromarray(convert(image, return_numpy=True))
    return convert(image)


def generation_arguments(
    generation: Mapping[str, Any], max_new_tokens: int, stop_ids: Mapping[str, Any], use_cache: bool
) -> dict[str, Any]:
    """Return arguments of ``generate`` as lmms-eval's adapters pass them: sampling iff the temperature is positive.

    Parameters
    ----------
    generation
        The task's generation arguments.
    max_new_tokens
        Limit for tasks that name none.
    stop_ids
        ``eos_token_id`` and ``pad_token_id``.
    use_cache
        Decode with a KV cache.
    """
    temperature = generation.get("temperature") or 0.0
    arguments = {
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else None,
        "top_p": generation.get("top_p"),
        "num_beams": generation.get("num_beams", 1),
        "max_new_tokens": generation.get("max_new_tokens", max_new_tokens),
        "use_cache": use_cache,
        **stop_ids,
    }
    if temperature > 0 and "top_k" in generation:
        arguments["top_k"] = generation["top_k"]
    return arguments


def stop_strings(generation: Mapping[str, Any], default: Sequence[str]) -> list[str]:
    """Return a task's stop strings as a list.

    Raises
    ------
    ValueError
        If ``until`` is neither a string nor a list.
    """
    until = generation.get("until", default)
    if isinstance(until, str):
        return [until]
    if isinstance(until, list | tuple):
        return [str(item) for item in until]
    raise ValueError(f"generation argument until={until!r} must be a string or a list of strings.")


@dataclass
class Family(ABC, Generic[AnyOptions]):
    """A loaded checkpoint of one family, under one of lmms-eval's two protocols.

    Parameters
    ----------
    model, processor
        What :func:`vtw_eval.models.loading.load` opened; the processor of remote code is its tokenizer.
    options
        The adapter's options.
    simple
        Whether prompts follow lmms-eval's "simple" protocol instead of "chat".
    """

    options_class: ClassVar[type[Options]]
    """Type of the adapter's options."""

    model_types: ClassVar[frozenset[str]]
    """``config.model_type`` of the checkpoints."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    """Class of transformers that opens the model."""

    processor_class: ClassVar[str] = "AutoProcessor"
    """Class of transformers that opens the processor."""

    model: Any
    processor: Any
    options: AnyOptions
    simple: bool
    model_type: str = field(init=False)
    place: torch.device | None = field(init=False, default=None)
    """Where inputs go, if not to the model."""

    def __post_init__(self) -> None:
        self.model_type = self.model.config.model_type

    @classmethod
    def processor_arguments(cls, options: AnyOptions, model_type: str, simple: bool) -> dict[str, Any]:
        """Return what the processor's ``from_pretrained`` gets beside the checkpoint."""
        return {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor.tokenizer

    @property
    def stop_ids(self) -> dict[str, Any]:
        """``eos_token_id`` and ``pad_token_id`` for ``generate``."""
        return {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device if self.place is None else self.place

    @property
    def exact(self) -> bool:
        """Whether what stands beside a prompt changes no answer but by float32's rounding.

        In half precision it does, and with quantized weights: their products round so, and those of 8 bits take
        channels apart in which any token of the batch is large.
        """
        return self.model.dtype.itemsize >= 4 and bits(self.model) is None

    @property
    def takes_paths(self) -> bool:
        """Whether lmms-eval's own adapter takes images by their paths; where it does not, its way is no example."""
        return False

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert a picture as lmms-eval's own adapter does, to find out what is lost: as transformers' processors."""
        return processor_rgb(image)

    def open_images(self, visuals: Sequence[Visual]) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
        """Open the images of a document, and return them with the notes on them, each once."""
        images: list[Image.Image] = []
        notes: list[str] = []
        for visual in visuals:
            as_viewer = isinstance(visual, str) and not self.takes_paths
            image, found = open_picture(visual, "upright" if as_viewer else self.options.media, self.to_rgb)
            images.append(image)
            notes += found
        return tuple(images), once(notes)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of chat messages up to the place where the answer begins."""
        return self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def chat_prompt(self, messages: Sequence[Message]) -> DocumentPrompt:
        """Return the prompt of a document under the chat protocol."""
        visuals, videos = media_of(messages)
        images, notes = self.open_images(visuals)
        return DocumentPrompt(self.render(messages), images, videos, notes)

    def simple_prompt(self, context: str, visuals: Sequence[Visual]) -> DocumentPrompt:
        """Return the prompt of a document under the simple protocol."""
        return self.chat_prompt([{"role": "user", "content": content_of(context, visuals)}])

    @abstractmethod
    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Return a left-padded batch on the model's device."""

    @abstractmethod
    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of ``generate`` for a task's generation arguments."""

    def generate(self, encoded: Encoded, arguments: Mapping[str, Any]) -> Tensor:
        """Return the new tokens, ``[rows, new]``."""
        output = self.model.generate(**encoded.inputs, **arguments)
        return output[:, encoded.inputs["input_ids"].shape[1] :]

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Return the answers."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def check_marks(self, prompt: DocumentPrompt) -> None:
        """Check that a prompt has one mark per image and video of its own.

        The processor counts marks and media of a whole batch, so that a mark in the words of one question would take
        the image of the next.

        Raises
        ------
        ValueError
            If it has not.
        """
        media = (("image", "image_token", len(prompt.images)), ("video", "video_token", prompt.video_count))
        for kind, name, count in media:
            mark = getattr(self.processor, name, None)
            found = prompt.text.count(mark) if isinstance(mark, str) else count
            if found != count:
                why = f"; words of the text that are {mark} cannot be told from it" if found > count else ""
                raise ValueError(f"the prompt has {found} {kind} marks ({mark}) for {count} {kind}s{why}.")

    def process(self, prompts: Sequence[DocumentPrompt], **media: Any) -> Encoded:
        """Encode texts with the processor, together with media given as its keyword arguments.

        Raises
        ------
        ValueError
            See :meth:`check_marks`.
        """
        for prompt in prompts:
            self.check_marks(prompt)
        inputs = self.processor(
            text=[prompt.text for prompt in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **media,
        )
        placed = dict(inputs.to(self.device))
        for name, value in placed.items():
            if name.startswith("pixel_values"):  # other floats, such as seconds per frame, keep their precision
                placed[name] = value.to(self.model.dtype)
        return Encoded(placed)


def all_images(prompts: Sequence[DocumentPrompt]) -> list[Image.Image] | None:
    """Return the images of a batch in one list, None when there are none."""
    return [image for prompt in prompts for image in prompt.images] or None
