"""The masking oracle: nothing is ever removed, but no query of a layer may see a key that a method removed.

Written independently of the engine: no cache, one forward over prompt and generated tokens, masks edited in place of
tokens moved. No mask hides a token from a recurrence or a convolution: such a layer is run by itself on the tokens that
it may see, each row alone and without padding, and what it gives is put back to their places.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Trace

Kept = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer, the vision tokens and the tokens that are not padding: which tokens the layer may see."""

Frozen = Callable[[int, Tensor], Tensor]
"""From a layer and the vision tokens: which tokens leave the layer as they came, boolean like these."""


def _least(dtype: torch.dtype) -> float:
    """Return what hides a key in an additive mask: upstream casts masks of float64 to float32 in the softmax."""
    return max(torch.finfo(torch.float32).min, torch.finfo(dtype).min)


def withdrawn(k: int) -> Kept:
    """Layers from k on see text only, as in VTW."""
    return lambda layer, vision, valid: valid if layer < k else valid & ~vision


def traced(trace: Trace) -> Kept:
    """Whatever a trace says, and all tokens generated since."""

    def kept(layer: int, vision: Tensor, valid: Tensor) -> Tensor:
        prompt = trace.kept(layer)
        return torch.cat([prompt, valid[:, prompt.shape[1] :]], dim=1)

    return kept


def nothing_frozen(layer: int, vision: Tensor) -> Tensor:
    """Every layer updates all of its tokens."""
    return torch.zeros_like(vision)


def traced_frozen(trace: Trace) -> Frozen:
    """Vision tokens of the prompt, in the layers that a trace names."""

    def frozen(layer: int, vision: Tensor) -> Tensor:
        prompt = trace.reduction.prompt.vision if trace.reduction is not None else vision
        held = torch.nn.functional.pad(prompt, (0, vision.shape[1] - prompt.shape[1]))
        return held if layer in trace.frozen else nothing_frozen(layer, vision)

    return frozen


@contextmanager
def masked(
    model: nn.Module,
    kept: Kept | int,
    *,
    flash: bool = False,
    rearrange: bool = False,
    frozen: Frozen = nothing_frozen,
) -> Iterator[None]:
    """Hide the keys of tokens that a method removes, in every forward of a model that runs without a cache.

    Parameters
    ----------
    model
        The model, on eager or SDPA attention.
    kept
        Which tokens a layer may see; a number k stands for ``withdrawn(k)``.
    flash
        Replace the model's masks by what FlashAttention can express: causal, padding and sliding-window masks.
    rearrange
        In layers with removed tokens, number the others without gaps.
    frozen
        Which tokens a layer leaves as they are: it runs on all, and what entered it is put back.
    """
    anatomy = find_anatomy(model)
    kept_in = withdrawn(kept) if isinstance(kept, int) else kept
    seen: dict[str, Any] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        assert not any(isinstance(value, Cache) for value in kwargs.values()), "the oracle runs without a cache"
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

    def on_the_rest(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        hidden, positions = args[0], kwargs.get("position_embeddings") or ()
        alone = {name: value for name, value in kwargs.items() if not isinstance(value, Tensor)}
        keep = kept_in(i, seen["vision"], seen["valid"])
        result = hidden.clone()
        for row, own in enumerate(keep):
            parts = tuple(part[..., row % part.shape[-3], own, :].unsqueeze(-3) for part in positions) or None
            result[row, own] = layer.forward(hidden[row, own][None], **{**alone, "position_embeddings": parts})[0]
        return result

    def edit(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = list(inspect.signature(layer.forward).parameters)
        kwargs = {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
        mask, vision, valid = kwargs["attention_mask"], seen["vision"], seen["valid"]
        tokens = torch.arange(vision.shape[1])
        causal = tokens[None, :] <= tokens[:, None]
        if flash:
            attention: Any = layer.self_attn
            window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
            near = tokens[None, :] > tokens[:, None] - window if window else causal
            dtype = torch.bool if mask is None else mask.dtype
            additive = dtype != torch.bool
            mask = (causal & near & valid[:, None, :])[:, None]
            mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, _least(dtype)) if additive else mask
        removed = valid & ~kept_in(i, vision, valid)
        if not removed.any():
            return args[:1], {**kwargs, "attention_mask": mask}
        if mask is None:
            mask = (causal & valid[:, None, :])[:, None]
        hidden = removed[:, None, None, :] & ~torch.eye(len(tokens), dtype=torch.bool)
        mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, _least(mask.dtype))
        if rearrange:
            kwargs = {**kwargs, "position_embeddings": seen["embeddings"][i]}
        return args[:1], {**kwargs, "attention_mask": mask}

    def put_back(i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        held = frozen(i, seen["vision"])[:, :, None]
        if not held.any():
            return output
        before = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return torch.where(held, before, output[0]), *output[1:]
        return torch.where(held, before, output)

    handles = [model.register_forward_pre_hook(note, with_kwargs=True)]
    if rearrange:
        assert anatomy.rotary is not None
        handles.append(anatomy.rotary.register_forward_hook(rotary, with_kwargs=True))
    for i, layer in enumerate(anatomy.layers):
        if anatomy.kind(i) in ("linear_attention", "conv"):
            handles.append(layer.register_forward_hook(functools.partial(on_the_rest, i), with_kwargs=True))
        else:
            handles.append(layer.register_forward_pre_hook(functools.partial(edit, i), with_kwargs=True))
        handles.append(layer.register_forward_hook(functools.partial(put_back, i), with_kwargs=True))
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


@torch.no_grad()
def oracle_logits(
    model: nn.Module,
    inputs: dict[str, Tensor],
    kept: Kept | int,
    *,
    flash: bool = False,
    rearrange: bool = False,
    frozen: Frozen = nothing_frozen,
) -> Tensor:
    """Logits ``[rows, tokens, vocabulary]`` of a whole sequence, tokens removed by masking."""
    with masked(model, kept, flash=flash, rearrange=rearrange, frozen=frozen):
        return model(**inputs, use_cache=False).logits
