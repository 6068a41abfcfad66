"""Train a Qwen2-VL that answers about boards: ``python -m vtw_eval.shapes.boards.making.families.qwen2_vl --help``.

Boards of several sizes and shapes, 32 to 100 vision tokens; one of 4 x 4 cells has 64. Patches have 14 pixels and are
merged 2 x 2, so that the harnesses' resizing to multiples of 28 changes nothing.

The tower has rotary positions only, so that no patch knows where it is in the image: the language model learns rows and
columns from M-RoPE, which heads of stage ``joint`` ask of it after two layers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vtw_eval.shapes.boards.making.families.family import scale_linear
from vtw_eval.shapes.boards.making.families.images import BoardFamily, Form
from vtw_eval.shapes.boards.making.families.language import initialise_language, text_settings
from vtw_eval.shapes.boards.making.families.train import train
from vtw_eval.shapes.boards.making.model import THETA
from vtw_eval.shapes.boards.making.recipe import Recipe, token_labels
from vtw_eval.shapes.boards.processor import build_tokenizer
from vtw_eval.shapes.boards.scenes import CELL, Placed
from vtw_eval.shapes.making.model import Size, answering_greedily
from vtw_eval.shapes.processor import chat_template

PATCH = 14
"""Pixels per side of a patch, as in the released checkpoints."""
MERGE = 2
"""Patches per side of a vision token."""
SYSTEM = "You are a helpful assistant."
"""The system message of conversations without one, as in the released checkpoints."""
PLACEHOLDERS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
"""Special tokens."""
SECTIONS = (4, 6, 6)
"""Rotary frequencies of time, height and width."""
FAST = (0.3, 0.1)
"""The fastest frequencies of height and of width, in radians a vision token, which tell rows and columns apart."""


@dataclass(frozen=True)
class TokenForm(Form):
    """A board and how many vision tokens show it.

    Attributes
    ----------
    down, right
        Vision tokens from the top and from the left.
    """

    down: int = 8
    right: int = 8

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels at which the processor changes nothing."""
        return self.down * PATCH * MERGE, self.right * PATCH * MERGE


def rope_factors() -> list[float]:
    """Return what the usual frequencies are divided by, so that height and width have :data:`FAST` ones."""
    half = sum(SECTIONS)
    usual = [THETA ** (-i / half) for i in range(half)]
    wanted = list(usual)
    for first in (SECTIONS[0], SECTIONS[0] + SECTIONS[1]):
        wanted[first : first + len(FAST)] = FAST
    return [a / b for a, b in zip(usual, wanted, strict=True)]


def build_processor() -> Qwen2VLProcessor:
    """Build the processor: images of at least 224 x 224 pixels' area, in [-1, 1], a placeholder for 28 x 28 pixels."""
    area = {"shortest_edge": (8 * PATCH * MERGE) ** 2, "longest_edge": 1280 * (PATCH * MERGE) ** 2}
    scaled: dict[str, Any] = {
        "size": area,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    beginning = "{% if messages[0]['role'] != 'system' %}SYSTEM: " + SYSTEM + " {% endif %}"
    image = "".join(PLACEHOLDERS[name] for name in ("vision_bos_token", "image_token", "vision_eos_token"))
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**scaled),
        tokenizer=build_tokenizer(PLACEHOLDERS, SYSTEM),
        video_processor=Qwen2VLVideoProcessor(**scaled),
        chat_template=chat_template(image, beginning),
    )


class Qwen2VL(BoardFamily):
    """Qwen2-VL, whose images have the size and shape of their boards."""

    recipe = Recipe(
        vision_steps=800,
        joint_steps=3000,
        ground=(4, 16),
        size=Size(vision_mlp=256, layers=8, mlp=320),
    )
    reading_layers = 2
    forms: ClassVar[tuple[TokenForm, ...]] = (
        TokenForm(),
        TokenForm(),
        TokenForm(3, 4, 6, 8),
        TokenForm(4, 3, 8, 6),
        TokenForm(2, 4, 4, 8),
        TokenForm(3, 4, 7, 10),
        TokenForm(4, 3, 10, 7),
        TokenForm(4, 4, 10, 10),
    )

    def __init__(self) -> None:
        self.processor = build_processor()

    def build(self, recipe: Recipe) -> Qwen2VLForConditionalGeneration:
        """Return the untrained model."""
        size, tokenizer = recipe.size, self.processor.tokenizer
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in PLACEHOLDERS.items()}
        half = size.width // size.heads // 2
        rope: dict[str, Any] = {"rope_theta": THETA, "mrope_section": list(SECTIONS), "rope_type": "longrope"}
        factors = rope_factors()
        if half != sum(SECTIONS):
            raise ValueError(f"heads must be of {2 * sum(SECTIONS)} dimensions, got {2 * half}")
        rope |= {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0}
        rope["original_max_position_embeddings"] = 2048
        config = Qwen2VLConfig(
            vision_config={
                "depth": size.vision_layers,
                "embed_dim": size.width,
                "hidden_size": size.width,
                "num_heads": size.heads,
                "mlp_ratio": size.vision_mlp // size.width,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": 2,
            },
            text_config={**text_settings(tokenizer, size), "rope_parameters": rope},
            image_token_id=ids["image_token"],
            video_token_id=ids["video_token"],
            vision_start_token_id=ids["vision_bos_token"],
            vision_end_token_id=ids["vision_eos_token"],
            tie_word_embeddings=True,
        )
        model = Qwen2VLForConditionalGeneration(config)
        generator = torch.Generator().manual_seed(recipe.seed)
        scale_linear(model.model.visual, generator, size.vision_layers, ("attn.proj", "fc2"))
        initialise_language(model.model.language_model, tokenizer.get_vocab(), generator)
        return answering_greedily(model, tokenizer)

    def opening(self, tokens: int) -> str:
        """Return what the chat template writes before a question."""
        start, pad, end = (PLACEHOLDERS[name] for name in ("vision_bos_token", "image_token", "vision_eos_token"))
        return f"{self.processor.tokenizer.bos_token}SYSTEM: {SYSTEM} USER: {start}{pad * tokens}{end}\n"

    def media(self, images: list[np.ndarray], form: Form) -> dict[str, torch.Tensor]:
        """Return flattened patches and their grids; half of the images have been JPEG, as in the harness."""
        assert isinstance(form, TokenForm)
        height, width = form.size
        shown = [compressed(image) if image[0, 0, 0] % 2 else Image.fromarray(image) for image in images]
        resized = [image.resize((width, height), Image.Resampling.BICUBIC) for image in shown]
        return dict(self.processor.image_processor(resized, return_tensors="pt", do_resize=False))

    def labels(self, placed: Sequence[Sequence[Placed]], form: Form) -> dict[str, torch.Tensor]:
        """Return what each vision token shows; its row and column of cells, whether there is an object or not."""
        assert isinstance(form, TokenForm)
        down, right = (
            (np.arange(tokens) + 0.5) * CELL * cells / tokens
            for tokens, cells in ((form.down, form.rows), (form.right, form.columns))
        )
        labels = token_labels(placed, down, right, slack=5)
        for name, along in (("row", down[:, None]), ("column", right[None])):
            cells = torch.from_numpy(np.broadcast_to(along // CELL, (form.down, form.right)).astype(np.int64))
            labels[name] = cells.reshape(1, -1).expand(len(placed), -1)
        return labels

    def features(self, model: Any, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the merged vision tokens, [images, tokens, width]."""
        merged = model.model.visual(media["pixel_values"], grid_thw=media["image_grid_thw"]).pooler_output
        return merged.reshape(len(media["image_grid_thw"]), -1, merged.shape[-1])

    def positions(self, model: Any, ids: torch.Tensor, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return M-RoPE's positions, [3, length]."""
        types = (ids == self.placeholder).int()[None]
        return model.model.get_rope_index(ids[None], types, image_grid_thw=media["image_grid_thw"][:1])[0][:, 0]


def compressed(image: np.ndarray) -> Image.Image:
    """Return an image as JPEG of quality 85 shows it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=85)
    return Image.open(buffer).convert("RGB")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    train(Qwen2VL(), "vtw_eval.shapes.boards.making.families.qwen2_vl", "a Qwen2-VL for boards", arguments)


if __name__ == "__main__":
    main()
