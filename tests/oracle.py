"""The masking oracle: nothing is ever removed, but from layer k on no query may see a vision key.

Written independently of the engine: no cache, one forward over prompt and generated tokens, masks edited in place of
tokens moved. Also a reference FlashAttention for the CPU, with that library's conventions (2-D validity mask, causal
mask aligned at the bottom right, sliding window counted in the keys it gets).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, flash_attention_mask

from vtw_eval.anatomy import find_anatomy

FLASH = "reference_fa"
SHORT_MIN = torch.finfo(torch.float32).min


def reference_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as FlashAttention computes it; refuses what that would take for packed sequences."""
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    if position_ids is not None and rows == 1 and position_ids.shape[-1] > 1 and attention_mask is None:
        assert (position_ids.diff(dim=-1) == 1).all(), "FlashAttention would split this row at its gaps"
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    q = torch.arange(queries)[:, None] + keys - queries
    k = torch.arange(keys)[None]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    allowed = (k <= q) if causal else torch.ones(queries, keys, dtype=torch.bool)
    if sliding_window is not None:
        allowed = allowed & (k > q - sliding_window)
    allowed = allowed.expand(rows, 1, -1, -1)
    if attention_mask is not None:
        assert attention_mask.ndim == 2, "FlashAttention takes 2-D masks"
        assert attention_mask.shape == (rows, keys)
        allowed = allowed & attention_mask.to(torch.bool)[:, None, None, :]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Register the reference FlashAttention, and eager masks that survive float64.

    Upstream casts finfo(float64).min to float32 in the softmax, so the rows of left padding become NaN in unmodified
    models; a float32 minimum keeps them finite.
    """
    AttentionInterface.register(FLASH, reference_flash)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)

    def short_eager_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
        mask = eager_mask(*args, dtype=torch.float32, **kwargs)
        return None if mask is None else mask.to(dtype)

    AttentionMaskInterface.register("eager", short_eager_mask)


@contextmanager
def masked(model: nn.Module, vision: Tensor, valid: Tensor, k: int, causal_only: bool) -> Iterator[None]:
    """Hide vision keys from layer k on.

    Parameters
    ----------
    model
        The model, on eager or SDPA attention.
    vision, valid
        Boolean ``[rows, tokens]`` of the whole sequence.
    k
        First layer that must not see them.
    causal_only
        Replace the model's masks by causal, padding and sliding-window masks: all that FlashAttention can express.
    """
    anatomy = find_anatomy(model)
    tokens = torch.arange(vision.shape[1])
    causal = tokens[None, :] <= tokens[:, None]

    def edit(i: int, layer: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        mask = kwargs["attention_mask"]
        if causal_only:
            window = getattr(layer.self_attn, "sliding_window", None)
            near = tokens[None, :] > tokens[:, None] - window if window else causal
            mask = (causal & near & valid[:, None, :])[:, None]
        elif i < k:
            return kwargs
        elif mask is None:
            mask = (causal & valid[:, None, :])[:, None]
        if i >= k:
            hidden = vision[:, None, None, :] & ~torch.eye(len(tokens), dtype=torch.bool)
            additive = mask.dtype != torch.bool
            mask = mask.masked_fill(hidden, SHORT_MIN) if additive else mask & ~hidden
        return {**kwargs, "attention_mask": mask}

    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: (args, edit(i, module, kwargs)), with_kwargs=True
        )
        for i, layer in enumerate(anatomy.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def extend(inputs: dict[str, Tensor], generated: Tensor) -> dict[str, Tensor]:
    """Append generated tokens to the inputs of a prompt."""
    rows, new = generated.shape
    longer = {"input_ids": generated, "attention_mask": torch.ones_like(generated)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        longer[name] = torch.zeros_like(generated)
    return {n: torch.cat([v, longer[n].to(v)], dim=1) if n in longer else v for n, v in inputs.items()}


def vision_positions(model: nn.Module, ids: Tensor) -> Tensor:
    """Boolean ``[rows, tokens]``, True where an id is a placeholder that the config names."""
    config = model.config
    names = ("image_token_id", "video_token_id")
    return torch.isin(ids, torch.tensor([getattr(config, n) for n in names if getattr(config, n, None) is not None]))


@torch.no_grad()
def oracle_logits(model: nn.Module, inputs: dict[str, Tensor], k: int, *, causal_only: bool = False) -> Tensor:
    """Logits ``[rows, tokens, vocabulary]`` of a whole sequence, withdrawal at layer k by masking."""
    vision = vision_positions(model, inputs["input_ids"])
    valid = inputs["attention_mask"].bool()
    with masked(model, vision & valid, valid, k, causal_only):
        return model(**inputs, use_cache=False).logits
