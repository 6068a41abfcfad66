"""Video-LLaVA-7B-hf, prompted as VLMEvalKit's ``VideoLLaVA_HF`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vtw_eval.model_adapters.vlmeval.prompts.base import (
    KitFamily,
    KitOptions,
    KitPrompt,
    KitQuestion,
    images_and_videos,
)
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.models.video import notes_on, read_clip, reader_of
from vtw_eval.models.video_llava import FRAMES, VideoLlava, VideoLlavaOptions


@dataclass(frozen=True, kw_only=True)
class VideoLlavaKitOptions(KitOptions, VideoLlavaOptions):
    """Options of ``video_llava_vtw`` under VLMEvalKit.

    Parameters
    ----------
    conversation
        What stands around a question about a video. "kit": a line break before it, as the kit's class has it.
        "lmms-eval": a question mark after it, as lmms-eval's adapter has it.
    """

    conversation: Literal["kit", "lmms-eval"] = "kit"


def steps(total: int, fps: float) -> list[int]:
    """Choose eight frames from the first on at even distances; a shorter video gives each of its frames once."""
    return sorted({int(i) for i in np.arange(0, total, total / FRAMES).astype(int)})


class VideoLlavaKit(KitFamily, VideoLlava):
    """The Video-LLaVA checkpoint in transformers format under VLMEvalKit."""

    longest_answer = 1024
    interleaves = False
    options_class = VideoLlavaKitOptions
    options: VideoLlavaKitOptions

    @property
    def takes_video(self) -> bool:
        """Videos come as files."""
        return True

    @property
    def default_frames(self) -> tuple[int | None, float | None]:
        """Eight, whatever their rate."""
        return FRAMES, None

    def kit_prompt(self, question: KitQuestion) -> KitPrompt:
        """Show one video or images, which the kit's class does not take, before all texts."""
        words = "\n".join(question.values("text"))
        images, notes = self.pictures(question)
        videos = question.values("video")
        if not videos:
            marks = "<image>" * len(images) + ("\n" if images else "")
            return KitPrompt(f"USER: {marks}{words} ASSISTANT:", images, notes=notes)
        if images or len(videos) > 1:
            raise ValueError("Video-LLaVA takes one video per question, and no images beside it.")
        if question.nframe != FRAMES:
            raise ValueError(f"Video-LLaVA takes {FRAMES} frames: choose a dataset with nframe={FRAMES}.")
        clips = (read_clip(videos[0], steps, reader_of(self.options.media, "pyav")),)
        asked = f"\n{words}" if self.options.conversation == "kit" else f"{words}?"
        return KitPrompt(f"USER: <video>{asked} ASSISTANT:", notes=notes_on([clips])[0], clips=clips)

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode images, or the frames of a video."""
        return self.process(prompts, **images_and_videos(prompts, lambda clip: clip.frames))

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode without cleaning up spaces."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


FAMILY = VideoLlavaKit
