"""Wrapped and compiled models: what is put on a model must run, whoever calls it.

A hook does not run where somebody calls ``forward`` itself (PEFT's models do) or where ``torch.compile`` has traced a
module before the hook was there. So the model's own ``forward`` and ``generate`` are replaced for the length of a
block, and what was compiled runs uncompiled in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced(module: nn.Module, functions: Mapping[str, Forward]) -> Iterator[None]:
    """Replace methods of one module for the length of a ``with`` block, whoever calls them and however.

    Parameters
    ----------
    module
        The module.
    functions
        What stands in their place, by name; each with the signature of what it replaces (``functools.wraps``).
    """
    before = {name: module.__dict__[name] for name in functions if name in module.__dict__}
    for name, function in functions.items():
        module.__dict__[name] = function
    try:
        yield
    finally:
        for name in functions:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)


def compiled_inside(decoder: nn.Module, layers: tuple[nn.Module, ...]) -> bool:
    """Whether decoder layers, but nothing around them, were compiled each for itself."""
    return not is_compiled(decoder) and any(is_compiled(part) for layer in layers for part in layer.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to a module, in one of the three ways that there are."""
    own = module.__dict__
    return (
        any(name == "_orig_mod" for name, _ in module.named_children())  # torch.compile(module)
        or own.get("_compiled_call_impl") is not None  # module.compile()
        or hasattr(own.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(module.forward)
    )


def uncompiled(decoder: nn.Module, layers: tuple[nn.Module, ...]) -> AbstractContextManager[Any]:
    """Return a context in which compiled code runs as it was written, hooks included.

    Compiled code that was traced before a hook was there does not know it, and nobody can tell from a model whether a
    compiled function holds it. Decoder layers that were compiled one by one stay compiled: their hooks are outside.
    """
    if compiled_inside(decoder, layers):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
