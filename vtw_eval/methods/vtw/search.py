"""Search for the withdrawal layer k: Algorithm 1 of the VTW paper in one pass instead of one run per k.

The published search runs the model once per candidate k. But before layer k a candidate *is* the unchanged model, and
tokens in front of the first vision token never change at all. So here the unchanged model runs once; at each layer k
its text tokens after the first vision token are copied as candidate k, and all candidates so far go through the
layer together, as one batch that shares the keys of the tokens in front of the image.

Source: https://arxiv.org/abs/2405.05803, Eq. 6 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtw_eval.anatomy import Anatomy, UnsupportedModelError, check_support, find_anatomy
from vtw_eval.engine.arguments import cut_others, cut_per_layer, pick_tokens
from vtw_eval.engine.calls import (
    EMBEDDINGS,
    MASK,
    PER_LAYER,
    POSITIONS,
    cache_of,
    changed,
    check_embeddings,
    check_layer_call,
    entering,
    layer_output,
    parameters,
    with_cache,
)
from vtw_eval.engine.layout import choose, last_valid, pick, right_aligned
from vtw_eval.engine.masks import (
    MaskKind,
    built_mask,
    check_bidirectional,
    check_mask,
    check_window,
    gathered_mask,
    mask_kind,
    validity,
)
from vtw_eval.engine.probes import keys_and_values
from vtw_eval.engine.wrappers import uncompiled
from vtw_eval.methods.vtw.method import DEFAULT_ETA, DEFAULT_START

Direction = Literal["vtw_full", "full_vtw"]
"""KL(withdrawn || full), what the paper's code computes, or KL(full || withdrawn), what the paper writes."""

_RESAMPLES = 1000
_WIDE = 0.9
"""A bootstrap that gives one k less often than this is wide."""


@dataclass(frozen=True)
class SearchResult:
    """The divergence of every candidate and the k it gives."""

    k: int
    """The first k from ``start`` on with a mean divergence below ``eta``; N, the unchanged model, if there is none."""
    divergence: Tensor
    """Mean KL per k in nats, float64 ``[layers]``; NaN below ``start``."""
    per_sample: Tensor
    """KL of each prompt, float64 ``[samples, layers]``."""
    eta: float
    start: int
    direction: Direction
    found: bool
    """Whether any candidate passed."""
    verified: str = "not verified"
    """Whether the search was compared with single runs on the installed packages, see :mod:`vtw_eval.verify`."""

    def bootstrap(self, resamples: int = _RESAMPLES, seed: int = 0) -> dict[int, float]:
        """Return how often each k comes out when the samples are drawn anew with replacement, by k.

        Parameters
        ----------
        resamples
            Number of draws.
        seed
            Seed of the draws.
        """
        rng = np.random.default_rng(seed)
        values = self.per_sample.numpy()
        draws = rng.integers(len(values), size=(resamples, len(values)))
        counts = Counter(_first_below(values[draw].mean(axis=0), self.eta, self.start) for draw in draws)
        return {k: count / resamples for k, count in sorted(counts.items())}

    def advice(self) -> str:
        """Return a sentence or two on whether a k was found and how far it can be trusted."""
        if not self.found:
            return (
                f"No k from {self.start} on brings the divergence below {self.eta}: k={self.k} is the unchanged model."
            )
        shares = self.bootstrap()
        best = max(shares.values())
        if best >= _WIDE:
            return f"k={self.k} is stable: {shares.get(self.k, 0.0):.0%} of bootstrap resamples give it."
        safe = next(k for k in shares if sum(share for other, share in shares.items() if other <= k) >= _WIDE)
        spread = ", ".join(f"{k}: {share:.0%}" for k, share in shares.items())
        return (
            f"{len(self.per_sample)} samples do not settle k (bootstrap {spread}): use more samples, or k={safe}, "
            f"which {_WIDE:.0%} of the resamples do not exceed."
        )


def _first_below(divergence: np.ndarray, eta: float, start: int) -> int:
    passing = np.flatnonzero(divergence[start:] < eta)
    return start + int(passing[0]) if len(passing) else len(divergence)


def search_layer(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    eta: float = DEFAULT_ETA,
    start: int = DEFAULT_START,
    *,
    direction: Direction = "vtw_full",
    vision_mask: Tensor | None = None,
    allow_untested: bool = False,
) -> SearchResult:
    """Find the first k whose next-token distribution after the prompt is close to the unchanged model's.

    Parameters
    ----------
    model
        A transformers vision-language model.
    samples
        Keyword arguments of ``model`` for one prompt or a batch of prompts each, ``input_ids`` among them.
    eta
        Threshold on the mean divergence over all prompts, in nats. The paper's; its code takes 0.0005 for
        LLaVA-1.5-13B and 0.0001 for LLaVA-NeXT-7B (:func:`vtw_eval.methods.vtw.method.default_eta`).
    start
        First candidate; the paper starts at 5.
    direction
        Which way the divergence goes.
    vision_mask
        See :func:`vtw_eval.engine.install`; only with a single sample.
    allow_untested
        Go on with a model family that the test-suite does not cover.

    Returns
    -------
    SearchResult
        Prompts without vision tokens count with a divergence of zero.

    Raises
    ------
    ValueError
        If there are no samples, or ``start`` or ``eta`` is impossible.
    UnsupportedModelError
        If tokens cannot be removed from this model.
    """
    anatomy = find_anatomy(model)
    check_support(anatomy, allow_untested)
    check_bidirectional(anatomy)
    if not anatomy.plain_cache:
        raise UnsupportedModelError(
            f"the search for k needs layers with keys of their own, which {anatomy.model_type} has not throughout: "
            "compare runs with different k instead."
        )
    if not 0 <= start <= anatomy.num_layers:
        raise ValueError(f"start={start} is out of range: this model has {anatomy.num_layers} decoder layers.")
    if not eta > 0:
        raise ValueError(f"eta={eta} is out of range: the threshold on the divergence is positive.")
    if direction not in ("vtw_full", "full_vtw"):
        raise ValueError(f"direction={direction!r} is unknown: choose 'vtw_full' or 'full_vtw'.")
    rows = [_divergences(anatomy, sample, start, direction, vision_mask) for sample in samples]
    if not rows:
        raise ValueError("the search needs at least one sample.")
    per_sample = torch.cat(rows)
    divergence = per_sample.mean(dim=0)
    k = _first_below(divergence.numpy(), eta, start)
    return SearchResult(k, divergence, per_sample, eta, start, direction, found=k < anatomy.num_layers)


@torch.no_grad()
def _divergences(
    anatomy: Anatomy, sample: Mapping[str, Any], start: int, direction: Direction, vision_mask: Tensor | None
) -> Tensor:
    """KL of each prompt of a sample and each k; float64 ``[prompts, layers]`` on the CPU."""
    layers = anatomy.num_layers
    candidates = _Candidates(anatomy, start, vision_mask)
    with candidates.installed():
        arguments = with_cache(anatomy.model, {**sample, "use_cache": True}, candidates.cache)
        if "logits_to_keep" in parameters(anatomy.model):
            arguments["logits_to_keep"] = 1
        logits = anatomy.model(**arguments).logits[:, -1].double()
        candidates.check()
    log_p = logits.log_softmax(dim=-1).unflatten(0, (layers - start + 1, -1))  # [full and candidates, prompts, words]
    full, withdrawn = log_p[:1], log_p[1:]
    p, q = (withdrawn, full) if direction == "vtw_full" else (full, withdrawn)
    kl = (p.exp() * (p - q)).sum(dim=-1).T.cpu()
    return torch.cat([kl.new_full((len(kl), start), math.nan), kl], dim=1)


class _PassingCache(DynamicCache):
    """A cache that stays empty and only remembers the keys and values of the layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.current: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Remember and return the new states."""
        self.current = (key_states, value_states)
        return key_states, value_states


class _PrefixCache(DynamicCache):
    """A cache that puts the same keys and values in front of whatever a layer adds."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.prefix = (keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Return prefix and new states."""
        keys, values = self.prefix
        copies = key_states.shape[0] // keys.shape[0]
        return (
            torch.cat([keys.repeat(copies, 1, 1, 1), key_states], dim=-2),
            torch.cat([values.repeat(copies, 1, 1, 1), value_states], dim=-2),
        )


@dataclass
class _Tokens:
    """Which tokens of the prompts the candidates share and which they compute; right-aligned, per row."""

    length: int
    last: Tensor
    prefix: Tensor
    prefix_valid: Tensor
    own: Tensor
    own_valid: Tensor
    memo: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def once(self, source: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, computed once for all layers that get the same object from the model."""
        if id(source) not in self.memo:
            self.memo[id(source)] = (make(), source)  # holding it keeps its id from being used again
        return self.memo[id(source)][0]


class _Candidates:
    """All withdrawn continuations, carried along by hooks while the unchanged model runs."""

    def __init__(self, anatomy: Anatomy, start: int, vision_mask: Tensor | None) -> None:
        self.anatomy = anatomy
        self.start = start
        self.vision_mask = vision_mask
        self.kind: MaskKind = mask_kind(anatomy.attention)
        self.cache = _PassingCache()
        self.seen: Mapping[str, Any] = {}
        self.tokens: _Tokens | None = None
        self.states: Tensor | None = None
        """Hidden states of the candidates so far, ``[candidates * rows, own tokens, width]``."""
        self.ran = 0
        """How many layers have had candidates."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Register the hooks, and remove them at the end."""
        anatomy = self.anatomy
        handles = [
            anatomy.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            anatomy.decoder.register_forward_hook(self._after_decoder),
        ]
        for i in range(self.start, anatomy.num_layers - 1):
            handles.append(anatomy.layers[i].register_forward_hook(self._after_layer(i), with_kwargs=True))
        if self.start < anatomy.num_layers:
            handles.append(anatomy.layers[-1].register_forward_pre_hook(self._before_last, with_kwargs=True))
        try:
            with uncompiled(anatomy.decoder, anatomy.layers):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Check after a pass that every layer had its candidates.

        Raises
        ------
        UpstreamChangedError
            If the hooks of some layers have not run.
        """
        expected = self.anatomy.num_layers - self.start
        if self.ran != expected:
            raise changed(f"{self.ran} of the {expected} hooks on decoder layers have run")

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen = kwargs

    def _begin(self, hidden: Tensor, mask: Tensor | None, layer: nn.Module) -> _Tokens:
        """Divide the text tokens into those that no vision token influences and the others."""
        rows, length = hidden.shape[:2]
        device = hidden.device
        valid = validity(self.seen.get("attention_mask"), rows, length, device)
        if self.vision_mask is not None:
            vision = self.vision_mask.to(device) & valid
        else:
            vision = self.anatomy.is_vision(self.seen["input_ids"].to(device)) & valid
        last = last_valid(valid)
        if bool(vision.gather(1, last[:, None]).any()):
            raise ValueError("a prompt ends in a vision token: there is no text token to answer from.")
        places = torch.arange(length, device=device)
        prefix = valid & (vision.cumsum(dim=1) == 0) & (places < last[:, None])
        if self._looks_ahead(prefix, vision, mask, layer):
            prefix = torch.zeros_like(prefix)
        own_index, own_valid, _ = choose(valid & ~vision & ~prefix)
        prefix_index, prefix_valid = right_aligned(prefix, int(prefix.sum(dim=1).max()))
        return _Tokens(length, last, prefix_index, prefix_valid, own_index, own_valid)

    def _looks_ahead(self, prefix: Tensor, vision: Tensor, mask: Tensor | None, layer: nn.Module) -> bool:
        """Whether attention is bidirectional, so that tokens in front of an image see it."""
        if mask is None or mask.ndim == 2:
            return not getattr(getattr(layer, "self_attn", layer), "is_causal", True)
        sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return bool((sees & prefix[:, None, :, None] & vision[:, None, None, :]).any())

    def _after_layer(self, i: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden, kwargs = entering(module, args, kwargs)
            states, arguments = self._enter(i, module, hidden, kwargs)
            # Called below the hooks: a candidate's pass is not one of the model's.
            self.states = layer_output(module.forward(states, **arguments))

        return hook

    def _before_last(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the candidates through the last layer, and leave the model itself, too, only what the answer needs."""
        hidden, kwargs = entering(module, args, kwargs)
        self.cache.current = keys_and_values(module, hidden, kwargs, self.anatomy.text_config)
        states, arguments = self._enter(self.anatomy.num_layers - 1, module, hidden, kwargs)
        own = keys_and_values(module, states, arguments, self.anatomy.text_config)
        states, arguments = _last_token_only(module, states, arguments, own)
        self.states = layer_output(module.forward(states, **arguments))
        assert self.tokens is not None
        if bool((self.tokens.last < self.tokens.length - 1).any()):
            return None  # padded on the right
        nothing = tuple(part[:, :, :0] for part in self.cache.current)
        plain = with_cache(module, kwargs, _PrefixCache(*nothing))
        hidden, plain = _last_token_only(module, hidden, plain, self.cache.current)
        return (hidden,), plain

    def _enter(
        self, i: int, layer: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return all candidates so far, the one of this layer among them, as input of the layer."""
        check_layer_call(i, kwargs)
        check_mask(kwargs[MASK], self.kind, *hidden.shape[:2])
        if cache_of(kwargs) is not self.cache:
            raise changed(f"decoder layer {i} gets another KV cache than the model did")
        self.ran += 1
        if self.tokens is None:
            self.tokens = self._begin(hidden, kwargs[MASK], layer)
        own = pick(hidden, self.tokens.own, -2)
        states = own if self.states is None else torch.cat([self.states, own])
        return states, self._arguments(i, layer, self.tokens, kwargs, states.shape[0] // len(hidden))

    def _arguments(
        self, i: int, layer: nn.Module, tokens: _Tokens, kwargs: Mapping[str, Any], copies: int
    ) -> dict[str, Any]:
        """Return a layer's keyword arguments for the candidates."""
        if self.cache.current is None:
            raise changed(f"decoder layer {i - 1} does not keep its keys in the KV cache")
        keys, values = (pick(states.movedim(1, -2), tokens.prefix, -3).movedim(-2, 1) for states in self.cache.current)
        new = with_cache(layer, kwargs, _PrefixCache(keys, values))
        self._check_window(i, tokens, new.get(MASK))
        own, once = tokens.own, tokens.once

        def cut_mask(mask: Tensor | None) -> Tensor | None:
            return _repeat(once(mask, lambda: self._mask(tokens, mask, keys.dtype)), copies, 0)

        def cut_embeddings(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            check_embeddings(parts, len(own), tokens.length)
            return tuple(
                _repeat(part, copies, -3) for part in once(parts, lambda: [pick(part, own, -2) for part in parts])
            )

        def cut_positions(places: Tensor) -> Tensor:
            return _repeat(once(places, lambda: pick(places, own, -1)), copies, -2)

        def cut_other(value: Tensor) -> Tensor:
            return _repeat(once(value, lambda: pick_tokens(value, own)), copies, 0)

        per_layer = cut_per_layer(new, self.kind, mask=cut_mask, embeddings=cut_embeddings, positions=cut_positions)
        return {**new, **per_layer, **cut_others(i, new, len(own), tokens.length, cut_other)}

    def _two_dimensional(self, mask: Tensor | None) -> bool:
        return self.kind == "validity" or (mask is not None and mask.ndim == 2)

    def _check_window(self, i: int, tokens: _Tokens, mask: Tensor | None) -> None:
        if self._two_dimensional(mask):  # other masks carry the window
            check_window(self.anatomy.sliding_window(i), tokens.length)

    def _mask(self, tokens: _Tokens, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        keys = torch.cat([tokens.prefix, tokens.own], dim=1)
        valid = torch.cat([tokens.prefix_valid, tokens.own_valid], dim=1)
        padded = not bool(valid.all())
        if self._two_dimensional(mask):
            return valid if padded else None
        pads = ~tokens.own_valid if padded else None
        first = tokens.prefix.shape[1]
        if mask is None:
            return built_mask(self.kind, tokens.own, keys, valid, dtype=dtype, pads=pads, first=first)
        return gathered_mask(mask, tokens.own, keys, valid, total=tokens.length, pads=pads, first=first)

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Let the model's own head see the last token of the unchanged model and of each candidate."""
        hidden = output.last_hidden_state
        if self.tokens is None:  # start is the number of layers: no candidates
            rows, length = hidden.shape[:2]
            last = last_valid(validity(self.seen.get("attention_mask"), rows, length, hidden.device))
        else:
            last = self.tokens.last.clamp(max=hidden.shape[1] - 1)
        prompts = torch.arange(hidden.shape[0], device=hidden.device)
        ends = [hidden[prompts, last.to(hidden.device)][:, None]]
        if self.states is not None:
            norm: Any = module.norm
            ends.append(norm(self.states[:, -1:]).to(hidden.device))
        output.last_hidden_state = torch.cat(ends)
        return output


def _last_token_only(
    layer: nn.Module, states: Tensor, arguments: dict[str, Any], own: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Leave a layer one query per row: all keys and values stay, but only the last token goes through it.

    Parameters
    ----------
    layer
        The layer.
    states
        What would enter the layer, ``[rows, tokens, width]``, padded on the left.
    arguments
        Its keyword arguments, a :class:`_PrefixCache` among them.
    own
        Keys and values of ``states`` in that layer.
    """
    prefix = cache_of(arguments)
    assert isinstance(prefix, _PrefixCache)
    keys, values = (part[:, :, :-1] for part in own)
    new = with_cache(layer, arguments, _PrefixCache(*prefix.update(keys, values, 0)))
    mask, parts, places = (arguments.get(name) for name in PER_LAYER)
    if mask is not None and mask.ndim == 4:
        new[MASK] = mask[:, :, -1:]
    if parts is not None:
        new[EMBEDDINGS] = tuple(part[..., -1:, :] for part in parts)
    if places is not None:
        new[POSITIONS] = places[..., -1:]
    return states[:, -1:], new


def _repeat(tensor: Tensor | None, copies: int, dim: int) -> Any:
    """Repeat a tensor for each candidate along its batch axis."""
    return None if tensor is None else torch.cat([tensor] * copies, dim=dim)
