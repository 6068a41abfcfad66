"""What a method would do to a prompt, by the real engine on a tiny model with as many layers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VideoLlavaConfig,
)
from transformers.masking_utils import sdpa_mask

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Reads
from vtw_eval.methods import Composite, Method
from vtw_eval.methods.composite import parts_of

SYSTEM = 35
"""Tokens before the image in LLaVA-1.5's template: BOS, system prompt, "USER: "."""

VOCAB = 64
"""Words of the tiny model."""

IMAGE = 1
"""Its placeholder."""

_TEXT, _WIDTH = 2, 8
_TOWER_LAYERS = 24
"""Of LLaVA-1.5's CLIP, so that layers of it that a method names are there."""

_ATTENTION = "vtw_eval_values"


def _values(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Stand for attention, in models of one head: each token gets its own values.

    What tokens become does not matter to how many go, and all products of queries with keys take most of the time.
    """
    return value[:, :, -query.shape[2] :].transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _values)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class DryRun:
    """What a method did."""

    method: Method
    """The method with its defaults filled in."""
    tokens: Tensor
    """Tokens that entered each layer, float64 ``[draws, layers]``: equally likely outcomes, one for most methods."""
    vision: Tensor
    """Vision tokens among them."""
    updated: Tensor
    """Those that the layers update, all but vision tokens that a layer leaves as they are."""
    nominal: bool = False
    """Whether the numbers are those that the method is asked for; what it keeps of a video depends on the video."""


def dry_run(
    method: Method,
    num_layers: int,
    *,
    text: float,
    vision: float,
    vision_first_at: int = SYSTEM,
    name: str = "",
    frames: int | None = None,
) -> DryRun:
    """Install a method on a tiny random LLaVA with ``num_layers`` decoder layers, and trace a prefill.

    So every method of the registry is costed by what it really does, without the weights of the model in question.
    *How many* tokens go does not depend on weights; a method for which it does (:attr:`Method.adaptive`) is refused,
    unless a video is shown of which it is asked to keep a number (:meth:`Method.nominal`).
    Numbers of tokens that are no integers (means over a benchmark) are interpolated linearly between the integers
    around them. ``random_k`` gives a row for each k that it can draw; how many vision tokens ``rand`` leaves is that of
    one draw (how many tokens it leaves in all is no matter of chance).

    Parameters
    ----------
    method
        The method; parameters that depend on the model may be open.
    num_layers
        Decoder layers.
    text, vision
        Text and vision tokens of the prompt.
    vision_first_at
        Text tokens before the image; fewer if the prompt has no more.
    name
        Name of the checkpoint, for defaults that depend on it (VTW's k).
    frames
        The vision tokens are those of a video of so many frames, as many of each; None for one image.

    Raises
    ------
    ValueError
        For impossible token counts or hyper-parameters, for ``k=search`` and for a method such as DyVTE.
    """
    for what, number, least in (("text", text, 1), ("vision", vision, 0)):
        if not (math.isfinite(number) and number >= least):
            raise ValueError(f"{what}={number} is out of range: a prompt has {least} or more {what} tokens.")
    check_frames(vision, frames)
    run = method if frames is None else nominal(method)
    check_fixed(run)
    model = tiny_model(num_layers, name) if frames is None else tiny_video_model(num_layers, name)
    anatomy = find_anatomy(model)
    # A method that opens another checkpoint, such as a text tower for this one, keeps as many of a tiny model without.
    bound, draws = method.stand_in(anatomy).bind(anatomy), run.stand_in(anatomy).bind(anatomy).draws()
    tokens = torch.zeros(len(draws), num_layers, dtype=torch.float64)
    seen, updated = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for (t, text_share), (v, vision_share) in itertools.product(_around(text), _around(vision)):
        ids = _prompt(t, v, vision_first_at)
        for i, draw in enumerate(draws):
            with torch.no_grad(), draw(model) as trace:
                model(input_ids=ids, **picture(draw, v, frames), use_cache=False, logits_to_keep=1)
            tokens[i] += text_share * vision_share * trace.tokens_per_layer[0]
            seen[i] += text_share * vision_share * trace.vision_per_layer[0]
            updated[i] += text_share * vision_share * trace.updated_per_layer[0]
    return DryRun(bound, tokens, seen, updated, nominal=run != method)


def check_frames(vision: float, frames: int | None) -> None:
    """Raise ``ValueError`` unless so many vision tokens can be those of so many frames, as many of each."""
    if frames is None:
        return
    if frames < 1:
        raise ValueError(f"frames={frames} is out of range: a video has 1 or more.")
    if vision % frames or vision / frames < 2:
        raise ValueError(
            f"{vision:g} vision tokens are not those of {frames} frames: give a multiple of it, 2 or more tokens for "
            "each frame."
        )


def nominal(method: Method) -> Method:
    """Return a method of which is known how many tokens of a video go, asked for the same as this one; often itself."""
    if isinstance(method, Composite):
        return replace(method, parts=tuple(part.nominal() for part in method.parts))
    return method.nominal()


def check_fixed(method: Method) -> None:
    """Refuse a method for which it depends on weights how many tokens go.

    Raises
    ------
    ValueError
        For such a one, and for ``k=search``.
    """
    for part in parts_of(method):
        if part.adaptive:
            raise ValueError(part.adaptive)
        if part.search is not None:
            raise ValueError(f"{part}: k=search needs a model and samples; give the k that vtw-eval search-k found.")


def tokens_per_layer(
    method: Method, num_layers: int, *, text: float, vision: float, vision_first_at: int = SYSTEM, name: str = ""
) -> Tensor:
    """Tokens that enter each layer under a method, mean over draws, float64 ``[layers]``; see :func:`dry_run`."""
    run = dry_run(method, num_layers, text=text, vision=vision, vision_first_at=vision_first_at, name=name)
    return run.tokens.mean(dim=0)


def _around(number: float) -> list[tuple[int, float]]:
    """Return the integers around a number with the weights of linear interpolation."""
    below = math.floor(number)
    above = number - below
    return [(below, 1.0)] if above == 0 else [(below, 1 - above), (below + 1, above)]


def tiny_model(num_layers: int, name: str = "") -> PreTrainedModel:
    """Return a random LLaVA of :data:`VOCAB` words with ``num_layers`` decoder layers.

    Parameters
    ----------
    num_layers
        Decoder layers.
    name
        Of the checkpoint that it stands for.
    """
    config = LlavaConfig(**_sizes(num_layers), image_token_index=IMAGE)
    model = _random(config, name)
    model.model.vision_tower.embeddings.forward = _embedded
    return model


def tiny_video_model(num_layers: int, name: str = "") -> PreTrainedModel:
    """Return a random Video-LLaVA of the same sizes as :func:`tiny_model`; of each frame the CLS token is one token."""
    config = VideoLlavaConfig(**_sizes(num_layers), image_token_index=IMAGE - 1, video_token_index=IMAGE)
    model = _random(config, name)
    model.model.video_tower.embeddings.forward = _embedded
    return model


def _sizes(num_layers: int) -> dict[str, Any]:
    size = {"hidden_size": _WIDTH, "intermediate_size": _WIDTH, "num_attention_heads": 1}
    return {
        "text_config": {"model_type": "llama", "num_hidden_layers": num_layers, "vocab_size": VOCAB, **size},
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": _TOWER_LAYERS, **size},
    }


def _random(config: PreTrainedConfig, name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=_ATTENTION)
    model.config._name_or_path = name
    return model.eval()


def _embedded(pixel_values: Tensor, **_: Any) -> Tensor:
    """Stand for the embeddings of a tower, which get what they would give; frames are of one channel."""
    return pixel_values if pixel_values.ndim == 3 else pixel_values[:, 0]


def picture(method: Method, vision: int, frames: int | None = None) -> dict[str, Tensor]:
    """Return what :func:`tiny_model` needs beside the ids of a prompt with so many vision tokens.

    Only methods that read the vision tower need a picture, of as many random patches and a CLS token; or a video for
    :func:`tiny_video_model`, each frame of as many, the CLS token among them.
    """
    if not vision or Reads.TOWER not in method.reads:
        return {}
    generator = torch.Generator().manual_seed(0)
    if frames is None:
        return {"pixel_values": torch.randn(1, vision + 1, _WIDTH, generator=generator)}
    return {"pixel_values_videos": torch.randn(1, frames, 1, vision // frames, _WIDTH, generator=generator)}


def _prompt(text: int, vision: int, first_at: int) -> Tensor:
    ids = torch.randint(_TEXT, VOCAB, (1, text + vision), generator=torch.Generator().manual_seed(0))
    first = min(first_at, text - 1)
    ids[:, first : first + vision] = IMAGE
    return ids
