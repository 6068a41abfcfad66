"""How transformers calls a decoder and its layers: the one place that knows names which releases have changed.

What can be found by what it is (a ``Cache`` among the arguments) is found so, whatever it is called; what cannot must
stand under its name, or the pass is refused.

=======  ==============================================================================================================
release  what changed, and what meets it here
=======  ==============================================================================================================
5.21     Video-LLaVA's ``pixel_values_images`` became ``pixel_values``: inputs are passed on as the processor names them
5.23     layers wrap ``forward`` for activation checkpointing, not ``__call__``: signatures are read through the wrapper
5.24     ``past_key_values`` became ``cache`` in models, decoders, layers and outputs; the old name still works, but
         inside ``forward``, after our hooks: :func:`cache_of`, :func:`cache_of_output`, :func:`with_cache`
5.24     "gradient checkpointing" became "activation checkpointing": :func:`is_checkpointing`
5.40     (announced) ``past_key_values`` is swallowed by ``**kwargs`` and ignored: :func:`with_cache` asks the signature
6.0      (announced) ``gradient_checkpointing`` goes: :func:`is_checkpointing` refuses a model that has no such switch
=======  ==============================================================================================================
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from vtw_eval.versions import UpstreamChangedError

CACHE_NAMES = ("cache", "past_key_values", "past_key_value")
"""What the KV cache has been called, the newest first."""

MASK, EMBEDDINGS, POSITIONS = PER_LAYER = ("attention_mask", "position_embeddings", "position_ids")
"""What every decoder layer gets of the whole prompt."""

SHARED = "shared_kv_states"
"""Under which name layers get the keys and values of others, by kind of layer, and leave their own."""


def changed(what: str) -> UpstreamChangedError:
    """Return the error for a transformers that does not do what the engine relies on."""
    return UpstreamChangedError(what, "transformers", "torch")


@functools.lru_cache(maxsize=256)
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a module's ``forward`` by name, without ``self``."""
    # That of the class, because a bound method is another object each time; what stands on the instance goes first.
    own = module.__dict__.get("forward")
    if own is not None:
        return _signature(own).parameters
    found = dict(_signature(type(module).forward).parameters)
    found.pop(next(iter(found), ""), None)
    return found


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name.

    Raises
    ------
    UpstreamChangedError
        If positional arguments have no names.
    """
    if not args:
        return dict(kwargs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in parameters(module).items() if parameter.kind in kinds]
    if len(names) < len(args):
        raise changed(f"{type(module).__name__} is called with positional arguments that its forward does not name")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def entering(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return the hidden states that enter a decoder layer and its other arguments by name."""
    named = by_name(layer, args, kwargs)
    hidden = named.pop("hidden_states") if not args else named.pop(next(iter(named)))
    return hidden, named


def layer_output(output: Any) -> Tensor:
    """Return the hidden states among what a decoder layer returns."""
    return output[0] if isinstance(output, tuple) else output


def cache_of(arguments: Mapping[str, Any]) -> Cache | None:
    """Return the KV cache among the arguments of a model, decoder or layer.

    Raises
    ------
    TypeError
        If something else than a transformers ``Cache`` stands under a cache's name.
    UpstreamChangedError
        If there are several.
    """
    name = cache_name(arguments)
    return None if name is None else arguments[name]


def cache_name(arguments: Mapping[str, Any]) -> str | None:
    """Return the name under which a KV cache is passed, None without one; see :func:`cache_of`."""
    names = [name for name, value in arguments.items() if isinstance(value, Cache)]
    if len({id(arguments[name]) for name in names}) > 1:
        raise changed(f"there are several KV caches among the arguments: {', '.join(names)}")
    if names:
        return names[0]
    for name in CACHE_NAMES:
        if arguments.get(name) is not None:
            kind = type(arguments[name]).__name__
            raise TypeError(f"cannot remove tokens from a KV cache of type {kind}: pass a transformers Cache.")
    return None


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without a KV cache and without the wish for one."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in CACHE_NAMES and name != "use_cache" and not isinstance(value, Cache)
    }


def with_cache(module: nn.Module, arguments: Mapping[str, Any], cache: Cache) -> dict[str, Any]:
    """Return the arguments with this KV cache in place of any other, under the name that the module knows.

    Parameters
    ----------
    module
        What will be called with them.
    arguments
        By name.
    cache
        The cache.

    Raises
    ------
    UpstreamChangedError
        If the module's ``forward`` has no parameter of a known name, so that the cache would be ignored.
    """
    given = cache_name(arguments)
    known = parameters(module)
    name = next((name for name in (given, *CACHE_NAMES) if name in known), None)
    if name is None:
        raise changed(f"{type(module).__name__} takes its KV cache under none of the names {', '.join(CACHE_NAMES)}")
    kept = {n: v for n, v in arguments.items() if n not in CACHE_NAMES and not isinstance(v, Cache)}
    return {**kept, name: cache}


def cache_of_output(output: Any) -> Cache | None:
    """Return the KV cache that a model or decoder gives back, None without one."""
    values = list(output.values()) if hasattr(output, "values") else output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


def check_layer_call(layer: int, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`~vtw_eval.versions.UpstreamChangedError` unless a layer gets its mask and positions by name."""
    if MASK not in arguments or (EMBEDDINGS not in arguments and POSITIONS not in arguments):
        raise changed(
            f"decoder layer {layer} is called with {', '.join(arguments) or 'nothing'}, but {MASK} and "
            f"{EMBEDDINGS} or {POSITIONS} are needed by name"
        )


def check_embeddings(embeddings: Any, rows: int, queries: int) -> None:
    """Check that position embeddings are cos and sin of ``[..., 1 or rows, queries, width]``.

    Raises
    ------
    UpstreamChangedError
        If they are not.
    """
    parts = embeddings if isinstance(embeddings, tuple | list) else ()
    if len(parts) == 2 and all(
        isinstance(p, Tensor) and p.ndim >= 3 and p.shape[-2] == queries and p.shape[-3] in (1, rows) for p in parts
    ):
        return
    found = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts] or type(embeddings).__name__
    raise changed(
        f"decoder layers get {EMBEDDINGS} of shape {found}, not cos and sin of [1 or {rows}, {queries}, width]"
    )


def is_checkpointing(model: nn.Module, decoder: nn.Module) -> bool:
    """Whether activations are not kept but computed again in the backward pass.

    Raises
    ------
    UpstreamChangedError
        If the model has no switch of a known name, so that nobody can tell.
    """
    parts = [decoder, *decoder.children(), *getattr(decoder, "layers", ())]
    if any(getattr(part, name, False) for part in parts for name in _SWITCHES):
        return True
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    if isinstance(model, PreTrainedModel):
        raise changed("models do not tell whether they checkpoint activations")
    return False


_SWITCHES = ("activation_checkpointing", "gradient_checkpointing")
