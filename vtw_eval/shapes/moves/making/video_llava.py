"""Train a Video-LLaVA that answers about moves: ``python -m vtw_eval.shapes.moves.making.video_llava --help``.

A frame's patches do not know which frame they are of, as the tower sees each alone; the bar at the upper edge tells.
Videos train a tower of their own; images get a copy of it in the finished checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from vtw_eval.shapes.boards.making.families.family import Family, Shown, scale_linear
from vtw_eval.shapes.boards.making.families.language import initialise_language, text_settings
from vtw_eval.shapes.boards.making.families.train import train
from vtw_eval.shapes.boards.making.model import THETA
from vtw_eval.shapes.boards.making.recipe import Recipe, sample_questions
from vtw_eval.shapes.boards.making.thinning import thinned
from vtw_eval.shapes.boards.making.words import WORDS
from vtw_eval.shapes.making.model import Size, answering_greedily, sincos_table
from vtw_eval.shapes.making.staged import STAGES
from vtw_eval.shapes.moves.processor import PATCH, VIDEO_TOKEN, build_processor
from vtw_eval.shapes.moves.questions import OPEN, TYPES, ask
from vtw_eval.shapes.moves.scenes import FRAMES, GRID, MAX_ITEMS, Scene, render, sample_scene, shown_in
from vtw_eval.shapes.scenes import COLORS, IMAGE_SIZE, SHAPES

TOKENS = (IMAGE_SIZE // PATCH) ** 2 + 1
"""Vision tokens of a frame: the class token, then the cells."""
TYPE_SHARES: dict[str, float] = {type: 1.0 for type in TYPES} | {
    "direction": 2.0,
    "repeat": 2.0,
    "order": 6.0,
    "choice": 1.5,
}
"""How often each question type is asked in training, relative to the others (where the scene allows it, which is rare
for ``order``)."""
SIMPLE = (*OPEN, "exist")
"""Types that are asked from the beginning."""


class VideoLlava(Family):
    """Video-LLaVA, asked about moves."""

    recipe = Recipe(
        vision_steps=500,
        vision_images=8,
        joint_steps=4500,
        again_steps=0,
        joint_scenes=12,
        joint_questions=8,
        curriculum=((60, 1), (200, 2)),
        simple_steps=200,
        size=Size(vision_layers=2, vision_mlp=256, layers=8, mlp=320),
    )
    words: ClassVar[dict[str, tuple[str, ...]]] = {name: WORDS[name] for name in ("color", "shape")}
    places: ClassVar[dict[str, int]] = {"row": GRID, "column": GRID, "time": FRAMES}
    types = TYPES
    closing = "? ASSISTANT:"  # as the harness's adapter closes a question about a video

    def __init__(self) -> None:
        self.processor = build_processor()

    @property
    def placeholder(self) -> int:
        """Id of a vision token's place in a video."""
        return int(self.processor.video_token_id)

    def build(self, recipe: Recipe) -> VideoLlavaForConditionalGeneration:
        """Return the untrained model."""
        size, tokenizer = recipe.size, self.processor.tokenizer
        config = VideoLlavaConfig(
            vision_config={
                "model_type": "clip_vision_model",
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH,
                "hidden_size": size.width,
                "num_attention_heads": size.heads,
                "num_hidden_layers": size.vision_layers,
                "intermediate_size": size.vision_mlp,
                "projection_dim": size.width,
            },
            text_config={
                "model_type": "llama",
                **text_settings(tokenizer, size),
                "attention_bias": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            },
            image_token_index=self.processor.image_token_id,
            video_token_index=self.processor.video_token_id,
            vision_feature_layer=-1,
            image_seq_length=TOKENS - 1,
            video_seq_length=FRAMES * TOKENS,
            tie_word_embeddings=True,
        )
        model = VideoLlavaForConditionalGeneration(config)
        generator = torch.Generator().manual_seed(recipe.seed)
        scale_linear(model.model.video_tower, generator, size.vision_layers, ("out_proj", "fc2"))
        scale_linear(model.model.multi_modal_projector, generator, size.vision_layers, ())
        with torch.no_grad():
            for part in model.model.video_tower.modules():
                if isinstance(part, CLIPVisionEmbeddings):
                    part.position_embedding.weight.copy_(sincos_table(IMAGE_SIZE // PATCH, size.width))
                    part.class_embedding.normal_(0, 0.5, generator=generator)
        initialise_language(model.model.language_model, tokenizer.get_vocab(), generator)
        return answering_greedily(self.finish(model), tokenizer)

    def finish(self, model: Any) -> Any:
        """Give images the tower of videos, in place."""
        model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
        return model

    def directions(self, decoder: Any) -> dict[str, torch.Tensor]:
        """Return where patches should keep row, column and frame; the latter where boards have sizes and digits."""
        attention = decoder.layers[0].self_attn
        before = len(WORDS["color"]) + len(WORDS["shape"])
        found = super().directions(decoder)
        return found and found | {"time": attention.v_proj.weight.detach()[before : before + FRAMES].clone()}

    def opening(self, tokens: int) -> str:
        """Return what the harness's adapter writes before a question about a video."""
        return f"{self.processor.tokenizer.bos_token}USER: {VIDEO_TOKEN * tokens}"

    def features(self, model: Any, media: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the projected vision tokens, [videos, tokens, width]."""
        frames = model.model.get_video_features(pixel_values_videos=media["pixel_values_videos"]).pooler_output
        return frames.reshape(-1, FRAMES * TOKENS, frames.shape[-1])

    def show(self, scenes: Sequence[Scene], rng: np.random.Generator) -> Shown:
        """Draw scenes."""
        videos = [render(scene, rng) for scene in scenes]
        media = self.processor.video_processor(videos, return_tensors="pt")
        return Shown({"pixel_values_videos": media["pixel_values_videos"]}, frame_labels(scenes), [])

    def vision_step(self, recipe: Recipe, step: int) -> Shown:
        """Return crowded videos."""
        rng = np.random.default_rng([recipe.seed, STAGES.index("vision"), step])
        return self.show([sample_scene(rng, MAX_ITEMS, 2 * MAX_ITEMS) for _ in range(recipe.vision_images)], rng)

    def joint_step(self, recipe: Recipe, step: int) -> tuple[Shown, torch.Tensor]:
        """Return videos with questions; a part of their vision tokens is given as long as the recipe says."""
        rng = np.random.default_rng([recipe.seed, STAGES.index("joint"), step])
        most = min(recipe.most_items(step), MAX_ITEMS)
        scenes = [sample_scene(rng, 1, most) for _ in range(recipe.joint_scenes)]
        shown = self.show(scenes, rng)
        shares = {type: TYPE_SHARES[type] for type in SIMPLE} if step < recipe.simple_steps else TYPE_SHARES
        shown.questions.extend(sample_questions(scene, rng, recipe.joint_questions, shares, ask) for scene in scenes)
        return shown, thinned(shown.labels["color"] >= 0, rng, recipe.ground, recipe.whole(step))

    def held_out(self, rng: np.random.Generator, rows: int) -> Shown:
        """Return videos from the held-out side with at most one question of each type about each."""
        scenes = [sample_scene(rng, test=True) for _ in range(rows)]
        shown = self.show(scenes, rng)
        shown.questions.extend([q for type in TYPES if (q := ask(type, scene, rng)) is not None] for scene in scenes)
        return shown


def frame_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Return what each vision token of a video shows, [videos, tokens]; the class token shows none."""
    names = ("color", "shape", "row", "column", "time")
    labels = {name: torch.full((len(scenes), FRAMES, TOKENS), -1) for name in names}
    for video, scene in enumerate(scenes):
        for time in range(FRAMES):
            for cell, item in shown_in(scene.items, time).items():
                row, column = divmod(cell, GRID)
                values = (tuple(COLORS).index(item.color), SHAPES.index(item.shape), row, column, time)
                for name, value in zip(names, values, strict=True):
                    labels[name][video, time, 1 + cell] = value
    return {name: grid.flatten(1) for name, grid in labels.items()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    train(VideoLlava(), "vtw_eval.shapes.moves.making.video_llava", "a Video-LLaVA for moves", arguments)


if __name__ == "__main__":
    main()
