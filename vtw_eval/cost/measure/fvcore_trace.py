"""What fvcore needs to count a model of transformers: a trace of its parts only, and operators that it does not know.

fvcore's last release is of 2022 and reads the graph that ``torch.jit`` makes; the state of a trace is torch's own
affair (``torch._C``). :func:`check_fvcore` finds out whether the two still understand each other.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtw_eval.importing import importing
from vtw_eval.versions import UpstreamChangedError

with warnings.catch_warnings(), importing("fvcore"):
    warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)  # of a loss that nobody asked for
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_jit, get_shape, linear_flop_jit


class Traced(nn.Module):
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
            if node.kind() in HANDLES:
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


class Tracing:
    """Traces the parts of a model only.

    Between them models build masks with vmap and cut images by Python arithmetic on sizes, both of which fail in a
    trace, and compute nothing that counts (torch's counter, which sees everything, tells that in ``other``).
    """

    def __enter__(self) -> Tracing:
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


HANDLES: Mapping[str, Callable[[list[Any], list[Any]], Any]] = {
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


def analysis_of(run: Callable[[], None], parts: Sequence[str]) -> FlopCountAnalysis:
    """Return fvcore's analysis of a call that marks its parts with a :class:`Tracing`; modules are ``part.NAME``."""
    analysis = FlopCountAnalysis(Traced(run, parts), (torch.zeros(()),))
    analysis.clear_op_handles().set_op_handle(**HANDLES)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)  # told in `uncounted`


@functools.cache
def check_fvcore() -> None:
    """Count products whose FLOPs are known, in a part of a trace and outside of it.

    Raises
    ------
    UpstreamChangedError
        If fvcore cannot be used with this torch, or counts something else.
    """
    x, weight, query = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(1, 2, 3, 4)
    expected = 3 * 4 * 5 + 2 * 3 * 3 * (4 + 4)

    def run() -> None:
        with Tracing() as tracing:
            x @ weight.T  # outside of all parts
            tracing.enter("a")
            nn.functional.linear(x, weight)
            nn.functional.scaled_dot_product_attention(query, query, query)
            tracing.leave()

    try:
        with torch.no_grad():
            found = dict(analysis_of(run, ["a", "b"]).by_module())
    except Exception as error:  # whatever torch.jit or fvcore raise
        reason = f"{type(error).__name__}: {error}"
        raise UpstreamChangedError(f"fvcore cannot read a trace of this torch ({reason})", "fvcore", "torch") from error
    if (found.get("part.a"), found.get("part.b"), found.get("")) != (expected, 0, expected):
        raise UpstreamChangedError(f"fvcore counts {found} instead of {expected} multiply-adds", "fvcore", "torch")
