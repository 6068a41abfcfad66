"""Several methods on one model, as in ``fastv+vtw``."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Merge, Reads, Reducer
from vtw_eval.methods.base import LayerSearch, Method, MetricSearch, Position
from vtw_eval.methods.baseline import Baseline

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
        keys = [part.name for part in self.parts]
        if len(keys) < 2 or len(set(keys)) < len(keys):
            raise ValueError(f"a composition needs two or more different methods, not {'+'.join(keys)!r}.")
        if len({part.positions for part in self.parts}) > 1:
            raise ValueError(f"{'+'.join(keys)}: all parts must keep positions, or all rearrange them.")
        if Baseline.key in keys:
            rest = "+".join(key for key in keys if key != Baseline.key)
            raise ValueError(f"{'+'.join(keys)}: baseline is the unchanged model and adds nothing to {rest}.")
        if any(isinstance(part.search, MetricSearch) for part in self.parts):
            raise ValueError(f"{'+'.join(keys)}: by=metric answers at all k of vtw alone: pass a number for k.")

    @property
    def positions(self) -> Position:
        """What all parts do."""
        return self.parts[0].positions

    @property
    def reads(self) -> Reads:
        """What the parts read, together."""
        return functools.reduce(operator.or_, (part.reads for part in self.parts))

    @property
    def question_independent(self) -> bool:
        """Whether all parts are."""
        return all(part.question_independent for part in self.parts)

    @property
    def leaves_whole(self) -> bool:
        """Whether they do under all parts."""
        return all(part.leaves_whole for part in self.parts)

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
            empty = last.empty_from(num_layers)
            for part in placed:
                layers = () if part is last else part.layers(num_layers)
                if layers and min(layers) >= part.idle_from(empty):
                    raise ValueError(
                        f"{'+'.join(p.key for p in self.parts)}: {part.key} begins before layer {min(layers)}, but "
                        f"{last.key} leaves no vision token from layer {empty} on, so that {part.key} would do "
                        f"nothing: give it an earlier layer or leave it out."
                    )

    def stand_in(self, anatomy: Anatomy) -> Composite:
        """Replace what was trained in all parts."""
        return replace(self, parts=tuple(part.stand_in(anatomy) for part in self.parts))

    @property
    def search(self) -> LayerSearch | MetricSearch | None:
        """The search of the part that has one."""
        return next((part.search for part in self.parts if part.search is not None), None)

    def found(self, k: int) -> Composite:
        """Tell that part what was found."""
        return replace(self, parts=tuple(part if part.search is None else part.found(k) for part in self.parts))

    def draws(self) -> Sequence[Composite]:
        """Return the compositions of all that the parts can turn out to be."""
        return [replace(self, parts=parts) for parts in itertools.product(*(part.draws() for part in self.parts))]

    def layers(self, num_layers: int) -> Sequence[int]:
        """Each layer that a part names."""
        return sorted({layer for part in self.parts for layer in part.layers(num_layers)})

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        """Each layer in which a part leaves vision tokens as they are."""
        return sorted({layer for part in self.parts for layer in part.frozen_layers(num_layers)})

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        """Each layer of the vision tower that a part names."""
        reading = (part for part in self.parts if Reads.TOWER in part.reads)
        return sorted({layer for part in reading for layer in part.tower_layers(num_layers)})

    def keep(self, view: LayerView) -> Tensor | Merge:
        """Keep what every part that names this layer keeps."""
        keep, merge = view.valid, None
        for part in self.parts:
            if view.layer not in part.layers(view.num_layers):
                continue
            answer = part.keep(view.shown_to(part))
            if isinstance(answer, Merge):
                if merge is not None:
                    raise ValueError(f"two parts of {self} merge tokens at layer {view.layer}.")
                merge, answer = answer, answer.keep
            keep = keep & answer
        return keep if merge is None else replace(merge, keep=keep)

    @property
    def name(self) -> str:
        """The names of the parts."""
        return "+".join(part.name for part in self.parts)

    def params(self) -> Mapping[str, Any]:
        """Parameters as ``method.parameter``."""
        return {f"{part.name}.{name}": value for part in self.parts for name, value in part.params().items()}

    def label(self) -> str:
        """Return the composition for a reader."""
        names, _, values = zip(*(part.label().partition(",") for part in self.parts), strict=True)
        own = [f"{name}.{v}" for name, text in zip(names, values, strict=True) for v in text.split(",") if v]
        return ",".join(["+".join(names), *own])


def parts_of(method: AnyReducer) -> tuple[AnyReducer | Method, ...]:
    """Return the methods that work one after another: the parts of a composition, or a method alone."""
    return method.parts if isinstance(method, Composite) else (method,)
