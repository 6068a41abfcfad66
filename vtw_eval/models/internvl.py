"""InternVL checkpoints in transformers format, prompted as lmms-eval's ``internvl_hf`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from vtw_eval.models.family import DocumentPrompt, Encoded, Family, all_images, generation_arguments
from vtw_eval.models.options import Options
from vtw_eval.models.video import notes_on, read_clips


@dataclass(frozen=True, kw_only=True)
class InternVLOptions(Options):
    """Options of ``internvl_vtw``.

    Parameters
    ----------
    min_patches, max_patches
        Bounds of the number of tiles of an image. ``max_patches=None``: 12, or 6 for remote code, as in lmms-eval's
        ``internvl_hf`` and ``internvl2``.
    num_frames
        Frames per video.
    """

    pretrained: str = "OpenGVLab/InternVL3_5-8B-HF"
    min_patches: int = 1
    max_patches: int | None = None
    num_frames: int = 32


def middles(count: int, total: int) -> list[int]:
    """Return the middle frames of ``count`` equal parts of a video; a shorter video repeats frames."""
    return [min(total - 1, int((i + 0.5) * total / count)) for i in range(count)]


class InternVL(Family[InternVLOptions]):
    """The ``-hf`` checkpoints of OpenGVLab."""

    options_class: ClassVar[type[Options]] = InternVLOptions
    model_types = frozenset({"internvl"})

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch with images in tiles and videos as single-tile frames."""
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            media["images"] = images
            media["min_patches"] = self.options.min_patches
            media["max_patches"] = 12 if self.options.max_patches is None else self.options.max_patches
        # internvl_hf shows no video without torchcodec, which reads them as a player does.
        clips = read_clips(prompts, lambda total, _: middles(self.options.num_frames, total), "player")
        if videos := [clip.frames for row in clips for clip in row]:
            media |= {"videos": videos, "do_sample_frames": False}
        return replace(self.process(prompts, **media), notes=notes_on(clips))

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """At most 1024 tokens; stop strings are ignored, as in ``internvl_hf``."""
        return generation_arguments(generation, 1024, self.stop_ids, self.options.use_cache)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode without cleaning up spaces."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


FAMILY = InternVL
