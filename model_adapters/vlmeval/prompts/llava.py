"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, prompted as VLMEvalKit's classes for them do.

The kit has ``LLaVA`` for the original LLaVA-1.5 checkpoints (it needs the ``llava`` package), ``LLaVA_Next`` for
LLaVA-NeXT and interleaved LLaVA in transformers format, and ``LLaVA_OneVision_HF``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from vlmeval.vlm.internvl.utils import build_multi_choice_prompt

from vtw_eval.checkpoints import is_llava_1_5
from vtw_eval.model_adapters.vlmeval.prompts.base import (
    KitFamily,
    KitOptions,
    KitPrompt,
    KitQuestion,
    Row,
    dataset_type,
    images_and_videos,
)
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.models.llava import Llava, LlavaOptions
from vtw_eval.models.video import read_clip

Conversation = Literal["llava_v1", "template"]

VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
"""System text of the kit's ``LLaVA``; lmms-eval's differs in one word ("user" for "human")."""

TURN_ENDS = ("[/INST]", "ASSISTANT:", "assistant\n", "<|end_header_id|>\n\n")
"""What stands before an answer in the templates of LLaVA-NeXT; the kit's ``LLaVA_Next`` cuts answers there."""


@dataclass(frozen=True, kw_only=True)
class LlavaKitOptions(KitOptions, LlavaOptions):
    """Options of ``llava_vtw`` under VLMEvalKit.

    Parameters
    ----------
    conversation
        For checkpoints of type "llava". "llava_v1": the conversation and the padding to a square of the kit's
        ``LLaVA``. "template": the checkpoint's chat template, as in the kit's ``LLaVA_Next``. ``None``: the first for
        checkpoints whose name says LLaVA-1.5, else the second.
    max_frames_num
        Most frames per video for LLaVA-OneVision, where the dataset says nothing.
    """

    conversation: Conversation | None = None
    max_frames_num: int = 8


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Return an image in the middle of a square of a colour, as large as its longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def one_per_second(most: int | None) -> Any:
    """Choose one frame per second of a video, or ``most`` evenly where that would be more."""

    def choose(total: int, fps: float) -> list[int]:
        each = list(range(0, total, max(1, round(fps))))
        if most is not None and len(each) > most:
            return [int(i) for i in np.linspace(0, total - 1, most, dtype=int)]
        return each

    return choose


class LlavaKit(KitFamily, Llava):
    """Checkpoints of the ``llava-hf`` organisation and of their format, under VLMEvalKit."""

    options_class = LlavaKitOptions
    options: LlavaKitOptions

    @property
    def conversation(self) -> Conversation:
        """How a checkpoint of type "llava" is prompted."""
        by_name: Conversation = "llava_v1" if is_llava_1_5(self.options.pretrained) else "template"
        return self.options.conversation or by_name

    @property
    def is_llava_v1(self) -> bool:
        """Whether the kit's ``LLaVA`` is the model to follow."""
        return self.model_type == "llava" and self.conversation == "llava_v1"

    @property
    def takes_video(self) -> bool:
        """LLaVA-OneVision does."""
        return self.model_type == "llava_onevision"

    @property
    def default_frames(self) -> tuple[int | None, float | None]:
        """Eight, and one per second, for LLaVA-OneVision."""
        return (self.options.max_frames_num, 1) if self.takes_video else (None, None)

    def has_own_prompt(self, dataset: str) -> bool:
        """LLaVA and LLaVA-NeXT word multiple-choice questions."""
        return self.model_type != "llava_onevision" and dataset_type(dataset) == "MCQ"

    def own_prompt(self, row: Row, dataset: str, images: Sequence[str]) -> list[dict[str, str]]:
        """Show the images, then question and options, in words that the kit's classes share."""
        text = {"type": "text", "value": build_multi_choice_prompt(row, dataset)}
        return [*({"type": "image", "value": image} for image in images), text]

    def kit_prompt(self, question: KitQuestion) -> KitPrompt:
        """Return the prompt as the kit's class for the checkpoint builds it."""
        images, notes = self.pictures(question)
        if self.model_type == "llava_onevision":
            return self._onevision(question, images, notes)
        if question.values("video"):
            raise ValueError(
                f"{self.model_type} checkpoints take no video: use a LLaVA-OneVision checkpoint or video_llava_vtw."
            )
        if self.is_llava_v1:
            colour = tuple(int(value * 255) for value in self.processor.image_processor.image_mean)
            shown = (" <image> " if part["type"] == "image" else part["value"] for part in question.parts)
            text = f"{VICUNA_SYSTEM}USER: {''.join(shown)} ASSISTANT: "
            return KitPrompt(text, tuple(pad_to_square(image, colour) for image in images), notes=notes)
        content = [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["value"]}
            for part in question.parts
        ]
        return KitPrompt(self.render([{"role": "user", "content": content}]), images, notes=notes)

    def _onevision(self, question: KitQuestion, images: tuple[Image.Image, ...], notes: tuple[str, ...]) -> KitPrompt:
        """Put image marks into the text, and the times of its frames before a question about a video.

        The kit writes an image mark before those times too, which stands for no image: transformers 5 refuses it.
        """
        videos = question.values("video")
        if len(videos) > 1:
            raise ValueError(f"LLaVA-OneVision takes one video per question, this one has {len(videos)}.")
        if not videos:
            shown = ("<image>\n" if part["type"] == "image" else part["value"] for part in question.parts)
            return KitPrompt(self._rendered_text("".join(shown)), images, notes=notes)
        clip = read_clip(videos[0], one_per_second(question.nframe))
        times = ", ".join(f"{time:.2f}s" for time in clip.times)
        told = (
            f"The video lasts for {clip.duration:.2f} seconds, and {len(clip.indices)} frames are "
            f"uniformly sampled from it. These frames are located at {times}. "
            f"Please answer the following questions related to this video.\n"
        )
        text = self._rendered_text(told + "".join(question.values("text")), video=True)
        return KitPrompt(text, notes=clip.notes, clips=(clip,))

    def _rendered_text(self, text: str, *, video: bool = False) -> str:
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        return self.render([{"role": "user", "content": [*content, {"type": "video"}] if video else content}])

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode images, or the frames of videos."""
        return self.process(prompts, **images_and_videos(prompts, lambda clip: clip.frames))

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode as the kit's class does: LLaVA-NeXT answers keep special tokens up to the end of the turn."""
        if self.model_type == "llava_onevision":
            return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        if self.is_llava_v1:
            return [answer.strip() for answer in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        before = self._rendered_text("")
        turn = next((mark for mark in TURN_ENDS if mark in before), None)
        return [first_turn(answer, turn) for answer in self.tokenizer.batch_decode(tokens)]


def first_turn(answer: str, turn: str | None) -> str:
    """Return an answer up to the next turn or the first token that ends one, without tokens of no meaning."""
    answer = answer.replace("<s>", "")
    if turn is not None:
        answer = answer.split(turn)[0].strip()
    end = next((mark for mark in ("</s>", "<|im_end|>", "<|eot_id|>") if mark in answer), None)
    return (answer if end is None else answer.split(end)[0]).strip().replace("<unk>", "")


FAMILY = LlavaKit
