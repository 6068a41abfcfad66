"""Qwen2-VL and Qwen2.5-VL, prompted as lmms-eval's ``qwen2_vl`` and ``qwen2_5_vl`` do."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtw_eval.model_adapters.family import (
    Encoded,
    Family,
    Message,
    Prompt,
    Visual,
    all_images,
    all_videos,
    content_of,
    greedy_unless_asked,
    stop_strings,
)
from vtw_eval.model_adapters.options import Options
from vtw_eval.model_adapters.video import Clip, read_clip
from vtw_eval.touch_guards import qwen_frames


@dataclass(frozen=True, kw_only=True)
class QwenOptions(Options):
    """Options of ``qwen2vl_vtw``.

    Parameters
    ----------
    min_pixels, max_pixels
        Bounds of the area that an image or a frame is resized to. ``None``: those of lmms-eval's adapter, 3136 and
        602112 for Qwen2-VL, 200704 and 1605632 for Qwen2.5-VL.
    max_num_frames
        Most frames taken from a video.
    fps
        Frames per second taken from a video. ``None``: as lmms-eval's adapter does, 2 for Qwen2-VL and for
        Qwen2.5-VL under the simple protocol, ``max_num_frames`` spread evenly under the chat protocol.
    system_prompt
        System message for documents without one.
    """

    pretrained: str = "Qwen/Qwen2-VL-7B-Instruct"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_num_frames: int = 32
    fps: float | None = None
    system_prompt: str = "You are a helpful assistant."


@dataclass(frozen=True)
class Recipe:
    """What differs between lmms-eval's adapters of the family."""

    min_pixels: int
    max_pixels: int
    jpeg: bool
    """Images pass through JPEG of quality 85, and are resized within the bounds before the processor does."""
    max_new_tokens: int
    fps: float | None
    """Frames per second of a video; None: ``max_num_frames`` of the whole."""
    stop: bool
    """Answers end at the task's stop strings."""
    strip: bool
    """Answers lose white space at both ends."""


QWEN2 = Recipe(min_pixels=3136, max_pixels=602112, jpeg=True, max_new_tokens=128, fps=2.0, stop=True, strip=True)
"""``qwen2_vl``, which has the simple protocol only; the chat protocol takes over everything but the messages."""

QWEN2_5_CHAT = Recipe(
    min_pixels=200704, max_pixels=1605632, jpeg=False, max_new_tokens=128, fps=None, stop=False, strip=False
)
"""``qwen2_5_vl`` under the chat protocol."""

QWEN2_5_SIMPLE = Recipe(
    min_pixels=200704, max_pixels=1605632, jpeg=True, max_new_tokens=32768, fps=2.0, stop=True, strip=False
)
"""``qwen2_5_vl`` under the simple protocol."""


def recipe_for(model_type: str, simple: bool) -> Recipe:
    """Return the recipe of a checkpoint under a protocol."""
    if model_type == "qwen2_vl":
        return QWEN2
    return QWEN2_5_SIMPLE if simple else QWEN2_5_CHAT


def area_bounds(options: QwenOptions, recipe: Recipe) -> tuple[int, int]:
    """Return the smallest and the largest area of an image or a frame, in pixels."""
    low = recipe.min_pixels if options.min_pixels is None else options.min_pixels
    high = recipe.max_pixels if options.max_pixels is None else options.max_pixels
    return low, high


def through_jpeg(image: Image.Image) -> Image.Image:
    """Return an image as JPEG of quality 85 shows it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return Image.open(buffer).convert("RGB")


class Qwen2VL(Family[QwenOptions]):
    """Checkpoints of Qwen2-VL and Qwen2.5-VL."""

    model_types = frozenset({"qwen2_vl", "qwen2_5_vl"})

    @classmethod
    def processor_arguments(cls, options: QwenOptions, model_type: str, simple: bool) -> dict[str, Any]:
        """Bounds of the image area, by the names that transformers 5 has for them."""
        low, high = area_bounds(options, recipe_for(model_type, simple))
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    @property
    def recipe(self) -> Recipe:
        """What lmms-eval's adapter does for this checkpoint and protocol."""
        return recipe_for(self.model_type, self.simple)

    @property
    def takes_paths(self) -> bool:
        """``qwen2_5_vl`` does under the chat protocol."""
        return not self.recipe.jpeg

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert for JPEG, or as ``qwen_vl_utils`` does."""
        from qwen_vl_utils.vision_process import to_rgb

        return image.convert("RGB") if self.recipe.jpeg else to_rgb(image)

    @property
    def bounds(self) -> dict[str, int]:
        """``min_pixels`` and ``max_pixels``."""
        low, high = area_bounds(self.options, self.recipe)
        return {"min_pixels": low, "max_pixels": high}

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The tokenizer's end of sequence, which pads when there is no padding token."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return {"eos_token_id": eos, "pad_token_id": eos if pad is None else pad}

    def render(self, messages: Sequence[Message]) -> str:
        """Begin with the system prompt unless the document brings its own."""
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.options.system_prompt}, *messages]
        return super().render(messages)

    def simple_prompt(self, context: str, visuals: Sequence[Visual]) -> Prompt:
        """Show all visuals before the text, from which image marks are removed."""
        return self.chat_prompt([{"role": "user", "content": content_of(context.replace("<image>", ""), visuals)}])

    def encode(self, prompts: Sequence[Prompt]) -> Encoded:
        """Encode a batch with images and frames resized as ``qwen_vl_utils`` does."""
        from qwen_vl_utils import fetch_image

        qwen_frames()
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            if self.recipe.jpeg:
                media["images"] = [fetch_image({"image": through_jpeg(image), **self.bounds}) for image in images]
            else:
                media["images"] = [fetch_image({"image": image}) for image in images]
        if videos := all_videos(prompts):
            clips = [read_clip(video, self.choose_frames) for video in videos]
            media["videos"] = [self.resize(clip) for clip in clips]
            if self.recipe.fps is None:
                media["video_metadata"] = [
                    {"fps": clip.fps, "frames_indices": list(clip.indices), "total_num_frames": clip.total}
                    for clip in clips
                ]
        return self.process(prompts, **media)

    def choose_frames(self, total: int, fps: float) -> list[int]:
        """Choose an even number of frames, at most ``max_num_frames``, at even distances."""
        from qwen_vl_utils.vision_process import smart_nframes

        qwen_frames()
        most = self.options.max_num_frames
        rate = self.options.fps or self.recipe.fps
        if rate is None:
            count = max(2, min(most, total) // 2 * 2)
            return [int(i) for i in torch.linspace(0, total - 1, count).round()]
        count = smart_nframes({"fps": rate}, total_frames=total, video_fps=fps) if total >= 2 else 1
        frames = torch.linspace(0, total - 1, count).round().long()
        kept = np.unique(np.linspace(0, count - 1, most, dtype=int))
        return [int(i) for i in frames[kept]]

    def resize(self, clip: Clip) -> Tensor:
        """Return float frames ``[frames, 3, height, width]`` of sides that whole patches fill."""
        from qwen_vl_utils import vision_process as qwen
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resize

        qwen_frames()
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        factor = 14 * qwen.SPATIAL_MERGE_SIZE
        low, high = self.bounds["min_pixels"], self.bounds["max_pixels"]
        total = qwen.MODEL_SEQ_LEN * factor**2 * 0.9
        share = min(qwen.VIDEO_MAX_TOKEN_NUM * factor**2, total / len(frames) * qwen.FRAME_FACTOR)
        height, width = qwen.smart_resize(
            frames.shape[2],
            frames.shape[3],
            factor=factor,
            min_pixels=low,
            max_pixels=min(high, max(share, int(low * 1.05))),
        )
        return resize(frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True).float()

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """At most 128 tokens, or what the recipe says."""
        return greedy_unless_asked(generation, self.recipe.max_new_tokens, self.stop_ids, self.options.use_cache)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Cut answers at stop strings and strip them where lmms-eval's adapter does."""
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.recipe.stop:
            until = stop_strings(generation, [self.tokenizer.eos_token])
            if self.model_type == "qwen2_5_vl":
                until = [term for term in until if term != "\n\n"]
            for term in filter(None, until):
                answers = [answer.split(term)[0] for answer in answers]
        return [answer.strip() for answer in answers] if self.recipe.strip else answers
