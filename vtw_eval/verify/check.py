"""Comparing what a method computes on a tiny model, with the installed packages, with what it should compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import LayerView, Merge, Trace
from vtw_eval.engine.masks import mask_kind
from vtw_eval.engine.probes import Heads
from vtw_eval.methods import VTW, Method
from vtw_eval.methods.vtw.search import search_layer
from vtw_eval.methods.wrapped import Wrapped
from vtw_eval.verify.oracle import Frozen, Kept, masked, nothing_frozen, traced, traced_frozen
from vtw_eval.verify.tiny import Inputs, features_in, make_inputs, make_model
from vtw_eval.verify.towerless import without_tower

NEW_TOKENS = 3
_RELATIVE = 1e-4
"""Largest difference of logits, as a share of the largest one, that float32 explains."""
_NOTHING = 1e-5
"""A removal that changes logits by less has not happened."""
_NOISE = 4
"""In half precision: how many times the unchanged model's own rounding a difference may be."""


class MismatchError(Exception):
    """A method does not compute what it should; the message says what differs."""


@dataclass(frozen=True)
class Subject:
    """A tiny model, its oracle and prompts."""

    model: PreTrainedModel
    oracle: PreTrainedModel
    """The same weights under eager attention."""
    inputs: Inputs
    flash: bool
    plain: Tensor
    """Logits of the unchanged model after each prompt, ``[rows, vocabulary]``."""
    scale: float
    """The largest logit."""
    tolerance: float

    @property
    def exact(self) -> bool:
        """Whether arithmetic is exact enough to tell a small effect from rounding."""
        return self.model.dtype in (torch.float32, torch.float64)


def make_subject(config: PreTrainedConfig, attention: str, dtype: torch.dtype, device: torch.device) -> Subject:
    """Make a tiny model and measure its own rounding.

    Parameters
    ----------
    config
        Of :func:`vtw_eval.verify.tiny.shrink`.
    attention
        Attention implementation.
    dtype, device
        Of the model.

    Raises
    ------
    MismatchError
        If the unchanged model answers otherwise without a KV cache than with one, or without padding.
    """
    model = make_model(config, attention, dtype, device)
    oracle = model if attention == "eager" else make_model(config, "eager", dtype, device)
    inputs = make_inputs(model)
    cached, uncached = _generate(model, inputs), _generate(model, inputs, use_cache=False)
    scale = float(cached.logits.abs().max())
    flash = mask_kind(attention) == "validity"
    expected, _ = _oracle(oracle, inputs, lambda layer, vision, valid: valid, cached.tokens, flash=flash)
    forced = replace(cached, logits=expected[:, inputs.length - 1 : -1])
    alone = _alone(model, inputs)
    noise = max(_difference(cached, uncached), _difference(cached, forced), *_differences(cached, alone))
    exact = dtype in (torch.float32, torch.float64)
    if not math.isfinite(scale) or (exact and noise > _RELATIVE * scale):
        raise MismatchError(
            f"the unchanged model answers otherwise without a KV cache, padding or {attention} attention "
            f"(logits differ by {noise:.1e} of {scale:.1e})"
        )
    tolerance = _RELATIVE * scale if exact else _NOISE * noise
    return Subject(model, oracle, inputs, flash, cached.logits[:, 0], scale, tolerance)


@dataclass(frozen=True)
class _Generation:
    """Greedy tokens and the logits from which they were taken."""

    tokens: Tensor
    """Long ``[rows, new]``."""
    logits: Tensor
    """float32 ``[rows, new, vocabulary]``."""
    cache: Any = field(default=None, repr=False)
    """The KV cache afterwards, if there is one."""

    def begin(self, row: int, steps: int) -> _Generation:
        """Return the first steps of one row."""
        return _Generation(self.tokens[row : row + 1, :steps], self.logits[row : row + 1, :steps])


@torch.no_grad()
def _generate(model: Any, inputs: Inputs, *, use_cache: bool = True, steps: int = NEW_TOKENS) -> _Generation:
    with features_in(model, inputs):
        output: Any = model.generate(
            **inputs.keywords(),
            max_new_tokens=steps,
            do_sample=False,
            use_cache=use_cache,
            suppress_tokens=list(find_anatomy(model).vision_token_ids),
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(output.logits, dim=1).float()
    return _Generation(output.sequences[:, inputs.length :], logits, getattr(output, "past_key_values", None))


def _alone(model: PreTrainedModel, inputs: Inputs) -> list[_Generation]:
    """Each row without the others and without its padding; the first, which has an image and padding, decodes on."""
    rows = range(len(inputs.vision))
    return [_generate(model, inputs.row(row), steps=1 if row else NEW_TOKENS) for row in rows]


def _differences(together: _Generation, alone: list[_Generation]) -> list[float]:
    return [_difference(together.begin(row, one.tokens.shape[1]), one) for row, one in enumerate(alone)]


def _difference(mine: _Generation, other: _Generation) -> float:
    """Largest difference of logits; what follows on different tokens of a row is not compared."""
    same = (mine.tokens == other.tokens).cumprod(dim=1).bool()
    comparable = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
    difference = (mine.logits - other.logits).abs().amax(dim=-1)
    return float(difference.masked_fill(~comparable, 0.0).max())


@dataclass(frozen=True)
class _Attention:
    """Attention weights of the last prompt token or of several tokens, as a method saw them."""

    asked: int
    """Layer before which the method was asked."""
    layer: int
    """Layer of the weights."""
    places: Tensor
    """Long ``[rows, tokens]``."""
    weights: Tensor
    """``[rows, heads, tokens]``; one head where there are several queries."""
    queries: Tensor | None = None
    """Boolean ``[rows, tokens]``; None for the last token."""
    heads: Heads = "mean"
    """What was taken over the heads, where there are several queries."""


@dataclass(frozen=True, kw_only=True)
class _Watched(Wrapped):
    """Notes what a method looked at in a prefill, and whether it merged tokens."""

    key: ClassVar[str] = "watched"
    rows: list[_Attention] = field(default_factory=list)
    cached: list[tuple[int, str, Tensor]] = field(default_factory=list)
    """Layers that have run, and their "keys", rotated, or "values"."""
    merges: list[int] = field(default_factory=list)

    def keep(self, view: LayerView) -> Tensor | Merge:
        def probe(layer: int) -> Tensor:
            weights = view.probe(layer)
            self.rows.append(_Attention(view.layer, layer, view.index, weights))
            return weights

        def mean_probe(layer: int, queries: Tensor, heads: Heads) -> Tensor:
            weights = view.mean_probe(layer, queries, heads)
            self.rows.append(_Attention(view.layer, layer, view.index, weights[:, None], queries, heads))
            return weights

        def rotated_key_probe(layer: int) -> Tensor:
            keys = view.rotated_key_probe(layer)
            if layer < view.layer:
                self.cached.append((layer, "keys", keys.transpose(1, 2)))
            return keys

        def value_before_probe() -> Tensor:
            values = view.value_before_probe()
            self.cached.append((view.layer - 1, "values", values.transpose(1, 2)))
            return values

        shown = replace(
            view,
            probe=probe,
            mean_probe=mean_probe,
            rotated_key_probe=rotated_key_probe,
            value_before_probe=value_before_probe,
        )
        answer = self.method.keep(shown)
        if isinstance(answer, Merge):
            self.merges.append(view.layer)
        return answer


def check_method(subject: Subject, method: Method) -> tuple[str, ...]:
    """Compare a method with what it should compute.

    Parameters
    ----------
    subject
        On what.
    method
        Bound to a model with as many layers, without a parameter to search.

    Returns
    -------
    tuple of str
        What was compared.

    Raises
    ------
    MismatchError
        If something differs.
    """
    model, inputs = subject.model, subject.inputs
    method = method.stand_in(find_anatomy(model))
    watched = _Watched(method=without_tower(method))
    with watched(model, allow_untested=True) as trace:
        cached = _generate(model, inputs)
        _check_trace(trace, inputs)
        ran = replace(trace)  # later runs leave this one alone
        rows, in_cache, merges = list(watched.rows), list(watched.cached), bool(watched.merges)
        uncached = _generate(model, inputs, use_cache=False)
        alone = _alone(model, inputs)
    layers = find_anatomy(model).num_layers
    removed = any(bool((inputs.valid & ~ran.kept(i)).any()) for i in range(layers))
    # What the last layer makes of vision tokens is read by nothing.
    changed = removed or any(i < layers - 1 for i in ran.frozen)
    effect = float((cached.logits[:, 0] - subject.plain).abs().max())
    if changed and effect <= _NOTHING * subject.scale:
        what = "tokens were removed" if removed else "layers left vision tokens as they were"
        raise MismatchError(f"the trace says that {what}, but the logits are those of the unchanged model")
    if not changed and effect > subject.tolerance:
        raise MismatchError(f"nothing was removed, but logits differ by {effect:.1e} from the unchanged model's")
    if not subject.exact and effect < _NOISE * subject.tolerance:
        return ("counts",)  # rounding hides the rest
    _close(subject, "with and without a KV cache", _difference(cached, uncached))
    for layer, what, read in in_cache:
        _check_cached(subject, layer, what, read, cached.cache)
    for row, difference in enumerate(_differences(cached, alone)):
        _close(subject, f"of row {row} alone and in a padded batch", difference)
    if merges or (method.positions == "rearrange" and _several_rotaries(model)):
        return ("counts", "cache", "padding")
    expected, weights = _oracle(
        subject.oracle,
        inputs,
        traced(ran),
        cached.tokens,
        flash=subject.flash,
        rearrange=method.positions == "rearrange",
        frozen=traced_frozen(ran),
        attention=bool(rows),
    )
    answered = (expected[:, inputs.length - 1 : -1] - cached.logits).abs().amax(dim=(0, 2))
    if bool(ran.kept(-1)[:, -1].all()):  # else the answer is read from another token
        _close(subject, "with removed and with masked tokens after the prompt", float(answered[0]))
    _close(subject, "with removed and with masked tokens while decoding", float(answered[1:].max()))
    for seen in rows:
        _check_attention(subject, ran, seen, _rows_of(weights[seen.layer], seen, inputs.length))
    kinds = sorted({what for _, what, _ in in_cache})
    return ("counts", "cache", "padding", "masking", *(["attention"] if rows else []), *kinds)


def check_search(subject: Subject) -> tuple[str, ...]:
    """Compare the search for the withdrawal layer with one run for some layers; see :func:`check_method`."""
    model, inputs = subject.model, subject.inputs
    layers = find_anatomy(model).num_layers
    with features_in(model, inputs), torch.no_grad():
        found = search_layer(model, [inputs.keywords()], start=0, allow_untested=True).per_sample
        for k in sorted({0, layers // 2, layers - 1}):
            with VTW(k=k)(model, allow_untested=True):
                logits = model(**inputs.keywords()).logits[:, -1].double()
            p, q = logits.log_softmax(dim=-1), subject.plain.double().log_softmax(dim=-1)
            expected = (p.exp() * (p - q)).sum(dim=-1).cpu()
            allowed = 1e-4 * (1 + float(expected.max())) if subject.exact else 0.1 * (1 + float(expected.max()))
            difference = float((found[:, k] - expected).abs().max())
            if not difference <= allowed:
                raise MismatchError(f"the divergence that the search finds for k={k} is off by {difference:.1e} nats")
    return ("search",)


def _check_trace(trace: Trace, inputs: Inputs) -> None:
    if trace.prefills != 1:
        raise MismatchError(f"a generation counts as {trace.prefills} prompts")
    prompt = trace.reduction.prompt if trace.reduction is not None else None
    if prompt is None or not torch.equal(prompt.valid, inputs.valid) or not torch.equal(prompt.vision, inputs.vision):
        found = "nothing" if prompt is None else f"{prompt.length} tokens"
        raise MismatchError(f"the trace is of a prompt of {found}, the prompt has {inputs.length}")


def _several_rotaries(model: PreTrainedModel) -> bool:
    """Whether layers of different kinds have position embeddings of their own: the oracle renumbers one."""
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return any(isinstance(value, dict) for value in rope.values())


@torch.no_grad()
def _oracle(
    model: PreTrainedModel,
    inputs: Inputs,
    kept: Kept,
    tokens: Tensor,
    *,
    flash: bool,
    rearrange: bool = False,
    frozen: Frozen = nothing_frozen,
    attention: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits ``[rows, tokens, vocabulary]`` of prompts and answers; attention weights of each layer if asked for."""
    with features_in(model, inputs), masked(model, kept, flash=flash, rearrange=rearrange, frozen=frozen):
        output = model(**inputs.extended(tokens), use_cache=False, output_attentions=attention)
    return output.logits.float(), output.attentions or ()


def _rows_of(weights: Tensor, seen: _Attention, length: int) -> Tensor:
    """Return what of eager attention ``[rows, heads, tokens, tokens]`` a method should have seen."""
    if seen.queries is None:
        return weights[:, :, length - 1]
    queries = torch.zeros_like(weights[:, 0, :, 0]).scatter(1, seen.places, seen.queries.to(weights))
    over = weights.mean(dim=1) if seen.heads == "mean" else weights.amax(dim=1)
    mean = (over * queries[:, :, None]).sum(dim=1) / queries.sum(dim=1).clamp(min=1)[:, None]
    return mean[:, None]


def _check_attention(subject: Subject, trace: Trace, seen: _Attention, expected: Tensor) -> None:
    mine = seen.weights
    if seen.layer == seen.asked:  # the oracle's layer hides already what the method removes here
        if trace.method.positions == "rearrange" or seen.queries is not None:
            return
        mine = mine * trace.kept(seen.layer).gather(1, seen.places)[:, None]
        mine = mine / mine.sum(dim=-1, keepdim=True)
    places = seen.places[:, None].expand_as(mine)
    difference = float((mine - expected.gather(-1, places).to(mine)).abs().max())
    if not difference <= (1e-4 if subject.exact else 0.05):
        raise MismatchError(
            f"attention weights of layer {seen.layer} differ by {difference:.1e} from those of eager attention"
        )


def _check_cached(subject: Subject, layer: int, what: str, read: Tensor, cache: Any) -> None:
    """Compare keys or values that a method saw, ``[rows, key heads, tokens, head]``, with the layer's KV cache."""
    held = getattr(cache.layers[layer], what)[:, :, : read.shape[2]]
    if held.shape == read.shape:  # a sliding window has thrown some away
        difference, scale = float((held - read).abs().max()), float(held.abs().max())
        if not difference <= (1e-4 if subject.exact else 0.05) * scale:
            raise MismatchError(f"{what} of layer {layer} differ by {difference:.1e} from those in its KV cache")


def _close(subject: Subject, what: str, difference: float) -> None:
    if not difference <= subject.tolerance:  # NaN is none either
        raise MismatchError(f"logits {what} differ by {difference:.1e} (of {subject.scale:.1e})")
