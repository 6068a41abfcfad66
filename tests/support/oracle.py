"""VTW against the masking oracle of :mod:`vtw_eval.verify.oracle`, on tiny models of every family in float64.

Also a reference FlashAttention for the CPU, with that library's conventions (2-D validity mask, causal mask aligned at
the bottom right, sliding window counted in the keys it gets).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, flash_attention_mask

from tests.support.families import FAMILIES, make_inputs, make_model
from vtw_eval import VTW
from vtw_eval.anatomy import find_anatomy
from vtw_eval.families import BIDIRECTIONAL
from vtw_eval.verify.oracle import extend, oracle_logits, vision_positions

FLASH = "reference_fa"
CASES = [
    (name, attention)
    for name in FAMILIES
    for attention in ("eager", "sdpa", FLASH)
    if attention != FLASH or not name.startswith(tuple(BIDIRECTIONAL))
]
"""Families with the kinds of attention that each can have."""


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

    @functools.wraps(eager_mask)
    def short_eager_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
        mask = eager_mask(*args, dtype=torch.float32 if dtype == torch.float64 else dtype, **kwargs)
        return None if mask is None else mask.to(dtype)

    AttentionMaskInterface.register("eager", short_eager_mask)


KINDS: dict[str, list[list[str]]] = {
    "single": [["t3", "i", "t4"]],
    "batch": [["t3", "i", "t4"], ["t5", "I", "t9"]],
    "multi-image": [["t3", "i", "t2", "I", "t4"], ["i", "i", "t6"]],
    "mixed": [["t3", "i", "t4"], ["t7"], ["t1", "I", "i", "t3"]],
    "video": [["t3", "v", "t4"], ["t2", "i", "t6"], ["t5"]],
}
"""Prompts of each kind, as :func:`tests.support.families.make_inputs` reads them."""

GLM_VIDEO = [["t3", "v", "t4"], ["t2", "v", "t1", "v", "t6"], ["t5"]]
"""Upstream refuses images beside videos in this family: they share a placeholder."""

NEW_TOKENS = 5


@functools.lru_cache(maxsize=2)  # one pair at a time: models are made once for all kinds
def models(name: str, attention: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the model under test and the oracle's model: the same weights."""
    register_attention()
    mine = make_model(name, attn=attention)
    return mine, make_model(name, attn="eager" if attention == "eager" else "sdpa")


def widen_windows(model: PreTrainedModel, window: int) -> None:
    """Set the sliding window of the layers that have one."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = window
    for layer in find_anatomy(model).layers:
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "sliding_window", None) is not None:
            attention.sliding_window = window


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences of logits, engine minus oracle."""

    prefill: float
    """Over all text tokens of the prompts."""
    decode: float
    """Over the generated tokens, KV cache on."""


@torch.no_grad()
def compare(name: str, attention: str, kind: str, k: int) -> Difference:
    """Compare VTW at layer k with the oracle: one prefill, then greedy generation with cache."""
    mine, oracle = models(name, attention)
    inputs = make_inputs(name, mine, GLM_VIDEO if (name, kind) == ("glm4v", "video") else KINDS[kind])
    length = inputs["input_ids"].shape[1]
    if attention == FLASH:  # prompts within the sliding window, if there is one; generation leaves it
        for model in (mine, oracle):
            widen_windows(model, length + 2)
    with VTW(k=k)(mine):
        prefill = mine(**inputs).logits
        generated = mine.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    text = inputs["attention_mask"].bool() & ~vision_positions(mine, inputs["input_ids"])
    longer = extend(name, inputs, generated.sequences[:, length:])
    expected = oracle_logits(oracle, longer, k, flash=attention == FLASH)
    decoded = torch.stack(generated.logits, dim=1)
    assert torch.isfinite(prefill).all()
    assert torch.isfinite(decoded).all()
    return Difference(
        prefill=float((prefill - expected[:, :length])[text].abs().max()),
        decode=float((decoded - expected[:, length - 1 : -1]).abs().max()),
    )
