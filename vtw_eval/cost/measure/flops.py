"""FLOPs counted in a forward pass, by two independent counters, and the bytes of a KV cache.

fvcore reads the graph that ``torch.jit`` traces; torch's own counter sees the kernels that run. Both count matrix
products, convolutions and attention, and nothing else: norms, activations, softmax, rotary embedding, masks and moves
of data are left out, as in the closed forms. A multiply-add is two FLOPs. Attention is counted for all pairs of a query
and a key, masked or not, which is what eager attention and the kernels for masks compute.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.measure.fvcore_trace import Tracing, analysis_of, check_fvcore
from vtw_eval.cost.measure.torch_counter import check_counter, flop_counter
from vtw_eval.versions import UpstreamChangedError

_TOWERS = frozenset({"image_tower", "video_tower", "vision_model", "vision_tower", "visual"})
_PROJECTORS = frozenset({"connector", "deepstack_merger_list", "merger", "mlp1", "multi_modal_projector"})

_OTHER_AT_MOST = 0.01
"""Share of the FLOPs that may belong to no part: products of positions and masks. No tested family has any."""

_WHOLE = VISION, PROJECTOR, HEAD, METHOD = "vision", "projector", "head", "method"


@dataclass(frozen=True)
class MeasuredFlops:
    """FLOPs of one forward pass over a batch, by part of the model."""

    counter: str
    """Who counted: "fvcore" or "torch"."""
    vision: int
    """Vision tower."""
    projector: int
    """Projector, connector or merger."""
    layers: tuple[int, ...]
    """Decoder layers, with their attention."""
    head: int
    """Language-modelling head."""
    method: int
    """What the installed method computes of its own before the layers: scores, similarities, gates."""
    other: int
    """Anything else; fvcore does not look there."""
    operators: Mapping[str, int] = field(repr=False)
    """FLOPs by operator, in the counter's own names."""
    uncounted: Mapping[str, int] = field(repr=False)
    """How often fvcore met operators that have no FLOPs here, elementwise ones most of all; empty for torch."""

    @property
    def total(self) -> int:
        """All of it."""
        parts = self.vision + self.projector + self.head + self.method + self.other
        return parts + sum(self.layers)

    @property
    def decoder(self) -> int:
        """Decoder layers and head."""
        return sum(self.layers) + self.head


def fvcore_flops(
    model: PreTrainedModel, inputs: Mapping[str, Any], *, call: Callable[..., Any] | None = None
) -> MeasuredFlops:
    """Count the FLOPs of ``model(**inputs)`` with fvcore.

    fvcore knows no scaled_dot_product_attention (it would count as zero), no baddbmm and no convolution with named
    padding, rounds the count of an einsum to four digits and takes no account of broadcasting in matmul: these have
    handles here. It counts multiply-adds; the result is FLOPs.

    Parameters
    ----------
    model
        A transformers vision-language model, with a method installed or not, on any device (also "meta").
    inputs
        Its keywords. A KV cache among them makes a decode step; it is copied, so the caller's stays as it is.
    call
        A method of the model to run instead, such as ``model.get_image_features``.

    Returns
    -------
    MeasuredFlops
        Of the whole batch, padding included.

    Raises
    ------
    ValueError
        If the model does not tell its language-model head (OpenGVLab's remote code).
    UpstreamChangedError
        If fvcore and torch do not understand each other, or a module with weights runs outside of all parts.
    """
    check_fvcore()
    inputs = {name: _own(value) for name, value in inputs.items()}
    names = _names(model)

    def run() -> None:
        with Tracing() as tracing, _parts(model, tracing.enter, tracing.leave):
            (call or model)(**inputs)

    analysis = analysis_of(run, names)
    with torch.no_grad(), _without_gradients(model):
        counted = analysis.by_module()
    found = {name: 2 * int(counted[f"part.{name}"]) for name in names}
    return _measured(
        "fvcore",
        found,
        2 * int(counted[""]),
        {name: 2 * int(flops) for name, flops in analysis.by_operator().items()},
        dict(analysis.unsupported_ops()),
    )


def torch_flops(
    model: PreTrainedModel, inputs: Mapping[str, Any], *, call: Callable[..., Any] | None = None
) -> MeasuredFlops:
    """Count the FLOPs of ``model(**inputs)`` with torch's own :class:`torch.utils.flop_counter.FlopCounterMode`.

    Parameters
    ----------
    model, inputs, call
        As in :func:`fvcore_flops`.

    Raises
    ------
    UpstreamChangedError
        If attention ran that torch counts as 0, or more than a hundredth of the FLOPs belong to no part.
    """
    inputs = {name: _own(value) for name, value in inputs.items()}
    inside: list[str] = []
    found = dict.fromkeys(_names(model), 0)
    between: dict[str, int] = {}
    before, last = 0, "the beginning"

    def account() -> None:
        nonlocal before, last
        now = counter.get_total_flops()
        if inside:
            last = inside[-1]
            found[last] += now - before
        elif now > before:
            between[f"after {last}"] = between.get(f"after {last}", 0) + now - before
        before = now

    def enter(part: str) -> None:
        account()
        inside.append(part)

    def leave() -> None:
        account()
        inside.pop()

    check_counter(str(model.device), model.dtype)
    with torch.no_grad(), flop_counter() as counter, _parts(model, enter, leave):
        (call or model)(**inputs)
        account()
    if sum(between.values()) > _OTHER_AT_MOST * before:
        raise UpstreamChangedError(
            f"torch counts {', '.join(f'{flops} FLOPs {where}' for where, flops in between.items())} that belong to "
            f"no part of {type(model).__name__}",
            "transformers",
            "torch",
        )
    operators = {str(operator): flops for operator, flops in counter.get_flop_counts().get("Global", {}).items()}
    return _measured("torch", found, counter.get_total_flops(), operators, {})


def cache_bytes(cache: Any) -> list[int]:
    """Return the bytes of keys and values that each layer of a transformers ``Cache`` really holds.

    Parameters
    ----------
    cache
        The cache after a prefill or any number of decode steps.

    Returns
    -------
    list of int
        Bytes per layer, over all rows. A layer that has not run holds 0. A sliding-window layer holds no more than its
        window, a static one its whole buffer.
    """
    return [
        sum(states.nbytes for states in (layer.keys, layer.values)) if layer.is_initialized else 0
        for layer in cache.layers
    ]


def _measured(
    counter: str, found: Mapping[str, int], total: int, operators: Mapping[str, int], uncounted: Mapping[str, int]
) -> MeasuredFlops:
    return MeasuredFlops(
        counter=counter,
        vision=found[VISION],
        projector=found[PROJECTOR],
        layers=tuple(flops for name, flops in found.items() if name not in _WHOLE),
        head=found[HEAD],
        method=found[METHOD],
        other=total - sum(found.values()),
        operators=operators,
        uncounted=uncounted,
    )


# --- parts of a model


def _layer(i: int) -> str:
    return f"layer{i}"


def _names(model: PreTrainedModel) -> list[str]:
    return [*_WHOLE, *(_layer(i) for i in range(find_anatomy(model).num_layers))]


@contextmanager
def _parts(model: PreTrainedModel, enter: Callable[[str], None], leave: Callable[[], None]) -> Iterator[None]:
    """Call ``enter(part)`` and ``leave()`` around each part of a model while it runs.

    Raises
    ------
    UpstreamChangedError
        If a module with a weight matrix runs outside of all parts: fvcore would not count it.
    """
    anatomy = find_anatomy(model)
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} does not tell its head: get_output_embeddings() returns None.")
    inner = set(anatomy.decoder.modules())
    handles: list[Any] = []
    around: list[Any] = []
    strays: set[str] = set()
    depth = 0

    def begin(part: str) -> None:
        nonlocal depth
        depth += 1
        enter(part)

    def end() -> None:
        nonlocal depth
        depth -= 1
        leave()

    def surround(module: nn.Module, part: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: begin(part)))
        handles.append(module.register_forward_hook(lambda *_: end()))

    def switch(part: str, *_: Any) -> None:
        end()
        begin(part)

    def note(name: str, *_: Any) -> None:
        if not depth:
            strays.add(name)

    def before_layers(*_: Any) -> None:
        """Surround each layer and what a method computes before it, which is a hook that may have come just now."""
        end()
        while around:
            around.pop().remove()
        for i, layer in enumerate(anatomy.layers):
            around.append(layer.register_forward_pre_hook(lambda *_: begin(METHOD), prepend=True))
            around.append(layer.register_forward_pre_hook(functools.partial(switch, _layer(i))))
            around.append(layer.register_forward_hook(lambda *_: end()))

    try:
        for name, module in model.named_modules():
            last = name.split(".")[-2:]
            if module in inner or isinstance(module, nn.ModuleList):
                continue
            if last[-1] in _TOWERS:
                surround(module, VISION)
            elif last[-1] in _PROJECTORS or last[0] == "deepstack_merger_list":
                surround(module, PROJECTOR)
        # What a method computes before the first layer stands between these two.
        handles.append(anatomy.decoder.register_forward_pre_hook(lambda *_: begin(METHOD), prepend=True))
        handles.append(anatomy.decoder.register_forward_pre_hook(before_layers))
        surround(head, HEAD)
        for name, module in model.named_modules():  # after the parts, so that theirs begin before their own weights
            if _multiplies(module):
                handles.append(module.register_forward_pre_hook(functools.partial(note, name)))
        with torch.compiler.set_stance("force_eager"):  # compiled code would run without these hooks
            yield
    finally:
        for handle in (*handles, *around):
            handle.remove()
    if strays:
        raise UpstreamChangedError(
            f"{', '.join(sorted(strays))} of {type(model).__name__} belongs to no part whose FLOPs are counted (the "
            f"parts are a vision tower, a projector, the decoder's layers and the head, found by their names)",
            "transformers",
        )


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has weights that it multiplies with, and does not look up."""
    weights = module.parameters(recurse=False)
    return not isinstance(module, nn.Embedding) and any(weight.ndim > 1 for weight in weights)


@contextmanager
def _without_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Let parameters need no gradient for a while: a trace takes them for constants."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learnt:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)


def _own(value: Any) -> Any:
    """Copy what a forward pass changes: the cache."""
    return value if isinstance(value, Tensor) else copy.deepcopy(value)
