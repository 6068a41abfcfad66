"""InternVL, prompted as VLMEvalKit's ``InternVLChat`` (version V2.0) does.

The kit knows the checkpoints with remote code only. Those in transformers format get the same texts, images and tiles
through their own chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad as pad_left
from vlmeval.vlm.internvl import InternVLChat
from vlmeval.vlm.internvl.utils import build_video_prompt, reorganize_prompt

from vtw_eval.model_adapters.vlmeval.prompts.base import (
    KitFamily,
    KitOptions,
    KitPrompt,
    KitQuestion,
    Row,
    dataset_type,
)
from vtw_eval.models.family import DocumentPrompt, Encoded, all_images
from vtw_eval.models.internvl import InternVL, InternVLOptions, middles
from vtw_eval.models.video import Clip, notes_on, read_clip


@dataclass(frozen=True, kw_only=True)
class InternVLKitOptions(KitOptions, InternVLOptions):
    """Options of ``internvl_vtw`` under VLMEvalKit.

    Parameters
    ----------
    max_patches
        Most tiles of an image. ``None``: 6, 12, 18 or 24 by dataset, as in the kit.
    num_frames
        Frames of a video that is given as a file; the kit itself shows frames.
    use_custom_prompt
        Word questions as the kit's class does instead of as its datasets do.
    """

    use_custom_prompt: bool = True


class InternVLWords(InternVLChat):
    """The kit's class without its model: how it words questions, and into how many tiles it cuts images.

    Parameters
    ----------
    use_custom_prompt
        See :class:`InternVLKitOptions`.
    images
        Paths of the images of a question.
    """

    def __init__(self, use_custom_prompt: bool = True, images: Sequence[str] = ()) -> None:
        # The kit's own would load a model.
        self._use_custom_prompt = use_custom_prompt
        self.use_mpo_prompt = self.use_cot = False
        self.cot_prompt = None
        self.kwargs: dict[str, Any] = {}
        self._images = list(images)

    def dump_image(self, line: Row, dataset: str) -> list[str]:
        """Return the paths of the images, which are written."""
        return self._images


def most_tiles(dataset: str | None, images: int) -> int:
    """Return the largest number of tiles per image of a question."""
    words = InternVLWords()
    words.set_max_num(dataset)
    return max(1, min(words.max_num, words.total_max_num // max(1, images)))


def mark_images(question: KitQuestion) -> str:
    """Return the texts with a mark for each image: before them, numbered where there are several."""
    text = reorganize_prompt(question.parts, len(question.values("image")), dataset=question.dataset)
    return build_video_prompt(text, question.dataset) if question.of_video else text


def left_padded(rows: Sequence[Encoded], pad: int) -> Encoded:
    """Put encoded prompts together in a batch.

    Parameters
    ----------
    rows
        One prompt each: ids and a mask, long ``[1, tokens]``, and pixels of as many tiles as it shows, if any.
    pad
        The id in front of shorter prompts.
    """
    width = max(row.inputs["input_ids"].shape[1] for row in rows)
    inputs = {
        name: torch.cat(
            [pad_left(row.inputs[name], (width - row.inputs[name].shape[1], 0), value=value) for row in rows]
        )
        for name, value in (("input_ids", pad), ("attention_mask", 0))
    }
    if pixels := [row.inputs["pixel_values"] for row in rows if "pixel_values" in row.inputs]:
        inputs["pixel_values"] = torch.cat(pixels)
    return Encoded(inputs)


class InternVLPrompts(KitFamily):
    """What both kinds of InternVL checkpoints share."""

    longest_answer = 4096
    options: InternVLKitOptions

    def has_own_prompt(self, dataset: str) -> bool:
        """As the kit's class decides, but for questions about screens, whose answers it converts too."""
        words = InternVLWords(self.options.use_custom_prompt)
        return dataset_type(dataset) != "GUI" and words.use_custom_prompt(dataset)

    def own_prompt(self, row: Row, dataset: str, images: Sequence[str]) -> list[dict[str, str]]:
        """Put the question, with its options or the form of its answer, before the images."""
        return InternVLWords(images=images).build_prompt(row, dataset)

    def kit_prompt(self, question: KitQuestion) -> KitPrompt:
        """Return texts, images and the most tiles for each; a video's file becomes frames, one tile each."""
        question, clips = self._framed(question)
        shown, notes = self.pictures(question)
        frames = [Image.fromarray(frame) for clip in clips for frame in clip.frames]
        images = [*shown, *frames]
        dataset = question.dataset or ""
        if images and "MMMU" in dataset:
            first = images[0]
            images[0] = first.resize((2 * first.width, 2 * first.height), Image.Resampling.BILINEAR)
        of_video = bool(frames) or question.of_video
        tiles = 1 if of_video else self.options.max_patches or most_tiles(question.dataset, len(images))
        return KitPrompt(
            self.text_of(mark_images(question), len(images)),
            tuple(images),
            notes=(*notes, *notes_on([clips])[0]),
            tiles=tiles,
        )

    def _framed(self, question: KitQuestion) -> tuple[KitQuestion, list[Clip]]:
        """Replace a video by image parts without a path, and return it."""
        if not (videos := question.values("video")):
            return question, []
        if len(videos) > 1 or question.values("image"):
            raise ValueError("InternVL takes one video per question, and no images beside it.")
        count = self.options.num_frames
        clip = read_clip(videos[0], lambda total, _: middles(count, total))
        parts: list[Mapping[str, str]] = []
        for part in question.parts:
            parts += [{"type": "image", "value": ""}] * count if part["type"] == "video" else [part]
        return KitQuestion(parts, question.dataset), [clip]

    def text_of(self, marked: str, count: int) -> str:
        """Return the whole prompt for a text with image marks; behind as many as there are images they are words."""
        raise NotImplementedError


class InternVLKit(InternVLPrompts, InternVL):
    """The ``-hf`` checkpoints under VLMEvalKit."""

    options_class = InternVLKitOptions
    options: InternVLKitOptions

    def text_of(self, marked: str, count: int) -> str:
        """Render pieces of text and images; the template itself ends a line after an image."""
        first, *others = marked.split("<image>", count) if count else [marked]
        content = [{"type": "text", "text": first}] if first else []
        for piece in others:
            content += [{"type": "image"}, {"type": "text", "text": piece.removeprefix("\n")}]
        return self.render([{"role": "user", "content": content}])

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch with images in tiles, of which the processor knows one bound for all."""
        most = {prompt.tiles if isinstance(prompt, KitPrompt) else 6 for prompt in prompts}
        if len(most) > 1:
            return left_padded([self.encode([prompt]) for prompt in prompts], self.tokenizer.pad_token_id)
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            media = {"images": images, "min_patches": self.options.min_patches, "max_patches": most.pop()}
        return self.process(prompts, **media)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode and strip, as the remote code does."""
        return [answer.strip() for answer in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


FAMILY = InternVLKit
