"""Attention masks of a layer with removed tokens, gathered from the mask that the model made for all tokens."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    eager_mask,
    flash_attention_mask,
    flex_attention_mask,
    sdpa_mask,
)

from vtw_eval.anatomy import Anatomy, UnsupportedModelError
from vtw_eval.engine.calls import changed
from vtw_eval.engine.layout import Layout, pick
from vtw_eval.families import BIDIRECTIONAL

MaskKind = Literal["boolean", "additive", "validity"]
"""4-D boolean (SDPA), 4-D additive (eager), 2-D validity (FlashAttention)."""


def mask_kind(implementation: str | None) -> MaskKind:
    """Return the kind of mask that an attention implementation takes, by its registered mask function.

    Raises
    ------
    ValueError
        For flex attention, whose block masks cannot be cut, and for an implementation whose masks are unknown.
    """
    function: Any = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation) if implementation else None
    function = None if function is None else inspect.unwrap(function)
    if function is flex_attention_mask:
        raise ValueError(
            "flex_attention masks cannot be cut: load the model with attn_implementation='sdpa', 'eager' or "
            "'flash_attention_2'."
        )
    kinds: dict[Any, MaskKind] = {
        sdpa_mask: "boolean",
        eager_mask: "additive",
        flash_attention_mask: "validity",
    }
    if function not in kinds:
        raise ValueError(
            f"the masks of attn_implementation={implementation!r} are unknown: load the model with 'sdpa', 'eager' or "
            "'flash_attention_2'."
        )
    return kinds[function]


def check_bidirectional(anatomy: Anatomy) -> None:
    """Raise ``UnsupportedModelError`` for FlashAttention on a model whose image tokens see each other.

    Its 2-D masks cannot say that, so even the unchanged model is another one. transformers loads such a model until
    5.23 and refuses since.
    """
    implementation = anatomy.attention
    flash = implementation and ALL_MASK_ATTENTION_FUNCTIONS.get(implementation) is flash_attention_mask
    if flash and anatomy.model_type in BIDIRECTIONAL:
        raise UnsupportedModelError(
            f"{anatomy.model_type} under {implementation} loses the bidirectional mask of its image tokens, also "
            "without a method: load the model with attn_implementation='sdpa'."
        )


def check_width(mask: Any, past: int, queries: int) -> None:
    """Check that the attention mask of a pass is as wide as its sequence.

    Parameters
    ----------
    mask
        None, 2-D, 4-D, or one for each layer type.
    past
        Length of the sequence before the pass, removed tokens counted.
    queries
        Tokens of the pass.

    Raises
    ------
    UpstreamChangedError
        If it is not: then the tokens before this pass are unknown to the engine, or others are.
    """
    for each in mask.values() if isinstance(mask, dict) else (mask,):
        if isinstance(each, Tensor) and each.ndim == 2 and each.shape[1] != past + queries:
            raise changed(
                f"the attention mask has {each.shape[1]} columns in a pass of {queries} tokens after {past} cached ones"
            )
        if isinstance(each, Tensor) and each.ndim == 4 and each.shape[-2] not in (1, queries):
            raise changed(f"the attention mask has {each.shape[-2]} rows in a pass of {queries} tokens")


def check_mask(mask: Any, kind: MaskKind, rows: int, queries: int) -> None:
    """Check that a layer's mask is one that the engine can cut.

    Parameters
    ----------
    mask
        What the layer gets.
    kind
        What its attention implementation takes.
    rows, queries
        Shape of the pass, removed tokens counted.

    Raises
    ------
    UpstreamChangedError
        If it is of another type, shape or kind.
    """
    if mask is None:
        return
    if isinstance(mask, Tensor):
        two = kind == "validity" and mask.ndim == 2 and len(mask) in (1, rows) and not mask.is_floating_point()
        four = kind != "validity" and mask.ndim == 4 and len(mask) in (1, rows) and mask.shape[-2] == queries
        if two or (four and (mask.dtype == torch.bool or mask.is_floating_point())):
            return
    found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise changed(
        f"decoder layers get an attention mask ({found}) that is not the {kind} mask of {rows} x {queries} tokens"
    )


def validity(mask: Any, rows: int, length: int, device: torch.device) -> Tensor:
    """Return which tokens of a prompt are not padding, from any mask a model accepts; boolean ``[rows, length]``.

    Parameters
    ----------
    mask
        None, ``[rows, length]``, a prepared 4-D mask, or one such per layer type.
    rows, length
        Shape of the prompt.
    device
        Device of the result.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:  # what the last query may see
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    return mask[:, :length].to(device=device, dtype=torch.bool).expand(rows, length)


def reduced_mask(
    mask: Tensor | None,
    layout: Layout,
    kind: MaskKind,
    *,
    length: int,
    queries: int,
    total: int,
    keys: int,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return the mask of a layer.

    Parameters
    ----------
    mask
        The model's mask for all tokens: 4-D ``[1 or rows, heads, queries, keys]`` or 2-D ``[rows, keys]``.
    layout
        The prompt tokens that the layer holds.
    kind
        What to build where the model needed no mask.
    length
        Length of the prompt.
    queries
        Tokens of this pass; the prompt's length in a prefill.
    total
        Length of the sequence after this pass.
    keys
        Number of keys that attention gets in this layer.
    window
        Sliding window of the layer, in original positions; only used with 2-D masks, which do not carry it.
    dtype
        Type of an additive mask to build.

    Raises
    ------
    ValueError
        If FlashAttention would have to apply a sliding window to several queries of a sequence with gaps.
    """
    prefill = total == length
    whole = mask is not None and mask.ndim == 4 and mask.shape[-1] == total and keys == layout.slots + total - length
    if whole and not prefill and layout.size is None:  # the common decode step
        return _held_columns(mask, layout, length)  # type: ignore[arg-type]
    index, valid = key_places(layout, length, total, keys)
    if (mask is not None and mask.ndim == 2) or (mask is None and kind == "validity"):
        if layout.size is not None:
            raise ValueError(
                "FlashAttention cannot weigh merged tokens by their size: load the model with "
                "attn_implementation='sdpa'."
            )
        several = prefill or queries > 1
        return _two_dimensional(mask, layout, index, valid, several=several, total=total, window=window)
    if mask is None and not layout.padded and layout.size is None:
        return None
    pads = ~layout.valid if prefill and layout.padded else None
    if mask is not None:
        queries_at = layout.index if prefill else None
        new = gathered_mask(mask, queries_at, index, valid, total=total, pads=pads)
    else:
        places = layout.index if prefill else torch.arange(total - queries, total, device=index.device)[None]
        new = built_mask(kind, places, index, valid, dtype=dtype, pads=pads)
    if layout.size is None:
        return new
    if new.dtype == torch.bool:
        new = torch.zeros_like(new, dtype=dtype).masked_fill(~new, torch.finfo(dtype).min)
    weight = torch.nn.functional.pad(layout.size.to(new.dtype).log(), (0, total - length))[
        :, -keys:
    ]  # tokens since weigh one
    weight = torch.nn.functional.pad(weight, (0, keys - weight.shape[1])).to(new.device)
    return (new + weight[:, None, None, :]).clamp(min=torch.finfo(new.dtype).min)


def _held_columns(mask: Tensor, layout: Layout, length: int) -> Tensor:
    """Return the columns of a decode step's 4-D mask whose keys a layer holds: some of the prompt, all since."""
    index = layout.index.to(mask.device)
    if len(index) == 1:
        chosen = mask[..., :length].index_select(-1, index[0])
    else:
        chosen = mask.expand(len(index), -1, -1, -1).take_along_dim(index[:, None, None, :], dim=-1)
    if layout.padded:
        valid = layout.valid.to(mask.device)[:, None, None, :]
        chosen = chosen & valid if mask.dtype == torch.bool else chosen.masked_fill(~valid, torch.finfo(mask.dtype).min)
    since = mask[..., length:]
    return torch.cat([chosen, since.expand(len(index), -1, -1, -1)], dim=-1)


def gathered_mask(
    mask: Tensor,
    queries: Tensor | None,
    keys: Tensor,
    valid: Tensor,
    *,
    total: int,
    pads: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Select queries and keys of a 4-D mask.

    Parameters
    ----------
    mask
        Boolean or additive ``[1 or rows, heads, queries, keys]``; its last key is the sequence's last token.
    queries
        Places of the queries, long ``[rows, q]``; None takes all queries of the mask.
    keys, valid
        Places of the keys and whether there is one, both ``[rows, k]``.
    total
        Length of the sequence.
    pads
        Boolean ``[rows, q]``: queries that are padding and see themselves only.
    first
        Where among the keys the first query's own key stands.

    Returns
    -------
    Tensor
        ``[rows, heads, q, k]``.
    """
    offset = max(total - mask.shape[-1], 0)  # a sliding cache's mask starts later
    keys, valid = keys.to(mask.device), valid.to(mask.device) & (keys.to(mask.device) >= offset)
    if queries is not None:
        mask = pick(mask.movedim(1, 0), queries, -2).movedim(0, 1)
    mask = mask.expand(keys.shape[0], *mask.shape[1:])
    chosen = mask.take_along_dim((keys - offset).clamp(min=0)[:, None, None, :], dim=-1)
    if mask.dtype == torch.bool:
        chosen = chosen & valid[:, None, None, :]
    else:
        chosen = chosen.masked_fill(~valid[:, None, None, :], torch.finfo(mask.dtype).min)
    return chosen if pads is None else _see_themselves(chosen, pads, first)


def built_mask(
    kind: MaskKind,
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    *,
    dtype: torch.dtype,
    pads: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Build the causal mask that a model left out because it needed none.

    Parameters
    ----------
    kind
        "boolean" or "additive".
    queries
        Places of the queries, long ``[1 or rows, q]``.
    keys, valid, pads, first
        As in :func:`gathered_mask`.
    dtype
        Type of an additive mask.

    Raises
    ------
    ValueError
        For FlashAttention.
    """
    if kind == "validity":
        raise ValueError("FlashAttention takes no 4-D mask.")
    allowed = ((keys[:, None, :] <= queries[:, :, None]) & valid[:, None, :])[:, None]
    if pads is not None:
        allowed = _see_themselves(allowed, pads, first)
    if kind == "boolean":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def key_places(layout: Layout, length: int, total: int, keys: int) -> tuple[Tensor, Tensor]:
    """Return original place and validity of each key that attention gets in a layer, both ``[rows, keys]``.

    Parameters
    ----------
    layout
        The prompt tokens that the layer holds.
    length, total
        Length of the prompt, and of the sequence after this pass.
    keys
        Number of keys: less than all where a window has cut some off, more where a buffer is not full.
    """
    rows, device = layout.index.shape[0], layout.index.device
    generated = torch.arange(length, total, device=device).expand(rows, -1)
    index = torch.cat([layout.index, generated], dim=1)[:, -keys:]
    valid = torch.cat([layout.valid, torch.ones_like(generated, dtype=torch.bool)], dim=1)[:, -keys:]
    empty = keys - index.shape[1]  # the rest of a static buffer
    if empty:
        index, valid = (torch.nn.functional.pad(x, (0, empty)) for x in (index, valid))
    return index, valid


def _see_themselves(mask: Tensor, pads: Tensor, first: int) -> Tensor:
    """Let padding attend to itself: a query that may see nothing turns into NaN, which spreads."""
    keys = torch.arange(mask.shape[-1], device=mask.device)
    own = torch.arange(pads.shape[1], device=mask.device) + first
    itself = pads.to(mask.device)[:, None, :, None] & (own[:, None] == keys)
    return mask | itself if mask.dtype == torch.bool else mask.masked_fill(itself, 0.0)


def check_window(window: int | None, tokens: int) -> None:
    """Raise ``ValueError`` if FlashAttention would have to apply a sliding window to a sequence with gaps."""
    if window is not None and tokens > window:
        raise ValueError(
            f"FlashAttention cannot apply a sliding window of {window} to a sequence of {tokens} tokens once tokens "
            "are removed: load the model with attn_implementation='sdpa'."
        )


def _two_dimensional(
    mask: Tensor | None, layout: Layout, index: Tensor, valid: Tensor, *, several: bool, total: int, window: int | None
) -> Tensor | None:
    if several:  # a 2-D mask can cut the window of one query only
        check_window(window, total)
    beyond = window is not None and total > window
    if mask is None and not layout.padded and not beyond:
        return None
    if beyond:
        valid = valid & (index > total - 1 - window)  # type: ignore[operator]
    if mask is not None:
        offset = max(total - mask.shape[-1], 0)
        seen = mask.to(torch.bool).gather(1, (index.to(mask.device) - offset).clamp(min=0))
        valid = valid.to(mask.device) & seen
    return None if bool(valid.all()) else valid
