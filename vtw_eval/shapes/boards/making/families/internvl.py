"""Train an InternVL that answers about boards: ``python -m vtw_eval.shapes.boards.making.families.internvl --help``.

A board is four tiles of 64 x 64 pixels and a thumbnail of as many, in patches of 4 pixels; the pixel shuffle makes one
vision token of 2 x 2 patches: 256 of the tiles and 64 of the thumbnail. Digits can be read in tiles only, and only the
thumbnail shows where in the image an object is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from vtw_eval.shapes.boards.making.families.family import UNKNOWABLE, scale_linear
from vtw_eval.shapes.boards.making.families.images import BoardFamily, Form
from vtw_eval.shapes.boards.making.families.language import initialise_language, text_settings
from vtw_eval.shapes.boards.making.families.train import train
from vtw_eval.shapes.boards.making.model import THETA
from vtw_eval.shapes.boards.making.recipe import Recipe, token_labels
from vtw_eval.shapes.boards.making.words import PLACES
from vtw_eval.shapes.boards.processor import build_tokenizer
from vtw_eval.shapes.boards.scenes import IMAGE_SIZE, Placed
from vtw_eval.shapes.making.model import Size, answering_greedily, sincos_table
from vtw_eval.shapes.processor import chat_template

TILE = 64
"""Pixels per side of a tile."""
PATCH = 4
"""Pixels per side of a patch."""
SHUFFLE = 2
"""Patches per side of a vision token."""
SIDE = TILE // PATCH // SHUFFLE
"""Vision tokens per side of a tile."""
PLACEHOLDERS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Special tokens."""


def build_processor() -> InternVLProcessor:
    """Build the processor: images to at most twelve tiles and a thumbnail, in [-1, 1]."""
    scaled: dict[str, Any] = {"size": {"height": TILE, "width": TILE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=True, **scaled),
        tokenizer=build_tokenizer(PLACEHOLDERS),
        video_processor=InternVLVideoProcessor(**scaled),
        image_seq_length=SIDE**2,
        chat_template=chat_template(PLACEHOLDERS["context_image_token"]),
    )


class InternVL(BoardFamily):
    """InternVL in transformers format, with a Qwen2 decoder."""

    recipe = Recipe(
        vision_steps=800,
        vision_images=8,
        joint_steps=3000,
        again_steps=600,
        joint_questions=12,
        tower_rate=0.0,
        simple_steps=300,
        thin=0.8,
        size=Size(vision_mlp=256, layers=8, mlp=320),
    )

    def __init__(self) -> None:
        self.processor = build_processor()

    def build(self, recipe: Recipe) -> InternVLForConditionalGeneration:
        """Return the untrained model."""
        size, tokenizer = recipe.size, self.processor.tokenizer
        config = InternVLConfig(
            vision_config={
                "hidden_size": size.width,
                "num_attention_heads": size.heads,
                "num_hidden_layers": size.vision_layers,
                "intermediate_size": size.vision_mlp,
                "image_size": TILE,
                "patch_size": PATCH,
                "attention_bias": True,
                "layer_scale_init_value": 1.0,
            },
            text_config={
                "model_type": "qwen2",
                **text_settings(tokenizer, size),
                "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            },
            image_token_id=tokenizer.context_image_token_id,
            image_seq_length=SIDE**2,
            downsample_ratio=1 / SHUFFLE,
            tie_word_embeddings=True,
        )
        model = InternVLForConditionalGeneration(config)
        generator = torch.Generator().manual_seed(recipe.seed)
        tower = model.model.vision_tower
        scale_linear(tower, generator, size.vision_layers, ("projection_layer", "fc2"))
        scale_linear(model.model.multi_modal_projector, generator, size.vision_layers, ())
        with torch.no_grad():
            tower.embeddings.position_embeddings.copy_(sincos_table(TILE // PATCH, size.width)[None])
            tower.embeddings.cls_token.normal_(0, 0.5, generator=generator)
        initialise_language(model.model.language_model, tokenizer.get_vocab(), generator)
        return answering_greedily(model, tokenizer)

    def opening(self, tokens: int) -> str:
        """Return what chat template and processor write before a question."""
        start, end, context, _ = PLACEHOLDERS.values()
        return f"{self.processor.tokenizer.bos_token}USER: {start}{context * tokens}{end}\n"

    def media(self, images: list[np.ndarray], form: Form) -> dict[str, torch.Tensor]:
        """Return tiles and thumbnails, [5 images, 3, 64, 64]."""
        return {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}

    def labels(self, placed: Sequence[Sequence[Placed]], form: Form) -> dict[str, torch.Tensor]:
        """Return what each vision token shows: the thumbnail no digit, tiles no row and column.

        The tower, which does not know which tile it sees, would else tell the place within the tile, and as objects
        cover four times as many tokens of tiles, theirs would drown those of the thumbnail.
        """
        pitch = PATCH * SHUFFLE
        within = (np.arange(SIDE) + 0.5) * pitch
        parts = []
        for top in range(0, IMAGE_SIZE, TILE):
            for left in range(0, IMAGE_SIZE, TILE):
                tile = token_labels(placed, top + within, left + within)
                parts.append(tile | dict.fromkeys(PLACES, torch.where(tile["color"] >= 0, UNKNOWABLE, -1)))
        scale = IMAGE_SIZE // TILE
        thumbnail = token_labels(placed, scale * within, scale * within, slack=5)
        parts.append(thumbnail | {"mark": torch.where(thumbnail["color"] >= 0, -2, -1)})
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in thumbnail}

    def shares(self, recipe: Recipe, step: int) -> Mapping[str, float]:
        """Leave digits out as long as only the thumbnail is given."""
        shares = super().shares(recipe, step)
        if step < recipe.simple_steps:
            return {type: share for type, share in shares.items() if type != "open_mark"}
        return shares

    def given(self, recipe: Recipe, step: int, shown: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Give the thumbnail alone as long as questions are simple: rows and columns are learned from it at once."""
        if step < recipe.simple_steps:
            thumbnail = shown.shape[1] - SIDE**2
            return thumbnail + super().given(recipe, step, shown[:, thumbnail:], rng)
        return super().given(recipe, step, shown, rng)

    def features(self, model: Any, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the projected vision tokens, [images, tokens, width]."""
        tiles = model.model.get_image_features(pixel_values=media["pixel_values"]).pooler_output
        parts = (IMAGE_SIZE // TILE) ** 2 + 1
        return tiles.reshape(-1, parts * SIDE**2, tiles.shape[-1])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    train(InternVL(), "vtw_eval.shapes.boards.making.families.internvl", "an InternVL for boards", arguments)


if __name__ == "__main__":
    main()
