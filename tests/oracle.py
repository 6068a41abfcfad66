"""The masking oracle: nothing is ever removed, but from layer k on no query may see a vision key.

Written independently of the engine: no cache, one forward over prompt and generated tokens, masks edited in place of
tokens moved. Also a reference FlashAttention for the CPU, with that library's conventions (2-D validity mask, causal
mask aligned at the bottom right, sliding window counted in the keys it gets).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, flash_attention_mask

from tests.families import make_inputs, make_model
from vtw_eval import VTW
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Trace

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


Kept = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer, the vision tokens and the tokens that are not padding: which tokens the layer may see."""


def withdrawn(k: int) -> Kept:
    """VTW: layers from k on see text only."""
    return lambda layer, vision, valid: valid if layer < k else valid & ~vision


def traced(trace: Trace) -> Kept:
    """What a trace says, and all tokens generated since."""

    def kept(layer: int, vision: Tensor, valid: Tensor) -> Tensor:
        prompt = trace.kept(layer)
        return torch.cat([prompt, valid[:, prompt.shape[1] :]], dim=1)

    return kept


@contextmanager
def masked(
    model: nn.Module, kept: Kept | int, *, flash_prompt: int | None = None, rearrange: bool = False
) -> Iterator[None]:
    """Hide the keys of tokens that a method removes, in every forward of a model that runs without a cache.

    Parameters
    ----------
    model
        The model, on eager or SDPA attention.
    kept
        Which tokens a layer may see; a number k stands for ``withdrawn(k)``.
    flash_prompt
        If given, replace the model's masks by what FlashAttention can express: causal, padding and sliding-window
        masks, or all keys for a prompt of this length where the attention module is not causal.
    rearrange
        In layers with removed tokens, number the others without gaps.
    """
    anatomy = find_anatomy(model)
    kept_in = withdrawn(kept) if isinstance(kept, int) else kept
    seen: dict[str, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        assert kwargs.get("past_key_values") is None, "the oracle runs without a cache"
        ids = kwargs["input_ids"]
        seen["valid"] = kwargs.get("attention_mask", torch.ones_like(ids)).bool()
        seen["vision"] = vision_positions(model, ids) & seen["valid"]

    def rotary(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        positions = kwargs.get("position_ids", args[-1])
        positions = positions.expand(*positions.shape[:-2], *seen["valid"].shape)
        seen["embeddings"] = {}
        for i in range(anatomy.num_layers):
            keep = kept_in(i, seen["vision"], seen["valid"])
            start = positions.gather(-1, keep.to(torch.uint8).argmax(1)[:, None].expand(*positions.shape[:-1], 1))
            new = torch.where(keep, start + keep.cumsum(1) - 1, positions)
            seen["embeddings"][i] = module.forward(args[0], new)

    def edit(i: int, layer: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        mask, vision, valid = kwargs["attention_mask"], seen["vision"], seen["valid"]
        tokens = torch.arange(vision.shape[1])
        causal = tokens[None, :] <= tokens[:, None]
        if flash_prompt is not None:
            attention = layer.self_attn
            if not attention.is_causal:
                causal = causal | (tokens[None, :] < flash_prompt)
            window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
            near = tokens[None, :] > tokens[:, None] - window if window else causal
            additive = mask is not None and mask.dtype != torch.bool
            mask = (causal & near & valid[:, None, :])[:, None]
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, SHORT_MIN) if additive else mask
        removed = valid & ~kept_in(i, vision, valid)
        if not removed.any():
            return {**kwargs, "attention_mask": mask}
        if mask is None:
            mask = (causal & valid[:, None, :])[:, None]
        hidden = removed[:, None, None, :] & ~torch.eye(len(tokens), dtype=torch.bool)
        mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, SHORT_MIN)
        if rearrange:
            kwargs = {**kwargs, "position_embeddings": seen["embeddings"][i]}
        return {**kwargs, "attention_mask": mask}

    handles = [model.register_forward_pre_hook(note, with_kwargs=True)]
    if rearrange:
        assert anatomy.rotary is not None
        handles.append(anatomy.rotary.register_forward_hook(rotary, with_kwargs=True))
    for i, layer in enumerate(anatomy.layers):
        hook = lambda module, args, kwargs, i=i: (args, edit(i, module, kwargs))  # noqa: E731
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def extend(name: str, inputs: dict[str, Tensor], generated: Tensor) -> dict[str, Tensor]:
    """Append generated tokens to the inputs of a prompt."""
    longer = {"input_ids": generated, "attention_mask": torch.ones_like(generated)}
    longer["mm_token_type_ids"] = torch.zeros_like(generated)
    # 1 is an image token for Gemma 3, a token after the bidirectional prefix for PaliGemma.
    longer["token_type_ids"] = torch.full_like(generated, int(name == "paligemma"))
    return {n: torch.cat([v, longer[n].to(v)], dim=1) if n in longer else v for n, v in inputs.items()}


def vision_positions(model: nn.Module, ids: Tensor) -> Tensor:
    """Boolean ``[rows, tokens]``, True where an id is a placeholder that the config names."""
    config = model.config
    names = ("image_token_id", "video_token_id")
    return torch.isin(ids, torch.tensor([getattr(config, n) for n in names if getattr(config, n, None) is not None]))


KINDS: dict[str, list[list[str]]] = {
    "single": [["t3", "i", "t4"]],
    "batch": [["t3", "i", "t4"], ["t5", "I", "t9"]],
    "multi-image": [["t3", "i", "t2", "I", "t4"], ["i", "i", "t6"]],
    "mixed": [["t3", "i", "t4"], ["t7"], ["t1", "I", "i", "t3"]],
    "video": [["t3", "v", "t4"], ["t2", "i", "t6"], ["t5"]],
}
"""Prompts of each kind, as :func:`tests.families.make_inputs` reads them."""

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
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            layer.self_attn.sliding_window = window


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
    expected = oracle_logits(oracle, longer, k, flash_prompt=length if attention == FLASH else None)
    decoded = torch.stack(generated.logits, dim=1)
    assert torch.isfinite(prefill).all()
    assert torch.isfinite(decoded).all()
    return Difference(
        prefill=float((prefill - expected[:, :length])[text].abs().max()),
        decode=float((decoded - expected[:, length - 1 : -1]).abs().max()),
    )


@torch.no_grad()
def oracle_logits(
    model: nn.Module,
    inputs: dict[str, Tensor],
    kept: Kept | int,
    *,
    flash_prompt: int | None = None,
    rearrange: bool = False,
) -> Tensor:
    """Logits ``[rows, tokens, vocabulary]`` of a whole sequence, tokens removed by masking."""
    with masked(model, kept, flash_prompt=flash_prompt, rearrange=rearrange):
        return model(**inputs, use_cache=False).logits
