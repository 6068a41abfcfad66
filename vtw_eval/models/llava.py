"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, prompted as lmms-eval's ``llava_hf`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vtw_eval.media import is_video
from vtw_eval.models.family import DocumentPrompt, Encoded, Family, Message, Visual, all_images, generation_arguments
from vtw_eval.models.options import Options
from vtw_eval.models.video import notes_on, read_clips, reader_of, uniform

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {} ASSISTANT:"
)
"""Prompt of the simple protocol for checkpoints whose tokenizer has no chat template."""


@dataclass(frozen=True, kw_only=True)
class LlavaOptions(Options):
    """Options of ``llava_vtw``.

    Parameters
    ----------
    chat_template
        Jinja template to use instead of the checkpoint's.
    max_frames_num
        Frames per video, for LLaVA-OneVision.
    """

    pretrained: str = "llava-hf/llava-1.5-7b-hf"
    chat_template: str | None = None
    max_frames_num: int = 32


class Llava(Family[LlavaOptions]):
    """Checkpoints of the ``llava-hf`` organisation and of their format."""

    options_class: ClassVar[type[Options]] = LlavaOptions
    model_types = frozenset({"llava", "llava_next", "llava_onevision"})

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The tokenizer's end of sequence, which pads too."""
        return {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.eos_token_id}

    def render(self, messages: Sequence[Message]) -> str:
        """Apply the processor's chat template, or the one given as an option."""
        template = {"chat_template": self.options.chat_template} if self.options.chat_template else {}
        return self.processor.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **template
        )

    def simple_prompt(self, context: str, visuals: Sequence[Visual]) -> DocumentPrompt:
        """Put one placeholder per visual before a context without any, and apply the tokenizer's chat template."""
        videos = tuple(str(visual) for visual in visuals if is_video(visual))
        images, notes = self.open_images([visual for visual in visuals if not is_video(visual)])
        if visuals and "<image>" not in context:
            context = " ".join("<video>" if is_video(visual) else "<image>" for visual in visuals) + f"\n{context}"
        template = self.options.chat_template or self.tokenizer.chat_template
        if template is None:
            text = VICUNA.format(context)
        else:
            message = {"role": "user", "content": context}
            text = self.tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True, chat_template=template
            )
        return DocumentPrompt(text, images, videos, notes)

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch; every image counts as the only one of its row, as in ``llava_hf``."""
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            media["images"] = images
        if self.model_type != "llava_onevision" and any(prompt.videos for prompt in prompts):
            raise ValueError(
                f"{self.model_type} checkpoints take no video: use a LLaVA-OneVision checkpoint or video_llava_vtw."
            )
        # Under the chat protocol, llava_hf shows no video without torchcodec, and all frames with it.
        reader = reader_of(self.options.media, "decord" if self.simple else "player")
        clips = read_clips(prompts, uniform(self.options.max_frames_num), reader)
        if videos := [clip.frames for row in clips for clip in row]:
            media["videos"] = videos
        return replace(self.process(prompts, **media), notes=notes_on(clips))

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """At most 1024 tokens; stop strings are ignored, as in ``llava_hf``."""
        return generation_arguments(generation, 1024, self.stop_ids, self.options.use_cache)


FAMILY = Llava
