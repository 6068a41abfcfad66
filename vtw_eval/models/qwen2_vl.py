"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, prompted as lmms-eval's ``qwen2_vl``, ``qwen2_5_vl`` and ``qwen3_vl`` do."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtw_eval.media import once
from vtw_eval.models.family import (
    DocumentPrompt,
    Encoded,
    Family,
    Message,
    Visual,
    all_images,
    content_of,
    generation_arguments,
    stop_strings,
)
from vtw_eval.models.options import Options
from vtw_eval.models.video import Clip, notes_on, read_clips, reader_of
from vtw_eval.verify.touch_guards import qwen_frames


@dataclass(frozen=True, kw_only=True)
class QwenOptions(Options):
    """Options of ``qwen2vl_vtw``.

    Parameters
    ----------
    min_pixels, max_pixels
        Bounds of the area that an image or a frame is resized to. ``None``: those of lmms-eval's adapter, 3136 and
        602112 for Qwen2-VL, 200704 and 1605632 for Qwen2.5-VL and Qwen3-VL. Its adapter for Qwen3-VL does not apply
        them to images under the chat protocol; they are with ``media="upright"``.
    max_num_frames
        Most frames taken from a video.
    fps
        Frames per second taken from a video. ``None``: as lmms-eval's adapter does, 2 for Qwen2-VL and for
        Qwen2.5-VL under the simple protocol, otherwise ``max_num_frames`` spread evenly.
    system_prompt
        System message for documents without one; for Qwen3-VL, whose adapter in lmms-eval asks no further, before
        those of all documents.
    """

    pretrained: str = "Qwen/Qwen2-VL-7B-Instruct"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_num_frames: int = 32
    fps: float | None = None
    system_prompt: str = "You are a helpful assistant."


@dataclass(frozen=True)
class QwenRecipe:
    """What differs between lmms-eval's adapters of the family."""

    min_pixels: int
    max_pixels: int
    jpeg: bool
    """Images pass through JPEG of quality 85."""
    bounded: bool
    """Images are resized within the bounds before the processor sees them."""
    max_new_tokens: int
    fps: float | None
    """Frames per second of a video; None: ``max_num_frames`` of the whole."""
    stop: bool
    """Answers end at the task's stop strings."""
    strip: bool
    """Answers lose white space at both ends."""
    patch: int = 14
    """Side of a patch in pixels; sides of images are multiples of two."""


QWEN2 = QwenRecipe(
    min_pixels=3136,
    max_pixels=602112,
    jpeg=True,
    bounded=True,
    max_new_tokens=128,
    fps=2.0,
    stop=True,
    strip=True,
)
"""``qwen2_vl``, which has the simple protocol only; the chat protocol takes over everything but the messages."""

QWEN2_5_CHAT = QwenRecipe(
    min_pixels=200704,
    max_pixels=1605632,
    jpeg=False,
    bounded=False,
    max_new_tokens=128,
    fps=None,
    stop=False,
    strip=False,
)
"""``qwen2_5_vl`` under the chat protocol."""

QWEN2_5_SIMPLE = replace(QWEN2_5_CHAT, jpeg=True, bounded=True, max_new_tokens=32768, fps=2.0, stop=True)
"""``qwen2_5_vl`` under the simple protocol."""

QWEN3_CHAT = replace(QWEN2_5_CHAT, patch=16)
"""``qwen3_vl`` under the chat protocol. The processor resizes nothing, so that no bounds apply to images."""

QWEN3_SIMPLE = replace(QWEN3_CHAT, bounded=True, stop=True)
"""``qwen3_vl`` under the simple protocol."""

RECIPES: Mapping[str, tuple[QwenRecipe, QwenRecipe]] = {
    "qwen2_vl": (QWEN2, QWEN2),
    "qwen2_5_vl": (QWEN2_5_CHAT, QWEN2_5_SIMPLE),
    "qwen3_vl": (QWEN3_CHAT, QWEN3_SIMPLE),
    "qwen3_vl_moe": (QWEN3_CHAT, QWEN3_SIMPLE),
}
"""By ``config.model_type``: under the chat protocol, and under the simple one."""

QWEN3 = frozenset({"qwen3_vl", "qwen3_vl_moe"})
"""``config.model_type`` of Qwen3-VL."""


def recipe_for(model_type: str, simple: bool) -> QwenRecipe:
    """Return the recipe of a checkpoint under a protocol."""
    return RECIPES[model_type][simple]


def area_bounds(options: QwenOptions, recipe: QwenRecipe) -> tuple[int, int]:
    """Return the smallest and the largest area of an image or a frame, in pixels."""
    low = recipe.min_pixels if options.min_pixels is None else options.min_pixels
    high = recipe.max_pixels if options.max_pixels is None else options.max_pixels
    return low, high


def through_jpeg(image: Image.Image) -> Image.Image:
    """Return an image as JPEG of quality 85 shows it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=85)
    return Image.open(buffer).convert("RGB")


SECONDS = "seconds per patch of a video are not those between its frames"
TIMES = "times told of a video's frames are not theirs"
UNBOUNDED = "bounds of the area not applied to a picture"
SYSTEM = "a document's system message follows another"
"""Reasons, as they stand in results, why a model is told or shown something else than asked."""


def resized_sides(height: int, width: int, low: float, high: float, patch: int = 14) -> tuple[int, int]:
    """Return the sides that an image or a frame is resized to: whole patches that keep area and shape about right.

    Parameters
    ----------
    height, width
        Sides before, in pixels.
    low, high
        Bounds of the area, in pixels.
    patch
        Side of a patch, of which the sides are even multiples.

    Returns
    -------
    tuple of int
        Height and width of ``qwen_vl_utils``. Where it rounds the side of a narrow picture down to nothing, and with it
        the harnesses' adapters fail: one patch, and the longest other side whose area is within the bound.

    Raises
    ------
    ValueError
        For one side more than 200 times as long as the other, which the models were not made for.
    """
    from qwen_vl_utils import vision_process as qwen

    factor = patch * qwen.SPATIAL_MERGE_SIZE
    made = qwen.smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
    if min(made) > 0:
        return made
    long = max(1, int(high // factor**2)) * factor
    return (factor, long) if width >= height else (long, factor)


def resize_image(
    image: Image.Image, min_pixels: int | None = None, max_pixels: int | None = None, patch: int = 14
) -> Image.Image:
    """Return an image in RGB, resized as ``qwen_vl_utils.fetch_image`` resizes it.

    Parameters
    ----------
    image
        The image.
    min_pixels, max_pixels
        Bounds of its area; ``None``: 4 and 16384 vision tokens.
    patch
        Side of a patch, in pixels.

    Raises
    ------
    ValueError
        See :func:`resized_sides`.
    """
    from qwen_vl_utils import vision_process as qwen

    area = (patch * qwen.SPATIAL_MERGE_SIZE) ** 2
    low = qwen.IMAGE_MIN_TOKEN_NUM * area if min_pixels is None else min_pixels
    high = qwen.IMAGE_MAX_TOKEN_NUM * area if max_pixels is None else max_pixels
    height, width = resized_sides(image.height, image.width, low, high, patch)
    return qwen.to_rgb(image).resize((width, height))


def seconds_per_patch(clip: Clip, frames: int) -> float:
    """Return the mean distance between the first frames of neighbouring patches of a video, in seconds.

    Parameters
    ----------
    clip
        The video.
    frames
        Frames of a patch.
    """
    span = clip.times[-1] - clip.times[0] if clip.times else 0.0
    if span > 0:
        return frames * span / (len(clip.times) - 1)
    return frames / clip.fps if clip.fps > 0 else 1.0  # one patch: it has no neighbour


def patch_times(times: Sequence[float], frames: int) -> list[float]:
    """Return the mean time of the first and the last frame of each patch of a video, in seconds.

    Parameters
    ----------
    times
        When each frame is shown, in seconds; the last one fills the last patch.
    frames
        Frames of a patch.
    """
    filled = [*times, *[times[-1]] * (-len(times) % frames)]
    return [(filled[i] + filled[i + frames - 1]) / 2 for i in range(0, len(filled), frames)]


def every_frame(frames: int, fps: float) -> dict[str, Any]:
    """Return the metadata of a video of which each frame is shown."""
    return {"fps": fps, "frames_indices": list(range(frames)), "total_num_frames": frames}


class Qwen2VL(Family[QwenOptions]):
    """Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

    options_class: ClassVar[type[Options]] = QwenOptions
    model_types = frozenset(RECIPES)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bounds["min_pixels"], self.bounds["max_pixels"]
        if low > high:
            raise ValueError(f"min_pixels={low} is above max_pixels={high}: give both.")

    @classmethod
    def processor_arguments(cls, options: QwenOptions, model_type: str, simple: bool) -> dict[str, Any]:
        """Bounds of the image area, by the names that transformers 5 has for them."""
        low, high = area_bounds(options, recipe_for(model_type, simple))
        return {"size": {"shortest_edge": low, "longest_edge": high}}

    @property
    def recipe(self) -> QwenRecipe:
        """What lmms-eval's adapter does for this checkpoint and protocol."""
        return recipe_for(self.model_type, self.simple)

    @property
    def takes_paths(self) -> bool:
        """``qwen2_5_vl`` and ``qwen3_vl`` do under the chat protocol."""
        return not self.recipe.bounded

    @property
    def is_qwen3(self) -> bool:
        """Whether it is Qwen3-VL, with experts or without."""
        return self.model_type in QWEN3

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
    def frame_bounds(self) -> tuple[float, float]:
        """Smallest and largest area of a frame of a video, in pixels."""
        return self.bounds["min_pixels"], self.bounds["max_pixels"]

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The tokenizer's end of sequence, which pads when there is no padding token."""
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return {"eos_token_id": eos, "pad_token_id": eos if pad is None else pad}

    def render(self, messages: Sequence[Message]) -> str:
        """Begin with the system prompt unless the document brings its own; for Qwen3-VL even then."""
        if not _brings_system(messages) or self._doubles_system:
            messages = [{"role": "system", "content": self.options.system_prompt}, *messages]
        return super().render(messages)

    @property
    def _doubles_system(self) -> bool:
        """Whether the system prompt comes before that of a document too, as ``qwen3_vl`` puts it."""
        return self.is_qwen3 and self.options.media == "harness"

    def chat_prompt(self, messages: Sequence[Message]) -> DocumentPrompt:
        """Note what the system prompt and the bounds of the area do to a document under ``qwen3_vl``."""
        prompt = super().chat_prompt(messages)
        notes = [SYSTEM] * (_brings_system(messages) and self._doubles_system)
        if self.is_qwen3 and not self._bounds_images and any(map(self._exceeds, prompt.images)):
            notes.append(UNBOUNDED)
        return replace(prompt, notes=once((*prompt.notes, *notes)))

    @property
    def _bounds_images(self) -> bool:
        return self.recipe.bounded or (self.is_qwen3 and self.options.media == "upright")

    def _exceeds(self, image: Image.Image) -> bool:
        """Tell whether an image would have another size within the bounds."""
        patch = self.recipe.patch
        within = resize_image(image, **self.bounds, patch=patch).size
        return within != resize_image(image, patch=patch).size

    def simple_prompt(self, context: str, visuals: Sequence[Visual]) -> DocumentPrompt:
        """Show all visuals before the text, from which image marks are removed."""
        return self.chat_prompt([{"role": "user", "content": content_of(context.replace("<image>", ""), visuals)}])

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch with images and frames resized as ``qwen_vl_utils`` does."""
        qwen_frames()
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            bounds = self.bounds if self._bounds_images else {}
            shown = map(through_jpeg, images) if self.recipe.jpeg else images
            media["images"] = [resize_image(image, **bounds, patch=self.recipe.patch) for image in shown]
        clips = read_clips(prompts, self.choose_frames, reader_of(self.options.media, "decord"))
        return self.with_videos(prompts, media, clips, places=self.recipe.fps is None)

    def with_videos(
        self,
        prompts: Sequence[DocumentPrompt],
        media: Mapping[str, Any],
        clips: Sequence[Sequence[Clip]],
        *,
        places: bool,
    ) -> Encoded:
        """Encode a batch with videos; Qwen2.5-VL is told the seconds per patch, Qwen3-VL when each was.

        Parameters
        ----------
        prompts
            The batch.
        media
            What the processor gets beside the videos.
        clips
            The videos of each prompt.
        places
            Whether the harness's adapter tells the processor the frames' places and rate, which makes a patch last its
            share of the video; otherwise frames count as 24 a second. With ``media="upright"`` it is the mean distance
            of the frames shown. Qwen3-VL is always told them.
        """
        videos = [clip for row in clips for clip in row]
        if self.is_qwen3:
            return self._with_times(prompts, media, clips)
        if not videos:
            return self.process(prompts, **media)
        arguments = {**media, "videos": [self.resize(clip) for clip in videos]}
        if self.model_type != "qwen2_5_vl":
            return replace(self.process(prompts, **arguments), notes=notes_on(clips))
        patch = self.processor.video_processor.temporal_patch_size
        if self.options.media == "upright":
            arguments["video_metadata"] = [
                every_frame(len(v.frames), patch / seconds_per_patch(v, patch)) for v in videos
            ]
        elif places:
            arguments["video_metadata"] = [
                {"fps": clip.fps, "frames_indices": list(clip.indices), "total_num_frames": clip.total}
                for clip in videos
            ]
        encoded = self.process(prompts, **arguments)
        marked = iter(
            clip
            if len(clip.frames) <= patch or math.isclose(told, seconds_per_patch(clip, patch), rel_tol=0.01)
            else replace(clip, notes=(*clip.notes, SECONDS))
            for clip, told in zip(videos, encoded.inputs["second_per_grid_ts"].tolist(), strict=True)
        )
        return replace(encoded, notes=notes_on([[next(marked) for _ in row] for row in clips]))

    def _with_times(
        self, prompts: Sequence[DocumentPrompt], media: Mapping[str, Any], clips: Sequence[Sequence[Clip]]
    ) -> Encoded:
        """Encode a batch for Qwen3-VL, whose processor writes the time of each patch of a video in the prompt."""
        arguments = {**media, "do_resize": False}
        if videos := [clip for row in clips for clip in row]:
            arguments["videos"] = [self.resize(clip) for clip in videos]
            arguments["do_sample_frames"] = False
            # The processor divides a frame's place by the rate: milliseconds by 1000 are the frame's own time.
            arguments["video_metadata"] = [
                {"fps": 1000.0, "frames_indices": [round(1000 * t) for t in clip.times], "total_num_frames": clip.total}
                if self.options.media == "upright"
                else {"fps": clip.fps or 1.0, "frames_indices": list(clip.indices), "total_num_frames": clip.total}
                for clip in videos
            ]
        notes = notes_on([[self._times_noted(clip) for clip in row] for row in clips])
        return replace(self.process(prompts, **arguments), notes=notes)

    def _times_noted(self, clip: Clip) -> Clip:
        """Return a clip with the note that its frames' times are told wrongly, if they are."""
        if self.options.media == "upright":
            return clip
        told = [index / (clip.fps or 1.0) for index in clip.indices]
        patch = self.processor.video_processor.temporal_patch_size
        pairs = zip(patch_times(told, patch), patch_times(clip.times, patch), strict=True)
        # The prompt has tenths of a second.
        return clip if all(abs(a - b) <= 0.1 for a, b in pairs) else replace(clip, notes=(*clip.notes, TIMES))

    def choose_frames(self, total: int, fps: float) -> list[int]:
        """Choose an even number of frames, at most ``max_num_frames``, at even distances; all of a single one."""
        from qwen_vl_utils.vision_process import smart_nframes

        if total < 2:  # qwen_vl_utils takes no such video
            return [0]
        most = self.options.max_num_frames
        rate = self.options.fps or self.recipe.fps
        if rate is None or fps <= 0:
            if self.is_qwen3 and (rounded := 2 * round(most / 2)) <= total:
                most = rounded  # qwen_vl_utils rounds half to even; lmms-eval rounds down for Qwen2.5-VL
            count = max(2, min(most, total) // 2 * 2)
            return [int(i) for i in torch.linspace(0, total - 1, count).round()]
        if self.is_qwen3:
            count = smart_nframes({"fps": rate, "max_frames": max(2, min(most, total))}, total, fps)
            return [int(i) for i in torch.linspace(0, total - 1, count).round()]
        count = smart_nframes({"fps": rate}, total_frames=total, video_fps=fps)
        frames = torch.linspace(0, total - 1, count).round().long()
        kept = np.unique(np.linspace(0, count - 1, most, dtype=int))
        return [int(i) for i in frames[kept]]

    def resize(self, clip: Clip) -> Tensor:
        """Return float frames ``[frames, 3, height, width]`` of sides that whole patches fill."""
        from qwen_vl_utils import vision_process as qwen
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resize

        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        factor = self.recipe.patch * qwen.SPATIAL_MERGE_SIZE
        low, high = self.frame_bounds
        total = qwen.MODEL_SEQ_LEN * factor**2 * 0.9
        share = min(qwen.VIDEO_MAX_TOKEN_NUM * factor**2, total / len(frames) * qwen.FRAME_FACTOR)
        most = int(min(high, max(share, int(low * 1.05))))
        size = resized_sides(frames.shape[2], frames.shape[3], low, most, self.recipe.patch)
        return resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float()

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """At most 128 tokens, or what the recipe says."""
        return generation_arguments(generation, self.recipe.max_new_tokens, self.stop_ids, self.options.use_cache)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Cut answers at stop strings and strip them where lmms-eval's adapter does."""
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.recipe.stop:
            until = stop_strings(generation, [self.tokenizer.eos_token])
            if self.model_type != "qwen2_vl":
                until = [term for term in until if term != "\n\n"]
            for term in filter(None, until):
                answers = [answer.split(term)[0] for answer in answers]
        return [answer.strip() for answer in answers] if self.recipe.strip else answers


def _brings_system(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"


FAMILY = Qwen2VL
