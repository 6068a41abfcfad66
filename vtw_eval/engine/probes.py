"""The attention weights of some queries, without eager attention.

A layer is run up to its attention function, where the query and key states are complete (norms, rotary embedding,
scaling), and stopped there; rows of weights are then computed from them, few at a time. So SDPA and FlashAttention stay
on, and no modelling code is copied. Projections whose output is not read work on one token only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from vtw_eval.engine.calls import SHARED, changed, without_cache
from vtw_eval.engine.layout import right_aligned
from vtw_eval.engine.wrappers import replaced

Heads = Literal["mean", "max"]
_PROBE = "vtw_eval_probe"
_CHUNK = 64
"""Queries whose rows of weights are in memory at a time."""


class _AtAttentionError(Exception):
    """Carries what a layer was about to hand to its attention function."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        super().__init__("stopped at the attention function")
        self.query, self.key, self.value, self.mask, self.options = query, key, value, mask, options


def _stop(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> NoReturn:
    raise _AtAttentionError(query, key, value, attention_mask, options)


AttentionInterface.register(_PROBE, _stop)


def last_query_attention(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any, last: Tensor, valid: Tensor
) -> Tensor:
    """Return the attention weights of each row's last token in a layer that has not run, averaged over nothing.

    Parameters
    ----------
    layer
        A decoder layer.
    hidden
        Hidden states entering it, ``[rows, tokens, width]``.
    arguments
        Its keyword arguments; a KV cache among them is left alone.
    config
        The decoder's config, which names the attention implementation.
    last
        Place of each row's last token, long ``[rows]``.
    valid
        Boolean ``[rows, tokens]``, False for padding.

    Returns
    -------
    Tensor
        float32 (float64 for float64 states), ``[rows, heads, tokens]``; a row sums to 1.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    with _projecting(layer, hidden, last):
        found = _run_to_attention(layer, hidden, arguments, config)
    return _weights(found, last[:, None], valid)[:, :, 0]


def unrotated_attention(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any, last: Tensor, among: Tensor
) -> Tensor:
    """Return the attention weights of each row's last token as if no token had a position.

    The layer is told an angle of 0 for all tokens, so that its queries and keys get their norms and no rotation.

    Parameters
    ----------
    layer, hidden, arguments, config, last
        As in :func:`last_query_attention`.
    among
        Boolean ``[rows, tokens]``: the keys; no mask hides any of them.

    Returns
    -------
    Tensor
        float32 (float64 for float64 states), ``[rows, heads, tokens]``; a row sums to 1, or to 0 without any key.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    with _projecting(layer, hidden, last):
        found = _run_to_attention(layer, hidden, _still(arguments), config)
    return _among(_scores(found, last[:, None]), among)


def mean_query_attention(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any, queries: Tensor, among: Tensor
) -> Tensor:
    """Return the attention weights that the mean of some queries would give as if no token had a position.

    Parameters
    ----------
    layer, hidden, arguments, config
        As in :func:`last_query_attention`.
    queries
        Boolean ``[rows, tokens]``: whose queries the mean is of, for each head.
    among
        Boolean ``[rows, tokens]``: the keys; no mask hides any of them.

    Returns
    -------
    Tensor
        float32 (float64 for float64 states), ``[rows, heads, tokens]``; a row sums to 1, or to 0 without any key.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    with _projecting(layer, hidden, None):
        found = _run_to_attention(layer, hidden, _still(arguments), config)
    are = queries.to(found.query.device)[:, None, :, None]
    mean = found.query.masked_fill(~are, 0).sum(dim=2, keepdim=True) / are.sum(dim=2, keepdim=True).clamp(min=1)
    found.query = mean.to(found.query)
    return _among(_scores(found, _first(hidden)[:, None]), among)


def rotation(arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines that a layer gets, ``[1 or rows, tokens, channels]`` each."""
    try:
        cos, sin = arguments["position_embeddings"]
    except (KeyError, TypeError, ValueError):
        raise changed("a decoder layer gets no cosines and sines as position_embeddings") from None
    return cos, sin


def _still(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's arguments with an angle of 0 for all tokens."""
    cos, sin = rotation(arguments)
    return {**arguments, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


def _among(scores: Tensor, among: Tensor) -> Tensor:
    """Return the weights of the logits of one query, ``[rows, heads, 1, tokens]``, over some keys, 0 for the others."""
    among = among.to(scores.device)
    return _softmax(scores, ~among[:, None, None])[:, :, 0] * among[:, None]


def mean_attention(
    layer: nn.Module,
    hidden: Tensor,
    arguments: Mapping[str, Any],
    config: Any,
    queries: Tensor,
    valid: Tensor,
    heads: Heads = "mean",
) -> Tensor:
    """Return the attention that tokens receive in a layer that has not run, mean over some queries.

    Parameters
    ----------
    layer, hidden, arguments, config, valid
        As in :func:`last_query_attention`.
    queries
        Boolean ``[rows, tokens]``, those among ``valid`` over whose rows of weights the mean is taken.
    heads
        What is taken over the heads first.

    Returns
    -------
    Tensor
        float32 (float64 for float64 states), ``[rows, tokens]``; the mean of heads sums to 1, or to 0 without any
        query.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    count = (queries & valid).sum(dim=1)
    total: Tensor | None = None
    for rows in attention_rows(layer, hidden, arguments, config, queries, valid):
        weights = rows.weights.mean(dim=1) if heads == "mean" else rows.weights.amax(dim=1)
        received = (weights * rows.chosen[:, :, None]).sum(dim=1)
        total = received if total is None else total + received
    assert total is not None, "there is a chunk, be it of no query"
    return total / count.clamp(min=1).to(total.device)[:, None]


@dataclass(frozen=True)
class AttentionRows:
    """Rows of attention weights of some queries."""

    places: Tensor
    """Which tokens are the queries, long ``[rows, queries]``."""
    chosen: Tensor
    """Boolean ``[rows, queries]``; a row with fewer queries than others is filled up at the left, and what stands
    there means nothing."""
    weights: Tensor
    """``[rows, heads, queries, tokens]``, float32 (float64 for float64 states); each sums to 1 over the tokens."""
    visible: Tensor
    """Which tokens a query sees, boolean ``[rows, 1 or heads, queries, tokens]``."""


def attention_rows(
    layer: nn.Module,
    hidden: Tensor,
    arguments: Mapping[str, Any],
    config: Any,
    queries: Tensor,
    valid: Tensor,
) -> Iterator[AttentionRows]:
    """Yield the attention weights of some queries in a layer that has not run, a few queries at a time.

    So memory grows with the number of tokens, not with its square.

    Parameters
    ----------
    layer, hidden, arguments, config, valid
        As in :func:`last_query_attention`.
    queries
        Boolean ``[rows, tokens]``; those among ``valid`` are taken, in their order.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface, as that of a recurrence or a
        convolution, or if the layer attends to the keys of another one.
    """
    with _projecting(layer, hidden, None):
        found = _run_to_attention(layer, hidden, arguments, config)
    if found.key.shape[2] != hidden.shape[1]:
        raise ValueError("this layer attends to the keys of another one: its attention cannot be read.")
    queries = queries & valid
    places, chosen = right_aligned(queries, max(int(queries.sum(dim=1).max()), 1))
    device = found.query.device
    for some, are in zip(places.split(_CHUNK, dim=1), chosen.split(_CHUNK, dim=1), strict=True):
        scores, hidden_keys = _logits(found, some, valid)
        yield AttentionRows(some.to(device), are.to(device), _softmax(scores, hidden_keys), ~hidden_keys)


def rotated_keys(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any) -> Tensor:
    """Return the keys of a layer as its KV cache holds them, ``[rows, tokens, key heads, head width]``.

    Parameters
    ----------
    layer, hidden, arguments, config
        As in :func:`last_query_attention`.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    with _projecting(layer, hidden, _first(hidden)):
        return _run_to_attention(layer, hidden, arguments, config).key.transpose(1, 2)


def values(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any) -> Tensor:
    """Return the values of a layer as its KV cache holds them, ``[rows, tokens, key heads, head width]``.

    Parameters
    ----------
    layer, hidden, arguments, config
        As in :func:`last_query_attention`.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    with _projecting(layer, hidden, _first(hidden), unread="k_proj"):
        return _run_to_attention(layer, hidden, arguments, config).value.transpose(1, 2)


def keys_and_values(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any, *, queries: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the keys (rotated) and values of a layer that has not run, ``[rows, key heads, tokens, width]`` each.

    Parameters
    ----------
    layer, hidden, arguments, config
        As in :func:`last_query_attention`.
    queries
        Whether queries, which nobody reads, are projected too; without them, ``self_attn.q_proj`` gets no token.
    """
    with ExitStack() as stack:
        if not queries:
            attention: Any = layer.self_attn
            stack.enter_context(_on_no_token(attention.q_proj))
        found = _run_to_attention(layer, hidden, arguments, config)
    return found.key, found.value


def attention_inputs(
    layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], *, one_query: bool
) -> _AtAttentionError:
    """Return what a layer of a vision tower hands to its attention function: queries, keys, mask and options.

    Parameters
    ----------
    layer, hidden, arguments
        As in :func:`last_query_attention`; hidden states also ``[tokens, width]``, of images one after another.
    one_query
        Project the query of the first token only, and give it as that of all.

    Raises
    ------
    ValueError
        If the layer's attention does not go through transformers' attention interface.
    """
    config = next((module.config for module in layer.modules() if hasattr(module, "config")), None)
    if config is None:
        raise ValueError("this model's vision tower cannot be looked into: its attention has no config.")
    with _projecting(layer, hidden, _first(hidden) if one_query else None):
        return _run_to_attention(layer, hidden, arguments, config)


def rotation_free_keys(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any) -> Tensor:
    """Return the keys of a layer that has not run, before norm and rotary embedding, mean over heads.

    Parameters
    ----------
    layer, hidden, arguments, config
        As in :func:`last_query_attention`.

    Returns
    -------
    Tensor
        ``[rows, tokens, head width]``.

    Raises
    ------
    ValueError
        If the layer has no key projection of its own, or hides its attention.
    """
    attention: Any = getattr(layer, "self_attn", None)
    projection = getattr(attention, "k_proj", None)
    if projection is None:
        raise ValueError("this model's layers have no key projection of their own (self_attn.k_proj).")
    with ExitStack() as stack:
        for name in ("q_proj", "k_proj"):  # whichever comes first
            if (first := getattr(attention, name, None)) is not None:
                stack.callback(first.register_forward_pre_hook(_stop_before).remove)
        try:
            layer.forward(hidden, **_unrecorded(arguments))
            raise ValueError("this model's layers do not project their keys by self_attn.k_proj.")
        except _AtProjectionError as stopped:
            entering = stopped.hidden
    return projection(entering).unflatten(-1, (-1, attention.head_dim)).mean(dim=-2)


class _AtProjectionError(Exception):
    """Carries what a layer was about to project to queries or keys."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("stopped before the projections")
        self.hidden = hidden


def _stop_before(module: nn.Module, args: tuple[Any, ...]) -> NoReturn:
    raise _AtProjectionError(args[0])


@contextmanager
def _projecting(
    layer: nn.Module, hidden: Tensor, query: Tensor | None, unread: Literal["k_proj", "v_proj"] = "v_proj"
) -> Iterator[None]:
    """Let a layer project the query of one place of each row, or all, and of the values, which nobody reads, one.

    Or one of the keys, if it is these that nobody reads.
    """
    attention = getattr(layer, "self_attn", None) or getattr(layer, "attention", None)  # the latter in vision towers
    with ExitStack() as stack:
        for name, place in (("q_proj", query), (unread, _first(hidden))):
            projection = getattr(attention, name, None)
            if projection is not None and place is not None:
                stack.enter_context(_on_one_token(projection, place, hidden.shape[1]))
        yield


def _first(hidden: Tensor) -> Tensor:
    """Return the first place of each row of hidden states, long ``[rows]``."""
    return torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)


@contextmanager
def _on_one_token(projection: nn.Module, place: Tensor, tokens: int) -> Iterator[None]:
    """Let a projection work on one token of each row, and hand out the result as that of all tokens."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = torch.arange(len(args[0]), device=args[0].device)
        return args[0][rows, place.to(args[0].device)][:, None], *args[1:]

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.expand(-1, tokens, -1)

    handles = (projection.register_forward_pre_hook(before), projection.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _on_no_token(projection: nn.Module) -> Iterator[None]:
    """Let a projection get no token, and hand out zeros for all.

    It does not run: kernels of 4-bit weights end the process on an empty input.
    """
    width: Any = projection.out_features
    tokens = 0

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal tokens
        tokens = args[0].shape[1]
        return args[0][:, :0], *args[1:]

    def zeros(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden.new_zeros(len(hidden), tokens, width)

    handle = projection.register_forward_pre_hook(before)
    try:
        with replaced(projection, {"forward": zeros}):
            yield
    finally:
        handle.remove()


def _run_to_attention(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any], config: Any) -> _AtAttentionError:
    implementation = config._attn_implementation_internal
    config._attn_implementation_internal = _PROBE
    try:
        layer.forward(hidden, **_unrecorded(arguments))
    except _AtAttentionError as stopped:
        # Its traceback holds the frames that hold it, and with them all states and the KV cache until Python's garbage
        # collection, which may be minutes away.
        return stopped.with_traceback(None)
    finally:
        config._attn_implementation_internal = implementation
    raise ValueError("this model's attention cannot be looked into: it does not use transformers' interface.")


def _unrecorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's arguments without what would be filled by running it."""
    own = {name: value for name, value in without_cache(arguments).items() if name != "output_attentions"}
    if SHARED in own:  # where a layer leaves its keys for others
        own[SHARED] = copy.copy(own[SHARED])
    return own


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse attention that is not plain scaled dot products: its weights would be other ones."""
    if "scaling" not in options:
        raise changed(f"the attention function gets no scaling, only {', '.join(options) or 'nothing'}")
    for name, value in options.items():  # attention sinks, position biases
        if isinstance(value, Tensor) and value.is_floating_point():
            raise ValueError(f"this model's attention depends on {name}: its weights cannot be read by a method.")


def _weights(found: _AtAttentionError, places: Tensor, valid: Tensor) -> Tensor:
    """Return the rows of weights of some queries.

    Parameters
    ----------
    found
        What the layer would have handed to its attention function.
    places
        Which tokens are the queries, long ``[rows, queries]``.
    valid
        Boolean ``[rows, tokens]``.

    Returns
    -------
    Tensor
        ``[rows, heads, queries, tokens]``; the row of a query that is padding means nothing, but is finite.
    """
    return _softmax(*_logits(found, places, valid))


def _logits(found: _AtAttentionError, places: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of some queries, and which of them are hidden, boolean ``[rows, 1 or heads, queries, tokens]``.

    See :func:`_weights`.
    """
    scores = _scores(found, places)
    hidden = ~valid.to(scores.device)[:, None, None, :]
    mask = found.mask
    if mask is not None and mask.ndim == 4:
        rows = torch.arange(len(scores), device=mask.device)[:, None]
        mask = mask.expand(len(rows), *mask.shape[1:]).transpose(1, 2)
        mask = mask[rows, places.to(mask.device)].transpose(1, 2)[..., : scores.shape[-1]]
        if mask.dtype == torch.bool:
            hidden = hidden | ~mask
        else:  # it may hold logarithms of numbers of merged tokens, too
            hidden = hidden | (mask <= torch.finfo(torch.float16).min / 2)  # whatever type it was made in
            scores = scores + mask
    else:  # nothing but padding is told: the attention function itself knows the future and the window
        keys = torch.arange(scores.shape[-1], device=scores.device)
        behind = places.to(scores.device)[:, :, None] - keys
        window = found.options.get("sliding_window")
        outside = behind < 0 if window is None else (behind < 0) | (behind >= window)
        hidden = hidden | outside[:, None]
    return scores, hidden


def _scores(found: _AtAttentionError, places: Tensor) -> Tensor:
    """Return the logits of some queries, nothing hidden, ``[rows, heads, queries, tokens]``; see :func:`_weights`."""
    query, key, options = found.query, found.key, found.options
    _check_options(options)
    rows = torch.arange(query.shape[0], device=query.device)[:, None]
    query = query[rows, :, places.to(query.device)].transpose(1, 2)  # [rows, heads, queries, width]
    grouped = query.unflatten(1, (key.shape[1], -1))  # heads that share a key stand side by side
    scaling = options["scaling"]
    scores = torch.einsum("bghqd,bgkd->bghqk", grouped, key).flatten(1, 2)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    softcap = options.get("softcap")
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: Tensor, hidden: Tensor) -> Tensor:
    """Return the weights of logits ``[rows, heads, queries, tokens]`` of which some are hidden."""
    nothing = torch.finfo(scores.dtype).min  # finite, for padding that sees nothing
    scores = scores.masked_fill(hidden, nothing).clamp(min=nothing)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
