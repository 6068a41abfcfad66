"""What a vision tower did in a pass: noted while it runs, for the layers that the method looks at."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vtw_eval.anatomy import Tower
from vtw_eval.engine.calls import by_name, changed

FEATURES = {"image": "get_image_features", "video": "get_video_features"}
"""The functions of a model that run its tower, by what they show it."""


@dataclass
class TowerCall:
    """One run of a tower."""

    kind: str
    """"image" or "video"."""
    features: Callable[..., Any]
    """The model's own function, which runs the tower and packs its output."""
    arguments: dict[str, Any]
    """What it was called with, by name."""
    which: int = -1
    """Which of the model's towers ran."""
    states: dict[int, Tensor] = field(default_factory=dict)
    """Hidden states by number: those that enter the layer of that number, the last ones leave the last layer."""
    options: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """The other arguments of a layer, by its number."""


class TowerRecorder:
    """Notes what enters the layers of a tower that a method looks at.

    Parameters
    ----------
    tower
        The tower.
    layers
        Layers as a method names them: the hidden states of that number, and the attention of that layer, are kept.
        Negative numbers count from the end, as in ``vision_feature_layer`` of transformers.
    """

    def __init__(self, tower: Tower, layers: Iterable[int]) -> None:
        self.tower = tower
        wanted = {number for layer in layers for number in _numbers(layer, tower.num_layers)}
        self.wanted = frozenset(wanted)
        self.calls: dict[str, TowerCall] = {}
        """The last run for each kind."""
        self.running: TowerCall | None = None
        self.repeating = False
        """Whether the functions run again to pack what is not the tower's output."""

    def register(self) -> Iterator[Any]:
        """Register the hooks, yielding their handles."""
        for which, layers in enumerate(self.tower.layers):
            for number in self.wanted - {len(layers)}:
                hook = functools.partial(self._before_layer, which, number)
                yield layers[number].register_forward_pre_hook(hook, with_kwargs=True)
            if len(layers) in self.wanted:
                yield layers[-1].register_forward_hook(functools.partial(self._after_last, which))

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return what takes the place of the model's own functions."""
        owner = self.tower.owner
        return {
            name: self._noted(kind, getattr(owner, name)) for kind, name in FEATURES.items() if hasattr(owner, name)
        }

    def forget(self) -> None:
        """Drop what was noted."""
        self.calls = {}

    def _noted(self, kind: str, features: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(features)

        @functools.wraps(features)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if self.repeating or self.running is not None:  # a video that is run as images
                return features(*args, **kwargs)
            bound = dict(signature.bind(*args, **kwargs).arguments)
            more = bound.pop("kwargs", {})
            self.running = TowerCall(kind, features, {**bound, **more})
            try:
                output = features(*args, **kwargs)
            finally:
                call, self.running = self.running, None
            self.calls[kind] = call
            return output

        return noted

    def _before_layer(
        self, which: int, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.running is not None:
            named = by_name(module, args, kwargs)
            hidden = named.pop("hidden_states")
            self.running.options[number] = named
            self._note(which, number, hidden)

    def _after_last(self, which: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.running is not None:
            self._note(which, len(self.tower.layers[which]), output[0] if isinstance(output, tuple) else output)

    def _note(self, which: int, number: int, hidden: Tensor) -> None:
        assert self.running is not None
        if number in self.running.states:
            raise changed("a layer of the vision tower runs twice for one call of the tower")
        self.running.which = which
        self.running.states[number] = hidden.detach()


def _numbers(layer: int, layers: int) -> set[int]:
    """Return the states to keep so that hidden states of a number, and the attention of that layer, can be told."""
    states = state_number(layer, layers)
    return {states} if layer in (layers, -layers - 1) else {states, layer_number(layer, layers)}


def state_number(layer: int, layers: int) -> int:
    """Return which hidden states a layer number of transformers means: 0..layers, before the first to after the last.

    Raises
    ------
    ValueError
        If there are none.
    """
    number = layer if layer >= 0 else layers + 1 + layer
    if not 0 <= number <= layers:
        raise ValueError(f"tower layer {layer} is out of range: this tower has {layers} layers.")
    return number


def layer_number(layer: int, layers: int) -> int:
    """Return the index of a tower layer, negative numbers counted from the end.

    Raises
    ------
    ValueError
        If there is none.
    """
    number = layer if layer >= 0 else layers + layer
    if not 0 <= number < max(layers, 1):
        raise ValueError(f"tower layer {layer} is out of range: this tower has {layers} layers.")
    return number
