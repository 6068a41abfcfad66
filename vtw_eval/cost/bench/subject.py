"""Models and prompts to time: random weights in the shape of a geometry, or a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.initialization import no_init_weights

from vtw_eval.checkpoints import checkpoint
from vtw_eval.cost.geometry import Geometry, VisionGeometry

_SYSTEM = 35
"""Text tokens before the image, as in the prompt of LLaVA-1.5."""
_TIMED_TOWERS = ("llava", "vipllava")
"""Families whose tower and projector need an image tensor and nothing else."""


@dataclass(frozen=True)
class Subject:
    """A model to time, and what it is."""

    model: Any
    geometry: Geometry
    images: VisionGeometry | None
    """What the vision tower takes; None when tower and projector are left out of the timing."""
    note: str = ""
    """What a reader of the timings must know."""


@dataclass(frozen=True)
class BenchPrompt:
    """A batch of prompts: text, vision tokens, text."""

    ids: Tensor
    """Long ``[rows, tokens]`` with the model's placeholder at vision tokens."""
    vision: Tensor
    """Boolean ``[rows, tokens]``."""
    pixels: Tensor | None
    """``[rows * images, 3, height, width]``, None for a subject without timed tower."""
    features: Tensor | None
    """Random vision tokens ``[rows, vision, width]`` for such a subject."""

    @property
    def mask(self) -> Tensor:
        """The attention mask: ones, long ``[rows, tokens]``."""
        return torch.ones_like(self.ids)

    def embed(self, model: Any) -> Tensor:
        """Run vision tower, projector and token embedding; ``[rows, tokens, width]``."""
        rows, count = self.vision.shape[0], int(self.vision[0].sum())
        first = int(self.vision[0].int().argmax())
        text = model.get_input_embeddings()(self.ids)
        features = self.features
        if features is None:
            found = model.get_image_features(pixel_values=self.pixels, return_dict=True).pooler_output
            features = torch.cat(list(found)).view(rows, -1, text.shape[-1])[:, :count]
        return torch.cat([text[:, :first], features.to(text.dtype), text[:, first + count :]], dim=1)


def llava_config(geometry: Geometry) -> LlavaConfig:
    """Return the config of a LLaVA of a geometry's sizes, with a stub of a tower where the geometry's cannot be had.

    The decoder is a Llama, whatever the original is called. The last token id is the image placeholder.

    Parameters
    ----------
    geometry
        Sizes.

    Raises
    ------
    ValueError
        If no Llama has these sizes.
    """
    if not geometry.gated:
        raise ValueError(
            f"geometry {geometry.name!r} cannot be built: its FFN has two matrices, a Llama's has three. Take --model "
            "with a checkpoint."
        )
    if any(geometry.windows):
        raise ValueError(
            f"geometry {geometry.name!r} cannot be built: it has sliding windows, a Llama has none. Take --model with "
            "a checkpoint."
        )
    text = LlamaConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.ffn,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        max_position_embeddings=1 << 17,
        eos_token_id=None,
    )
    tower = _tower_config(geometry)
    if tower is None:  # a Llava must have one, and methods that read it name layers of it
        tower = CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=24, num_attention_heads=1, image_size=2, patch_size=1
        )
    return LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=geometry.vocab - 1,
        vision_feature_layer=-2 if isinstance(tower, CLIPVisionConfig) else -1,  # as published LLaVAs do
        vision_feature_select_strategy="full" if _takes_all(geometry.vision) else "default",
    )


def random_subject(geometry: Geometry, dtype: torch.dtype, device: torch.device, seed: int) -> Subject:
    """Make a LLaVA model of a geometry's sizes with random weights.

    Parameters
    ----------
    geometry
        Sizes. The decoder is a Llama, whatever the original is called: matrix sizes are what takes the time.
    dtype, device
        Of the weights; they are made on the device.
    seed
        Of the weights.

    Raises
    ------
    ValueError
        If no Llama has these sizes.
    """
    config = llava_config(geometry)
    with no_init_weights(), torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    timed = _tower_config(geometry) is not None
    note = "" if timed else _untimed(geometry)
    return Subject(model.eval(), geometry, geometry.vision if timed else None, note)


def load_subject(pretrained: str, dtype: torch.dtype, device: torch.device) -> Subject:
    """Load a checkpoint.

    Parameters
    ----------
    pretrained
        Folder or Hub id; ``shapes`` is the embedded one.
    dtype, device
        Of the weights.

    Raises
    ------
    ValueError, OSError
        If it cannot be loaded, or its costs have no closed form.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint(pretrained), dtype=dtype)
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"{pretrained} is quantized, and what is timed here is unquantized weights: take the checkpoint that it "
            "was made of, or the seconds of an evaluation."
        )
    model = model.to(device).eval()
    geometry = Geometry.from_config(model.config, pretrained)
    timed = model.config.model_type in _TIMED_TOWERS and geometry.vision is not None
    return Subject(model, geometry, geometry.vision if timed else None, "" if timed else _untimed(geometry))


def make_prompt(subject: Subject, *, rows: int, text: int, vision: int, seed: int) -> BenchPrompt:
    """Make random prompts of one length.

    Parameters
    ----------
    subject
        Whose prompts.
    rows
        Batch size; every row has other ids and pixels.
    text, vision
        Number of tokens. The first half of the text, at most 35 tokens, stands before the vision tokens.
    seed
        Of ids and pixels.

    Raises
    ------
    ValueError
        With fewer than two text tokens or no vision token.
    """
    if text < 2 or vision < 1:
        raise ValueError(f"{text} text and {vision} vision tokens: a prompt needs 2 or more and 1 or more.")
    model, device = subject.model, subject.model.device
    before = min(_SYSTEM, text // 2)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, subject.geometry.vocab - 1, (rows, text), generator=generator)
    placeholder = _placeholder(model.config)
    words[words == placeholder] = 0
    ids = torch.cat([words[:, :before], torch.full((rows, vision), placeholder), words[:, before:]], dim=1)
    is_vision = torch.zeros_like(ids, dtype=torch.bool)
    is_vision[:, before : before + vision] = True
    pixels = features = None
    if subject.images is None:
        features = torch.randn(rows, vision, subject.geometry.hidden, generator=generator)
        features = features.to(device, model.dtype)
    else:
        images = math.ceil(vision / subject.images.features)
        if vision == subject.geometry.vision_tokens:
            images = max(images, subject.images.images)
        side = _image_side(subject.images)
        pixels = torch.randn(rows * images, 3, side, side, generator=generator).to(device, model.dtype)
    return BenchPrompt(ids.to(device), is_vision.to(device), pixels, features)


def _placeholder(config: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0  # known to the method by its vision mask only


def _image_side(tower: VisionGeometry) -> int:
    return math.isqrt(tower.patches) * math.isqrt(tower.patch_dim // 3)


def _tower_config(geometry: Geometry) -> Any:
    """Return the config of a CLIP (with a class token) or SigLIP tower of these sizes, None if there is none."""
    tower = geometry.vision
    if tower is None or tower.gated or tower.features not in (tower.patches, tower.tokens):
        return None
    if geometry.projector != ((tower.hidden, geometry.hidden), (geometry.hidden, geometry.hidden)):
        return None
    side = math.isqrt(tower.patch_dim // 3)
    sizes: dict[str, Any] = {
        "hidden_size": tower.hidden,
        "intermediate_size": tower.ffn,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": math.isqrt(tower.patches) * side,
        "patch_size": side,
    }
    if tower.tokens == tower.patches + 1:
        return CLIPVisionConfig(**sizes)
    return SiglipVisionConfig(**sizes, vision_use_head=False) if tower.tokens == tower.patches else None


def _takes_all(tower: VisionGeometry | None) -> bool:
    """Whether all tokens of the tower become features, a class token included."""
    return tower is not None and tower.features == tower.tokens


def _untimed(geometry: Geometry) -> str:
    return (
        f"The vision tower and projector of {geometry.name} are not timed: vision tokens are random features, and the "
        "time to the first token begins at the decoder."
    )
