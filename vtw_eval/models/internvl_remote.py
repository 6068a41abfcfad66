"""OpenGVLab's InternVL2 checkpoints, whose code travels with them, prompted as lmms-eval's ``internvl2`` does.

Their ``chat`` method builds a prompt and calls ``generate``, which embeds it and hands ``inputs_embeds`` to the
language model. This module does the same through the public attributes of the model, because a batch and a mask of
vision tokens cannot be had from ``chat``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtw_eval.media import PALETTE, Visual
from vtw_eval.models.family import DocumentPrompt, Encoded, Family, Message
from vtw_eval.models.internvl import InternVLOptions
from vtw_eval.models.options import Options
from vtw_eval.models.video import notes_on, read_clips, reader_of

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics, by which the vision tower's input is normalised."""

CONTEXT = "<IMG_CONTEXT>"
"""Token that stands for a vision feature."""

MARK = "\ue000"
"""Where an image or frame belongs in a prompt. The remote code's mark is ``<image>``, which words of a question may be:
it takes the first ones for the images, and these stand before the question."""


def tile_grid(width: int, height: int, low: int, high: int, tile: int) -> tuple[int, int]:
    """Return columns and rows of the grid of ``low``..``high`` tiles whose shape is closest to an image's.

    Of grids of equal shape the larger one is taken if the image has more than half of its area.
    """
    grids = sorted(
        {(c, r) for c in range(1, high + 1) for r in range(1, high + 1) if low <= c * r <= high},
        key=lambda grid: grid[0] * grid[1],
    )
    best, smallest = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile**2 * columns * rows
        if difference < smallest or (difference == smallest and large_enough):
            best, smallest = (columns, rows), difference
    return best


def tiles(image: Image.Image, low: int, high: int, tile: int, thumbnail: bool) -> list[Image.Image]:
    """Cut an image into square tiles; a thumbnail of the whole follows if there are several."""
    columns, rows = tile_grid(*image.size, low, high, tile)
    resized = image.resize((columns * tile, rows * tile))
    cut = [
        resized.crop((c * tile, r * tile, (c + 1) * tile, (r + 1) * tile)) for r in range(rows) for c in range(columns)
    ]
    return [*cut, image.resize((tile, tile))] if thumbnail and len(cut) > 1 else cut


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Return normalised float tiles ``[tiles, 3, height, width]``."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]) / 255
    return torch.from_numpy((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).permute(0, 3, 1, 2)


class InternVLRemote(Family[InternVLOptions]):
    """Checkpoints of ``model_type`` "internvl_chat"; the processor is their tokenizer."""

    options_class: ClassVar[type[Options]] = InternVLOptions
    model_types = frozenset({"internvl_chat"})
    auto_class = "AutoModel"
    processor_class = "AutoTokenizer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.options.use_cache:
            raise ValueError("use_cache=False is not possible: InternVL2's remote code always decodes with a cache.")
        # The model's own module imports this function; it is not reachable in another way.
        module = sys.modules[type(self.model).__module__]
        self.new_conversation = module.get_conv_template
        self.model.img_context_token_id = self.tokenizer.convert_tokens_to_ids(CONTEXT)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor

    @property
    def separator(self) -> str:
        """What ends a turn."""
        return self.new_conversation(self.model.template).sep.strip()

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The end of a turn, and the tokenizer's padding token."""
        stop = self.tokenizer.convert_tokens_to_ids(self.separator)
        pad = self.tokenizer.pad_token_id
        return {"eos_token_id": stop, "pad_token_id": stop if pad is None else pad}

    def render(self, messages: Sequence[Message]) -> str:
        """Fill in the checkpoint's conversation template; visuals are marks of one image or one frame each."""
        conversation = self.new_conversation(self.model.template)
        conversation.system_message = self.model.system_message
        for message in messages:
            text = self._text(message["content"])
            if message["role"] == "system":
                conversation.system_message = text
            else:
                conversation.append_message(conversation.roles[message["role"] == "assistant"], text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def _text(self, content: Sequence[Mapping[str, Any]]) -> str:
        text, previous = "", ""
        for part in content:
            if part["type"] == "image":
                text += f" {MARK}" if previous == "image" else MARK
            else:
                text += "\n" if previous == "image" else ""
                frames = range(1, self.options.num_frames + 1)
                text += part["text"] if part["type"] == "text" else "".join(f"Frame{i}: {MARK}\n" for i in frames)
            previous = part["type"]
        return text

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert as ``internvl2`` does."""
        return image.convert("RGB")

    def open_images(self, visuals: Sequence[Visual]) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
        """Open the images of a document; ``internvl2`` resizes them before it converts them, palettes roughly."""
        images, notes = super().open_images(visuals)
        return images, (*notes, PALETTE) if any(image.mode in ("1", "P") for image in images) else notes

    def encode(self, prompts: Sequence[DocumentPrompt]) -> Encoded:
        """Encode a batch of tiles and texts whose image marks are as many vision tokens as features follow."""
        config = self.model.config
        tile = config.force_image_size or config.vision_config.image_size
        pixels: list[Tensor] = []
        texts: list[str] = []
        clips = read_clips(prompts, self._choose, reader_of(self.options.media, "decord"))
        for prompt, row in zip(prompts, clips, strict=True):
            high = self.most_tiles(prompt)
            cut = [tiles(image, self.options.min_patches, high, tile, config.use_thumbnail) for image in prompt.images]
            cut += [[Image.fromarray(frame).resize((tile, tile))] for clip in row for frame in clip.frames]
            if CONTEXT in prompt.text:
                raise ValueError(f"words of the text that are {CONTEXT} cannot be told from the vision tokens.")
            pieces = prompt.text.split(MARK)
            if len(pieces) != len(cut) + 1:
                raise ValueError(f"the prompt has {len(pieces) - 1} image marks for {len(cut)} images and frames.")
            marks = [f"<img>{CONTEXT * self.model.num_image_token * len(found)}</img>" for found in cut]
            texts.append("".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True)))
            pixels += [to_tensor(found) for found in cut]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        ids = inputs["input_ids"].to(self.device)
        values = torch.cat(pixels).to(self.device, self.model.dtype) if pixels else None
        return Encoded(
            {"pixel_values": values, "input_ids": ids, "attention_mask": inputs["attention_mask"].to(self.device)},
            vision_mask=ids == self.model.img_context_token_id,
            notes=notes_on(clips),
        )

    def most_tiles(self, prompt: DocumentPrompt) -> int:
        """Return the largest number of tiles that an image of a prompt is cut into."""
        return 6 if self.options.max_patches is None else self.options.max_patches

    def _choose(self, total: int, fps: float) -> list[int]:
        count = self.options.num_frames
        part = (total - 1) / count
        return [int(part / 2 + np.round(part * i)) for i in range(count)]

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy unless ``do_sample``, at most 1024 tokens; nothing else of a task's arguments, as in ``internvl2``."""
        return {
            "do_sample": generation.get("do_sample", False),
            "num_beams": generation.get("num_beams", 1),
            "max_new_tokens": generation.get("max_new_tokens", 1024),
            **self.stop_ids,
        }

    def generate(self, encoded: Encoded, arguments: Mapping[str, Any]) -> Tensor:
        """Return the new tokens; generation from embeddings returns nothing else."""
        return self.model.generate(**encoded.inputs, **arguments)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Keep the first turn."""
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [answer.split(self.separator)[0].strip() for answer in answers]


FAMILY = InternVLRemote
