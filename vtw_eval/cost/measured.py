"""FLOPs counted in a forward pass, by two independent counters, and the bytes of a KV cache.

fvcore reads the graph that ``torch.jit`` traces; torch's own counter sees the kernels that run. Both count matrix
products, convolutions and attention, and nothing else: norms, activations, softmax, rotary embedding, masks and moves
of data are left out, as in the closed forms. A multiply-add is two FLOPs. Attention is counted for all pairs of a query
and a key, masked or not, which is what eager attention and the kernels for masks compute.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_jit, get_shape, linear_flop_jit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from vtw_eval.anatomy import find_anatomy

_TOWERS = frozenset({"image_tower", "video_tower", "vision_model", "vision_tower", "visual"})
_PROJECTORS = frozenset({"connector", "deepstack_merger_list", "merger", "mlp1", "multi_modal_projector"})

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
    """
    inputs = {name: _own(value) for name, value in inputs.items()}
    names = _names(model)

    def run() -> None:
        with _Tracing() as tracing, _parts(model, tracing.enter, tracing.leave):
            (call or model)(**inputs)

    analysis = FlopCountAnalysis(_Traced(run, names), (torch.zeros(()),))
    analysis.clear_op_handles().set_op_handle(**_HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)  # told in `uncounted`
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
    """
    inputs = {name: _own(value) for name, value in inputs.items()}
    counter = FlopCounterMode(display=False)
    inside: list[str] = []
    found = dict.fromkeys(_names(model), 0)
    before = 0

    def account() -> None:
        nonlocal before
        now = counter.get_total_flops()
        if inside:
            found[inside[-1]] += now - before
        before = now

    def enter(part: str) -> None:
        account()
        inside.append(part)

    def leave() -> None:
        account()
        inside.pop()

    with torch.no_grad(), counter, _parts(model, enter, leave):
        (call or model)(**inputs)
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
    """Call ``enter(part)`` and ``leave()`` around each part of a model while it runs."""
    anatomy = find_anatomy(model)
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} does not tell its head: get_output_embeddings() returns None.")
    inner = set(anatomy.decoder.modules())
    handles: list[Any] = []
    around: list[Any] = []

    def surround(module: nn.Module, part: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda *_: enter(part)))
        handles.append(module.register_forward_hook(lambda *_: leave()))

    def switch(part: str, *_: Any) -> None:
        leave()
        enter(part)

    def before_layers(*_: Any) -> None:
        """Surround each layer and what a method computes before it, which is a hook that may have come just now."""
        while around:
            around.pop().remove()
        for i, layer in enumerate(anatomy.layers):
            around.append(layer.register_forward_pre_hook(lambda *_: enter(METHOD), prepend=True))
            around.append(layer.register_forward_pre_hook(functools.partial(switch, _layer(i))))
            around.append(layer.register_forward_hook(lambda *_: leave()))

    try:
        for name, module in model.named_modules():
            last = name.split(".")[-2:]
            if module in inner or isinstance(module, nn.ModuleList):
                continue
            if last[-1] in _TOWERS:
                surround(module, VISION)
            elif last[-1] in _PROJECTORS or last[0] == "deepstack_merger_list":
                surround(module, PROJECTOR)
        handles.append(anatomy.decoder.register_forward_pre_hook(before_layers))
        surround(head, HEAD)
        yield
    finally:
        for handle in (*handles, *around):
            handle.remove()


# --- fvcore


class _Traced(nn.Module):
    """What fvcore traces: a call without arguments, with one empty module per part for fvcore to know its name.

    The model is not a submodule, so that fvcore leaves its modules alone: it marks the end of a module by a hook, which
    is not called where the engine stops a layer at its attention to look at queries and keys.
    """

    def __init__(self, run: Callable[[], None], parts: Sequence[str]) -> None:
        super().__init__()
        self.run = run
        self.part = nn.ModuleDict({name: nn.Identity() for name in parts})

    def forward(self, anything: Tensor) -> Tensor:
        """Make the call; a trace needs a tensor to begin and to end with."""
        self.run()
        graph = torch._C._get_tracing_state().graph()
        # What leads to no result would be taken out of the graph, such as a gate that lets the tokens stay.
        for node in _nodes(graph):
            if node.kind() in _HANDLES:
                graph.registerOutput(node.output())
        return anything + 0


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph; each scope is a node with a block of its own."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _trace_into(state: Any) -> None:
    torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


class _Tracing:
    """Traces the parts of a model only.

    Between them models build masks with vmap and cut images by Python arithmetic on sizes, both of which fail in a
    trace, and compute nothing that counts (torch's counter, which sees everything, tells that in ``other``).
    """

    def __enter__(self) -> _Tracing:
        self.state = torch._C._get_tracing_state()
        self.inside = 0
        _trace_into(None)
        return self

    def __exit__(self, *_: object) -> None:
        _trace_into(self.state)

    def enter(self, part: str) -> None:
        """Begin to trace a part."""
        _trace_into(self.state)
        self.state.push_scope(f"part.{part}")
        self.inside += 1

    def leave(self) -> None:
        """End it."""
        self.state.pop_scope()
        self.inside -= 1
        if not self.inside:
            _trace_into(None)


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a matmul: each entry of the result is a sum along the last axis of the first factor."""
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a convolution whose padding has a name: each entry of the result needs one filter."""
    return math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[1:])


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    return _product(inputs[1:], outputs)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of scaled_dot_product_attention: queries by keys, weights by values, all pairs."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of an einsum of two factors: one per combination of its indices."""
    shapes = [get_shape(tensor) for tensor in inputs[1].node().inputs()]
    letters = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    if len(shapes) != 2 or "." in "".join(letters):
        raise NotImplementedError(f"einsum of {inputs[0].toIValue()!r} cannot be counted.")
    sizes: dict[str, int] = {}
    for term, shape in zip(letters, shapes, strict=True):
        sizes |= zip(term, shape, strict=True)
    return math.prod(sizes.values())


_HANDLES: Mapping[str, Callable[[list[Any], list[Any]], Any]] = {
    "aten::_convolution": conv_flop_jit,
    "aten::_convolution_mode": _convolution,
    "aten::addmm": addmm_flop_jit,
    "aten::baddbmm": _added_product,
    "aten::bmm": bmm_flop_jit,
    "aten::einsum": _einsum,
    "aten::linear": linear_flop_jit,
    "aten::matmul": _product,
    "aten::mm": _product,
    "aten::scaled_dot_product_attention": _attention,
}


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
