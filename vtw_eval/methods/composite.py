"""Several methods on one model, as in ``fastv+vtw``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reducer
from vtw_eval.methods.base import LayerSearch, Method, Position
from vtw_eval.methods.baseline import Baseline
from vtw_eval.methods.downsample import Downsample
from vtw_eval.methods.dyvte.method import DyVTE
from vtw_eval.methods.fastv import FastV
from vtw_eval.methods.pyramiddrop import PyramidDrop
from vtw_eval.methods.rand import Rand
from vtw_eval.methods.random_k import RandomK
from vtw_eval.methods.random_vision import RandomVision
from vtw_eval.methods.tome import ToMe
from vtw_eval.methods.vtw.method import VTW

AnyReducer = TypeVar("AnyReducer", bound=Reducer)


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """Methods that work one after another; a token stays where all that are asked at a layer keep it.

    Parameters
    ----------
    parts
        Two or more different methods.
    """

    key: ClassVar[str] = "+"

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        keys = [part.key for part in self.parts]
        if len(keys) < 2 or len(set(keys)) < len(keys):
            raise ValueError(f"a composition needs two or more different methods, not {'+'.join(keys)!r}.")
        if len({part.positions for part in self.parts}) > 1:
            raise ValueError(f"{'+'.join(keys)}: all parts must keep positions, or all rearrange them.")
        if Baseline.key in keys:
            rest = "+".join(key for key in keys if key != Baseline.key)
            raise ValueError(f"{'+'.join(keys)}: baseline is the unchanged model and adds nothing to {rest}.")

    @property
    def positions(self) -> Position:
        """What all parts do."""
        return self.parts[0].positions

    @property
    def looks_back(self) -> bool:
        """Whether any part does."""
        return any(part.looks_back for part in self.parts)

    @property
    def plans_ahead(self) -> bool:
        """Whether all parts do."""
        return all(part.plans_ahead for part in self.parts)

    def bind(self, anatomy: Anatomy) -> Composite:
        """Bind all parts, and check that none of them comes when no vision token is left for it.

        Raises
        ------
        ValueError
            If a part is impossible for this model, or would do nothing because of another one.
        """
        bound = replace(self, parts=tuple(part.bind(anatomy) for part in self.parts))
        bound.check_order(anatomy.num_layers)
        return bound

    def check_order(self, num_layers: int) -> None:
        """Check that no part, all of them bound, comes when no vision token is left for it.

        Raises
        ------
        ValueError
            If one does.
        """
        placed = [part for part in self.parts if part.search is None]  # where the others act is not known yet
        for last in placed:
            empty = _empty_from(last, num_layers)
            for part in placed:
                layers = part.layers(num_layers) if isinstance(part, _ON_VISION) and part is not last else ()
                # Rand draws text tokens as well, so that at the same layer it still does something.
                if layers and min(layers) >= empty + isinstance(part, Rand):
                    raise ValueError(
                        f"{'+'.join(p.key for p in self.parts)}: {part.key} begins before layer {min(layers)}, but "
                        f"{last.key} leaves no vision token from layer {empty} on, so that {part.key} would do "
                        f"nothing: give it an earlier layer or leave it out."
                    )

    def stand_in(self, anatomy: Anatomy) -> Composite:
        """Replace what was trained in all parts."""
        return replace(self, parts=tuple(part.stand_in(anatomy) for part in self.parts))

    @property
    def search(self) -> LayerSearch | None:
        """The search of the part that has one."""
        return next((part.search for part in self.parts if part.search is not None), None)

    def found(self, k: int) -> Composite:
        """Tell that part what was found."""
        return replace(self, parts=tuple(part if part.search is None else part.found(k) for part in self.parts))

    def layers(self, num_layers: int) -> Sequence[int]:
        """Each layer that a part names."""
        return sorted({layer for part in self.parts for layer in part.layers(num_layers)})

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Keep what every part that names this layer keeps."""
        keep, merge = view.valid, None
        for part in self.parts:
            if view.layer not in part.layers(view.num_layers):
                continue
            answer = part.keep(view)
            if isinstance(answer, Merge):
                if merge is not None:
                    raise ValueError(f"two parts of {self} merge tokens at layer {view.layer}.")
                merge, answer = answer, answer.keep
            keep = keep & answer
        return keep if merge is None else replace(merge, keep=keep)

    def params(self) -> Mapping[str, Any]:
        """Parameters as ``method.parameter``."""
        return {f"{part.key}.{name}": value for part in self.parts for name, value in part.params().items()}

    def __str__(self) -> str:
        names = "+".join(part.key for part in self.parts)
        return ",".join([names, *(f"{name}={value}" for name, value in self.params().items() if value is not None)])


_ON_VISION = (DyVTE, Downsample, FastV, PyramidDrop, Rand, RandomK, RandomVision, ToMe, VTW)
"""Methods that do nothing where there is no vision token; of others that is not known."""


def _empty_from(part: Method, num_layers: int) -> int:
    """Return the first layer that no vision token enters whatever the prompt is; ``num_layers`` if there is none."""
    if isinstance(part, VTW) and isinstance(part.k, int):
        return part.k
    if isinstance(part, RandomK) and part.high is not None:
        return part.high
    if isinstance(part, FastV | RandomVision | PyramidDrop) and part.r == 1:
        return min(part.layers(num_layers), default=num_layers)
    return num_layers


def parts_of(method: AnyReducer) -> tuple[AnyReducer | Method, ...]:
    """Return the methods that work one after another: the parts of a composition, or a method alone."""
    return method.parts if isinstance(method, Composite) else (method,)
