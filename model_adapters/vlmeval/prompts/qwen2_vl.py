"""Qwen2-VL and Qwen2.5-VL, prompted as VLMEvalKit's ``Qwen2VLChat`` does, and Qwen3-VL as ``Qwen3VLChat``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vlmeval.vlm.qwen2_vl.prompt import Qwen2VLPromptMixin
from vlmeval.vlm.qwen3_vl.prompt import Qwen3VLPromptMixin

from vtw_eval.media import once, open_pictures, strictly
from vtw_eval.model_adapters.vlmeval.prompts.base import KitFamily, KitOptions, KitPrompt, KitQuestion, Row
from vtw_eval.models.family import DocumentPrompt, Encoded, Family, Message, all_images
from vtw_eval.models.qwen2_vl import Qwen2VL, QwenOptions, resize_image
from vtw_eval.models.video import Choose, notes_on, read_clip, reader_of
from vtw_eval.verify.touch_guards import qwen_frames

PIXELS = (1280 * 28 * 28, 16384 * 28 * 28)
"""Smallest and largest area of an image in the kit's entries for Qwen2-VL and Qwen2.5-VL."""

OCRBENCH_TOKENS = 10 * 10
"""Vision tokens that an image of OCRBench has at least."""


@dataclass(frozen=True, kw_only=True)
class QwenKitOptions(KitOptions, QwenOptions):
    """Options of ``qwen2vl_vtw`` under VLMEvalKit.

    Parameters
    ----------
    min_pixels, max_pixels
        Bounds of the area that an image or a frame is resized to. ``None``: 1003520 and 12845056, as in the kit's
        entries for Qwen2-VL and Qwen2.5-VL; for Qwen3-VL, whose entries have none, those of ``qwen_vl_utils``.
    max_num_frames
        Frames taken from a video, where the dataset names no number; without effect while there is an ``fps``.
    fps
        Frames per second taken from a video, where the dataset names no number.
    use_custom_prompt
        Word questions as the kit's class does instead of as its datasets do. ``None``: as in the kit's entries,
        for Qwen2-VL but not for the others.
    system_prompt
        System message; empty: what the chat template says.
    """

    max_num_frames: int = 128
    fps: float | None = 2.0
    use_custom_prompt: bool | None = None
    system_prompt: str = ""


class Qwen2VLKit(KitFamily, Qwen2VL):
    """Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL under VLMEvalKit."""

    options_class = QwenKitOptions
    options: QwenKitOptions

    @classmethod
    def processor_arguments(cls, options: QwenOptions, model_type: str, simple: bool) -> dict[str, Any]:
        """Leave the processor as the checkpoint has it."""
        return {}

    @property
    def bounds(self) -> dict[str, int]:
        """``min_pixels`` and ``max_pixels``."""
        from qwen_vl_utils import vision_process as qwen

        low, high = self.options.min_pixels, self.options.max_pixels
        least, most = PIXELS
        if self.is_qwen3:
            least, most = (count * self._area for count in (qwen.IMAGE_MIN_TOKEN_NUM, qwen.IMAGE_MAX_TOKEN_NUM))
        return {"min_pixels": least if low is None else low, "max_pixels": most if high is None else high}

    @property
    def frame_bounds(self) -> tuple[float, float]:
        """Smallest and largest area of a frame of a video; for Qwen3-VL ``qwen_vl_utils`` has others than of images."""
        from qwen_vl_utils import vision_process as qwen

        low, high = super().frame_bounds
        if self.is_qwen3:
            low = qwen.VIDEO_MIN_TOKEN_NUM * self._area if self.options.min_pixels is None else low
            high = math.inf if self.options.max_pixels is None else high
        return low, high

    @property
    def _area(self) -> int:
        """Pixels of a vision token."""
        from qwen_vl_utils import vision_process as qwen

        return (self.recipe.patch * qwen.SPATIAL_MERGE_SIZE) ** 2

    @property
    def takes_video(self) -> bool:
        """Videos come as files."""
        return True

    @property
    def default_frames(self) -> tuple[int | None, float | None]:
        """As the options say."""
        return self.options.max_num_frames, self.options.fps

    def has_own_prompt(self, dataset: str) -> bool:
        """As the kit's class decides."""
        asked = self.options.use_custom_prompt
        return self._words(self.model_type == "qwen2_vl" if asked is None else asked).use_custom_prompt(dataset)

    def own_prompt(self, row: Row, dataset: str, images: Sequence[str]) -> list[dict[str, str]]:
        """Show the images, then the question with its options or the form of its answer."""
        return self._words(images=images).build_prompt(row, dataset)

    def _words(self, asked: bool = True, images: Sequence[str] = ()) -> Any:
        """Return the part of the kit's class that words questions."""
        of_class = Qwen3VLPromptMixin if self.is_qwen3 else Qwen2VLPromptMixin
        words = of_class(use_custom_prompt=asked)
        words.set_dump_image(lambda row: list(images))
        return words

    def render(self, messages: Sequence[Message]) -> str:
        """Apply the chat template, after the system prompt if the options have one."""
        system = self.options.system_prompt
        given: list[Message] = [{"role": "system", "content": system}] if system else []
        return Family.render(self, [*given, *messages])

    def kit_prompt(self, question: KitQuestion) -> KitPrompt:
        """Interleave texts, images resized as ``qwen_vl_utils`` does, and videos."""
        from qwen_vl_utils.vision_process import to_rgb

        qwen_frames()
        bounds = self.bounds
        if question.dataset == "OCRBench":
            bounds = {**bounds, "min_pixels": OCRBENCH_TOKENS * self._area}
        content: list[dict[str, Any]] = [
            {"type": part["type"], **({"text": part["value"]} if part["type"] == "text" else {})}
            for part in question.parts
        ]
        with strictly():
            images, notes = open_pictures(question.values("image"), self.options.media, to_rgb)
        reader = reader_of(self.options.media, "decord")
        clips = [read_clip(path, self._chooser(question), reader) for path in question.values("video")]
        return KitPrompt(
            self.render([{"role": "user", "content": content}]),
            tuple(resize_image(image, **bounds, patch=self.recipe.patch) for image in images),
            notes=once((*notes, *notes_on([clips])[0])),
            clips=tuple(clips),
        )

    def _chooser(self, question: KitQuestion) -> Choose:
        from qwen_vl_utils.vision_process import smart_nframes

        def choose(total: int, fps: float) -> list[int]:
            most = self.options.max_num_frames if question.nframe is None else question.nframe
            if total < 2 or (question.fps is None and most < 2):  # qwen_vl_utils takes two frames or more
                return [0]
            if question.fps is not None and fps > 0:
                count = smart_nframes({"fps": question.fps}, total_frames=total, video_fps=fps)
            else:
                asked = total // 2 * 2 if total < most else most
                count = smart_nframes({"nframes": asked}, total_frames=total, video_fps=fps)
            return [int(i) for i in torch.linspace(0, total - 1, count).round()]

        return choose

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode images, and the frames of videos, whose places and rate the kit tells to Qwen3-VL only."""
        images = all_images(prompts)
        clips = [prompt.clips if isinstance(prompt, KitPrompt) else () for prompt in prompts]
        return self.with_videos(prompts, {"images": images} if images else {}, clips, places=False)

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy and without repetition penalty.

        The kit's class asks for that by sampling from the best token only. For Qwen3-VL it samples where the
        checkpoint's generation config says so: answers of which no two runs are the same.
        """
        longest = {"max_new_tokens": 32768} if self.is_qwen3 else {}
        return {**super().generation({**longest, **generation}), "repetition_penalty": 1.0}

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode without cleaning up spaces."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


FAMILY = Qwen2VLKit
