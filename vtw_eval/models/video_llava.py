"""Video-LLaVA-7B-hf, prompted as lmms-eval's ``video_llava`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from vtw_eval.models.family import DocumentPrompt, Encoded, Family, Message, all_images, generation_arguments
from vtw_eval.models.options import Options
from vtw_eval.models.video import Clip, notes_on, read_clip, reader_of, uniform

FRAMES = 8
"""Frames per video that the checkpoint was trained on; lmms-eval's adapter allows no other number."""


@dataclass(frozen=True, kw_only=True)
class VideoLlavaOptions(Options):
    """Options of ``video_llava_vtw``."""

    pretrained: str = "LanguageBind/Video-LLaVA-7B-hf"


class VideoLlava(Family[VideoLlavaOptions]):
    """The Video-LLaVA checkpoint in transformers format; it has no chat template."""

    options_class: ClassVar[type[Options]] = VideoLlavaOptions
    model_types = frozenset({"video_llava"})

    @property
    def stop_ids(self) -> dict[str, Any]:
        """What the checkpoint's generation config says, as in ``video_llava``."""
        config = self.model.generation_config
        eos = config.eos_token_id if config.eos_token_id is not None else self.tokenizer.eos_token_id
        pad = config.pad_token_id if config.pad_token_id is not None else self.tokenizer.pad_token_id
        return {"eos_token_id": eos, "pad_token_id": pad}

    def render(self, messages: Sequence[Message]) -> str:
        """Vicuna turns; ``video_llava`` puts a question mark after a question about a video, the model card none."""
        text = ""
        for message in messages:
            parts = message["content"]
            words = "".join(part["text"] for part in parts if part["type"] == "text")
            images = "".join("<image>" for part in parts if part["type"] == "image")
            videos = "".join("<video>" for part in parts if part["type"] == "video")
            if message["role"] == "assistant":
                text += f"ASSISTANT: {words}</s>"
            elif videos:
                text += f"USER: {images}{videos}{words}? "
            else:
                text += f"USER: {images}\n{words} " if images else f"USER: {words} "
        return text + "ASSISTANT:"

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch; videos shorter than eight frames repeat some."""
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            media["images"] = images
        clips = [[self._clip(video) for video in prompt.videos] for prompt in prompts]
        if videos := [clip.frames for row in clips for clip in row]:
            media["videos"] = videos
        return replace(self.process(prompts, **media), notes=notes_on(clips))

    def _clip(self, video: str) -> Clip:
        reader = reader_of(self.options.media, "pyav")
        clip = read_clip(video, uniform(FRAMES), reader)
        if reader == "pyav" and (clip.total < FRAMES or len(clip.frames) < FRAMES):
            return read_clip(video, uniform(FRAMES))  # video_llava fails
        return clip

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """At most 1024 tokens; stop strings are ignored, as in ``video_llava``."""
        return generation_arguments(generation, 1024, self.stop_ids, self.options.use_cache)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Keep what follows the last turn mark that the model may have made itself."""
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [answer.split("ASSISTANT:")[-1].strip() for answer in answers]


FAMILY = VideoLlava
